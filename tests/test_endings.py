"""Everything taken is given back once, on every ending, whatever the broker: the slot, the subscription,
the stream's place in the process. The reason is the one that occurred.
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
import pytest

from livepush_asgi import (
    DrainPolicy,
    EndReason,
    Grant,
    Limits,
    LivePush,
    MemoryBroker,
    MemorySlotCap,
    StreamRequest,
    Timing,
)
from livepush_asgi.brokers import Broker
from livepush_asgi.runtime.asgi import ASGIApp, Message, Scope
from livepush_asgi.testing import Client, MockBroker, Stream

from .around import behind_a_middleware
from .pull_broker import PullBroker
from .virtual_clock import let_pass

BROKERS: dict[str, Callable[[], Broker]] = {"memory": MemoryBroker, "mock": MockBroker, "pull": PullBroker}


@dataclass
class House:
    """A LivePush with a cap whose hooks write down what is taken and given back."""

    broker: Broker
    control_events: bool = True
    expires_in: float | None = None
    log: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.slots = MemorySlotCap(
            1,
            on_full="replace_oldest",
            on_acquire=lambda key: self.log.append("taken"),
            on_release=lambda key: self.log.append("given back"),
        )
        self.push = LivePush(
            self.broker,
            self.authorize,
            slots=self.slots,
            timing=Timing(max_lifetime=500, send_timeout=30, linger=1),
            limits=Limits(outbox_events=5, overflow="close"),
            drain=DrainPolicy(window=1, signals=False),
            control_events=self.control_events,
        )

    def authorize(self, request: StreamRequest) -> Grant:
        expires_at = None if self.expires_in is None else time.time() + self.expires_in
        return Grant(channels=["a", "b"], slot_key="k", expires_at=expires_at)


async def leave(house: House, client: Client, stream: Stream) -> None:
    await stream.disconnect()


async def drain(house: House, client: Client, stream: Stream) -> None:
    await house.push.drain()


async def outlive(house: House, client: Client, stream: Stream) -> None:
    await stream.wait_ended(timeout=600)


async def revoke_by_key(house: House, client: Client, stream: Stream) -> None:
    await house.push.disconnect(slot_key="k")


async def revoke_by_channel(house: House, client: Client, stream: Stream) -> None:
    await house.push.disconnect(channel="b")


async def overflow(house: House, client: Client, stream: Stream) -> None:
    # The first six are on their way out, and of what comes meanwhile five fill the outbox.
    for _ in range(2):
        for number in range(6):
            await house.push.publish("a", number)
        await anyio.wait_all_tasks_blocked()


async def stall(house: House, client: Client, stream: Stream) -> None:
    await house.push.publish("a", "nobody takes this")
    await let_pass(50)


async def replace(house: House, client: Client, stream: Stream) -> None:
    async with client.open("/") as newer:
        await newer.next_event(control=True)
        await stream.wait_ended()


async def lose_broker(house: House, client: Client, stream: Stream) -> None:
    assert isinstance(house.broker, MockBroker)
    house.broker.drop()


@dataclass(frozen=True)
class Ending:
    reason: EndReason
    cause: Callable[[House, Client, Stream], Awaitable[None]]
    window: float = 64
    expires_in: float | None = None
    control_events: bool = True


ENDINGS = {
    "disconnect": Ending(EndReason.DISCONNECT, leave),
    "drain": Ending(EndReason.DRAIN, drain),
    "lifetime": Ending(EndReason.LIFETIME, outlive),
    "expired": Ending(EndReason.EXPIRED, outlive, expires_in=100),
    "revoked by key": Ending(EndReason.REVOKED, revoke_by_key),
    "revoked by channel": Ending(EndReason.REVOKED, revoke_by_channel),
    "slow by overflow": Ending(EndReason.SLOW, overflow, window=0),
    "slow by send timeout": Ending(EndReason.SLOW, stall, window=0),
    "replaced": Ending(EndReason.REPLACED, replace),
}


@asynccontextmanager
async def opened(
    house: House, window: float, app: ASGIApp | None = None
) -> AsyncIterator[tuple[Client, Stream]]:
    client = Client(app or house.push)
    async with house.push.lifespan(), client, client.open("/", window=window) as stream:
        await stream.next_event(control=True)
        assert house.slots.held("k") == 1
        assert house.push.statistics()["streams"] == 1
        yield client, stream


@pytest.mark.parametrize("way", ["direct", "behind a middleware"])
@pytest.mark.parametrize("broker", BROKERS)
@pytest.mark.parametrize("name", ENDINGS)
async def test_every_ending_gives_everything_back_once(name: str, broker: str, way: str) -> None:
    ending = ENDINGS[name]
    house = House(BROKERS[broker](), ending.control_events, ending.expires_in)
    app = house.push if way == "direct" else behind_a_middleware(house.push)
    async with opened(house, ending.window, app) as (client, stream):
        await ending.cause(house, client, stream)
        if ending.window and name != "disconnect":
            assert await stream.wait_ended() == ending.reason.value
        elif name == "slow by overflow":
            assert await stream.wait_ended() == "slow"
        statistics = house.push.statistics()
        assert statistics["ended"][ending.reason] >= 1
        assert statistics["streams"] == 0
        assert house.slots.held("k") == 0
        await let_pass(1.2)
        assert house.push.statistics()["channels"] == 0
    assert house.log.count("taken") == house.log.count("given back") == house.push.statistics()["opened"]
    assert sum(house.push.statistics()["ended"].values()) == house.push.statistics()["opened"]


async def test_a_lost_broker_ends_a_stream_that_cannot_be_told() -> None:
    house = House(MockBroker(), control_events=False)
    async with house.push.lifespan(), Client(house.push) as client, client.open("/") as stream:
        # No open event tells that it listens.
        await anyio.wait_all_tasks_blocked()
        await house.push.publish("a", "x")
        await stream.next_event()
        await lose_broker(house, client, stream)
        await stream.wait_ended()
        assert house.push.statistics()["ended"][EndReason.BROKER] == 1
        assert house.slots.held("k") == 0


class Broken(Exception):
    """What a server, or a middleware, should not raise."""


@pytest.mark.parametrize("count", [0, 1, 2])
async def test_a_send_that_raises_ends_as_error_and_reaches_the_server(count: int) -> None:
    house = House(MemoryBroker())
    left = count

    async def receive() -> Message:
        await anyio.sleep_forever()
        raise AssertionError

    async def send(message: Message) -> None:
        nonlocal left
        if not left:
            raise Broken
        left -= 1

    async with house.push.lifespan():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(publish_forever, house, tasks)
            with pytest.raises(Broken):
                await house.push(http_scope(), receive, send)
            tasks.cancel_scope.cancel()
        assert house.push.statistics()["ended"][EndReason.ERROR] == 1
    assert house.log == ["taken", "given back"]


async def test_a_receive_that_raises_ends_as_error_and_reaches_the_server() -> None:
    house = House(MemoryBroker())

    async def receive() -> Message:
        raise Broken

    async def send(message: Message) -> None:
        pass

    async with house.push.lifespan():
        with pytest.raises(Broken):
            await house.push(http_scope(), receive, send)
    assert house.log == ["taken", "given back"]


@pytest.mark.parametrize("sends", range(4))
async def test_a_cancellation_gives_everything_back_and_is_not_swallowed(sends: int) -> None:
    """A server or a middleware may cancel the request anywhere, in the middle of a send too."""
    house = House(MemoryBroker())
    left = sends

    async def receive() -> Message:
        await anyio.sleep_forever()
        raise AssertionError

    async with house.push.lifespan():
        with anyio.CancelScope() as scope:

            async def send(message: Message) -> None:
                nonlocal left
                left -= 1
                if left < 0:
                    scope.cancel()
                    await anyio.sleep_forever()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(publish_forever, house, tasks)
                await house.push(http_scope(), receive, send)
        assert scope.cancelled_caught
        assert house.push.statistics()["ended"][EndReason.DISCONNECT] == 1
        assert house.push.statistics()["streams"] == 0
    assert house.log == ["taken", "given back"]


async def publish_forever(house: House, tasks: object) -> None:
    while True:
        await house.push.publish("a", "x")
        await let_pass(1)


def http_scope() -> Scope:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/",
        "raw_path": b"/",
        "query_string": b"",
        "root_path": "",
        "headers": [],
        "client": None,
        "server": None,
    }
