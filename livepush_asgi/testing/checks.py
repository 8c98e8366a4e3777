"""What the contracts of brokers look with: new channels, subscriptions read by a deadline, checks."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from secrets import token_hex

import anyio
import anyio.lowlevel

from ..broker import Broker, ForwardingSubscription, Subscription
from ..errors import MessagesLostError
from ..event import split_position, to_payload

#: Seconds after which a payload that should come is given up. A busy machine must not fail a test.
PATIENCE = 10.0
#: Seconds in which a payload that must not come would have come.
MOMENT = 0.05

#: What some backend takes for a pattern, a separator, a path, an escape or a hash tag, below one prefix.
HOSTILE = [
    *["", " ", " a", "a ", "a b", ".", ".a", ".a.b", "a..b", "*", ".*", ">", ".>", "?", "[a-z]", "a*"],
    *[
        "{a}",
        "{b}a",
        "{",
        "}",
        "/a",
        "/../a",
        "%20a",
        "%",
        "_",
        "a",
        "A",
        ":a",
        "#",
        "+",
        "$",
        "'",
        '"',
        "\\",
    ],
    *["\u00e9", "e\u0301", "\u96ea", "\U0001f600", "\u2028", "\n", "\t"],
]
#: Every byte, no byte at all, and what the component itself puts in front of an event.
BYTES = [bytes(range(256)), b"", b"\0", b"\xff", b"\xff\xff", b"\r\n\r\n", to_payload(b"data: \xc3\xa9\n\n")]


class Live:
    """Reads the live payloads of a subscription as they are, with their positions: it is a sink if it can."""

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
        """Hear of a loss. What is lost is missed by whoever waits for it."""

    async def next(self) -> bytes:
        """Return the next payload."""
        with anyio.fail_after(PATIENCE):
            while not self._heard:
                if self._forwards:
                    await self._arrived.wait()
                elif (payload := await self._subscription.get_message(timeout=PATIENCE)) is not None:
                    return payload
        payload = self._heard.pop(0)
        if not self._heard:
            self._arrived = anyio.Event()
        return payload


def new_channel() -> str:
    """Return the name of a channel that nobody has used."""
    return f"contract-{token_hex(8)}"


def hostile_channels() -> list[str]:
    """Return the names of channels that a careless adapter mixes up."""
    prefix = new_channel()
    return [*(f"{prefix}{end}" for end in HOSTILE), f"*{prefix[1:]}", f" {prefix}", f"{{{prefix}}}"]


@asynccontextmanager
async def subscribed(broker: Broker, channel: str) -> AsyncIterator[Subscription]:
    """Subscribe for the time of a block."""
    with anyio.fail_after(PATIENCE):
        subscription = await broker.subscribe(channel)
    try:
        yield subscription
    finally:
        await subscription.close()


async def payloads(subscription: Subscription, count: int) -> list[bytes]:
    """Return the next payloads, without the positions that a broker with history may give them."""
    found: list[bytes] = []
    for number in range(count):
        with anyio.fail_after(PATIENCE * 2):
            payload = await subscription.get_message(timeout=PATIENCE)
        if payload is None:
            raise AssertionError(f"{number} of {count} payloads came: {found!r}")
        found.append(split_position(payload)[1])
    return found


async def what_comes(subscription: Subscription) -> bytes | None:
    """Return what a subscription gives that may have ended, None for nothing."""
    try:
        return await subscription.get_message(timeout=MOMENT)
    except MessagesLostError:
        raise
    except Exception:
        return None


async def nothing_more(subscriptions: Iterable[Subscription]) -> None:
    """Check that nothing else comes."""
    await anyio.sleep(MOMENT)
    for subscription in subscriptions:
        same(await subscription.get_message(timeout=MOMENT / 10), None)


async def pause(steps: int) -> None:
    """Let the others run, so many turns of the event loop."""
    for _ in range(steps):
        await anyio.lowlevel.checkpoint()


def same(found: object, wanted: object) -> None:
    """Check a value. Says both where pytest does not rewrite the assertions of this package."""
    if found != wanted:
        raise AssertionError(f"found {found!r}, wanted {wanted!r}")
