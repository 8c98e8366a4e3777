"""Helpers of the broker contracts: new channels, subscriptions read within a deadline, comparisons."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from secrets import token_hex

import anyio
import anyio.lowlevel

from ..brokers import Broker, ForwardingSubscription, Subscription
from ..errors import MessagesLostError
from ..wire.event import split_position, to_payload

#: How long a payload that has to come may take, in seconds. A busy machine must not fail a test.
DEADLINE = 10.0
#: How long a test waits for a payload that must not come, in seconds.
QUIET = 0.05

# Ends of channel names that some backends read as a pattern, a separator, a path, an escape or a hash tag.
_ENDS = ". .a .a.b a..b * .* > .> ? [a-z] a* {a} {b}a { } /a /../a %20a % _ a A :a # + $ ' \" \\"
_OTHER_ENDS = ["", " ", " a", "a ", "a b", "\n", "\t", "\u00e9", "e\u0301", "\u96ea", "\U0001f600", "\u2028"]
#: Every byte, no byte at all, and the marks that the component puts in front of an event.
BYTES = [bytes(range(256)), b"", b"\0", b"\xff", b"\xff\xff", b"\r\n\r\n", to_payload(b"data: \xc3\xa9\n\n")]


class LiveReader:
    """Reads a subscription's payloads with their positions, as a sink where the subscription can forward."""

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription
        self._heard: list[bytes] = []
        self._arrived = anyio.Event()
        self._forwards = isinstance(subscription, ForwardingSubscription)
        if isinstance(subscription, ForwardingSubscription):
            subscription.forward(self)

    def deliver(self, payload: bytes, /) -> None:
        """Take one payload."""
        self._heard.append(payload)
        self._arrived.set()

    def lost(self) -> None:
        """Ignore a loss: the test waits for the lost payload, which fails it."""

    async def next(self) -> bytes:
        """Return the next payload."""
        if not self._forwards:
            return await next_payload(self._subscription)
        with anyio.fail_after(DEADLINE):
            while not self._heard:
                self._arrived = anyio.Event()
                await self._arrived.wait()
        return self._heard.pop(0)


def new_channel() -> str:
    """Return a channel name that was never used."""
    return f"contract-{token_hex(8)}"


def hostile_channels() -> list[str]:
    """Return channel names that a careless adapter confuses with each other."""
    prefix = new_channel()
    return [
        *(f"{prefix}{end}" for end in [*_OTHER_ENDS, *_ENDS.split()]),
        f"*{prefix[1:]}",
        f" {prefix}",
        f"{{{prefix}}}",
    ]


@asynccontextmanager
async def subscribed(broker: Broker, channel: str) -> AsyncIterator[Subscription]:
    """Subscribe for the time of a block."""
    with anyio.fail_after(DEADLINE):
        subscription = await broker.subscribe(channel)
    try:
        yield subscription
    finally:
        await subscription.close()


async def next_payload(subscription: Subscription) -> bytes:
    """Return the next payload, with its position if it has one."""
    with anyio.fail_after(DEADLINE * 2):
        payload = await subscription.get_message(timeout=DEADLINE)
    if payload is None:
        raise AssertionError(f"no payload came within {DEADLINE:g} s")
    return payload


async def payloads(subscription: Subscription, count: int) -> list[bytes]:
    """Return the next payloads, without the positions that a broker with history gives them."""
    return [split_position(await next_payload(subscription))[1] for _ in range(count)]


async def payload_after_close(subscription: Subscription) -> bytes | None:
    """Return the payload that a closed subscription still gives; None if it gives none or raises an error."""
    try:
        return await subscription.get_message(timeout=QUIET)
    except MessagesLostError:
        raise
    except Exception:
        return None


async def nothing_more(subscriptions: Iterable[Subscription]) -> None:
    """Check that no further payload comes."""
    await anyio.sleep(QUIET)
    for subscription in subscriptions:
        check_equal(await subscription.get_message(timeout=QUIET / 10), None)


async def concurrently(count: int, act: Callable[[int], Awaitable[object]]) -> None:
    """Call a function concurrently with each number below `count`, and wait until all calls return."""

    async def call(number: int) -> None:
        await act(number)

    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as tasks:
            for number in range(count):
                tasks.start_soon(call, number)


async def pause(turns: int) -> None:
    """Wait for this many turns of the event loop."""
    for _ in range(turns):
        await anyio.lowlevel.checkpoint()


def check_equal(found: object, wanted: object) -> None:
    """Raise AssertionError with both values unless they are equal, also where pytest rewrites no asserts."""
    if found != wanted:
        raise AssertionError(f"found {found!r}, wanted {wanted!r}")
