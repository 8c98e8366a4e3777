"""What happens to a stream at each stage of its way: its answer, one end reason, everything given back."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
import pytest

from livepush_asgi import (
    DrainPolicy,
    EndReason,
    ForwardingSubscription,
    Grant,
    GrantRevokedError,
    Lease,
    LivePush,
    MemoryBroker,
    MemorySlotCap,
    NotRunningError,
    SSEStreamService,
    StreamRequest,
    Timing,
)
from livepush_asgi.brokers import Subscription
from livepush_asgi.runtime.asgi import Message
from livepush_asgi.runtime.event_loop import on_asyncio
from livepush_asgi.testing import MockBroker, ParsedEvent
from livepush_asgi.wire.parser import EventStreamParser

from .virtual_clock import let_pass

CHANNEL = "news"


class Gate:
    """Where something waits, once: until it is let through, or for ten seconds."""

    def __init__(self) -> None:
        self.reached = anyio.Event()
        self.open = anyio.Event()

    async def pass_through(self) -> None:
        self.reached.set()
        with anyio.move_on_after(10):
            await self.open.wait()


class GatedBroker(MockBroker):
    """Holds up the subscription of the application's channel."""

    def __init__(self, gate: Gate | None) -> None:
        super().__init__()
        self._gate = gate

    async def subscribe(self, channel: str) -> ForwardingSubscription:
        if self._gate is not None and channel == CHANNEL:
            await self._gate.pass_through()
        return await super().subscribe(channel)


class GatedSlots(MemorySlotCap):
    """Holds up each slot before it is taken, as a store on a server does."""

    def __init__(self, gate: Gate | None, log: list[str]) -> None:
        super().__init__(
            2, on_acquire=lambda key: log.append("taken"), on_release=lambda key: log.append("back")
        )
        self._gate = gate

    async def acquire_lease(self, slot_key: str, on_replaced: Callable[[], None] | None = None) -> Lease:
        if self._gate is not None:
            await self._gate.pass_through()
        return await super().acquire_lease(slot_key, on_replaced)


@dataclass
class House:
    """A component that waits at one stage, and one request to it."""

    stage: str
    log: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gate = Gate()
        self.broker = GatedBroker(self._at("subscribe"))
        self.slots = GatedSlots(self._at("slot"), self.log)
        self.push = LivePush(
            self.broker,
            self.authorize,
            slots=self.slots,
            drain=DrainPolicy(window=2, signals=False),
            timing=Timing(subscribe_timeout=20, linger=0.5),
        )
        self.left = anyio.Event()
        self.sent: list[Message] = []
        self.scope: anyio.CancelScope = anyio.CancelScope()
        self.returned = anyio.Event()

    def _at(self, stage: str) -> Gate | None:
        return self.gate if self.stage == stage else None

    async def authorize(self, request: StreamRequest) -> Grant:
        if gate := self._at("authorize"):
            await gate.pass_through()
        return Grant(channels=CHANNEL, slot_key="k", snapshot=self.snapshot)

    async def snapshot(self) -> object:
        if gate := self._at("snapshot"):
            await gate.pass_through()
        return "state"

    async def receive(self) -> Message:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        await anyio.lowlevel.checkpoint()
        if not self.left.is_set():
            self.sent.append(message)
        if self.stage == "live" and b"state" in message.get("body", b""):
            self.gate.reached.set()

    async def request(self) -> None:
        scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": []}

        async def receive() -> Message:
            return await self.receive()

        # As uvicorn's: it may be asked again after its wait was given up.
        receive.livepush_inline = True  # type: ignore[attr-defined]
        try:
            with self.scope:
                await self.push(scope, receive, self.send)
        finally:
            self.returned.set()

    @asynccontextmanager
    async def at_its_stage(self) -> AsyncIterator[None]:
        async with self.push.lifespan(), anyio.create_task_group() as tasks:
            tasks.start_soon(self.request)
            with anyio.fail_after(5):
                await self.gate.reached.wait()
            await anyio.wait_all_tasks_blocked()
            yield
            with anyio.fail_after(15):
                await self.returned.wait()
            await self.push.stop()

    @property
    def status(self) -> int | None:
        return self.sent[0]["status"] if self.sent else None

    @property
    def events(self) -> list[ParsedEvent]:
        return EventStreamParser().feed(b"".join(message.get("body", b"") for message in self.sent))

    @property
    def reasons(self) -> list[str]:
        """Why it was refused, or ended, as the client is told."""
        told = [event for event in self.events if event.event in ("livepush.refused", "livepush.close")]
        return [json.loads(event.data)["reason"] for event in told]


async def stop(house: House) -> None:
    await house.push.stop()


async def drain(house: House) -> None:
    await house.push.drain()


async def revoke(house: House) -> None:
    await house.push.disconnect(slot_key="k")
    house.gate.open.set()
    await let_pass(1)
    # It may have been authorized again: then it is open, and the decision is a new one.
    house.left.set()


async def leave(house: House) -> None:
    house.left.set()
    if not on_asyncio():
        # There it shows only after the wait.
        house.gate.open.set()


async def cancel(house: House) -> None:
    house.scope.cancel()


EVENTS: dict[str, Callable[[House], Awaitable[None]]] = {
    "stop": stop,
    "drain": drain,
    "revoke": revoke,
    "leave": leave,
    "cancel": cancel,
}
STAGES = ("authorize", "slot", "subscribe", "snapshot", "live")
REASONS = {
    "stop": EndReason.DRAIN,
    "drain": EndReason.DRAIN,
    "revoke": EndReason.REVOKED,
    "leave": EndReason.DISCONNECT,
    "cancel": EndReason.DISCONNECT,
}


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("stage", STAGES)
async def test_whatever_happens_at_whatever_stage(
    stage: str, event: str, caplog: pytest.LogCaptureFixture
) -> None:
    house = House(stage)
    async with house.at_its_stage():
        start = anyio.current_time()
        await EVENTS[event](house)
        with anyio.fail_after(3):
            await house.returned.wait()
        assert anyio.current_time() - start <= 3
        statistics = house.push.statistics()
        assert statistics["streams"] == 0
        before = stage in ("authorize", "slot")
        late = event == "revoke" or (event == "leave" and not on_asyncio())
        if before and not late:
            assert statistics["opened"] == 0
        else:
            # A revoked one that was not open yet was authorized again, and its client has left it.
            reason = EndReason.DISCONNECT if before else REASONS[event]
            assert statistics["opened"] == 1
            assert statistics["ended"][reason] == 1
        assert sum(statistics["ended"].values()) == statistics["opened"]
        assert house.slots.held("k") == 0
        assert house.log.count("taken") == house.log.count("back")
        house.gate.open.set()
        await let_pass(1)
        assert house.push.statistics()["channels"] == 0
        assert house.broker.subscriptions(CHANNEL) == 0
        if event in ("stop", "drain"):
            assert house.status == 200
            # Where the stream was cut in the middle of a wait there is no last word yet.
            assert house.reasons in (["drain"], []) if stage in ("subscribe", "snapshot") else ["drain"]
    assert house.broker.subscriptions(CHANNEL) == house.broker.subscriptions("livepush.commands") == 0
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.parametrize("event", ["stop", "revoke"])
async def test_a_route_is_refused_when_its_stream_ends_before_it_is_open(event: str) -> None:
    gate = Gate()
    service = SSEStreamService(GatedBroker(gate), MemorySlotCap(1))
    service.push.drain_policy = DrainPolicy(window=1, signals=False)
    error = NotRunningError if event == "stop" else GrantRevokedError

    async def end() -> None:
        await gate.reached.wait()
        if event == "stop":
            await service.push.stop()
        else:
            await service.push.disconnect(channel=CHANNEL)
        gate.open.set()

    async with service.push.lifespan(), anyio.create_task_group() as tasks:
        tasks.start_soon(end)
        with pytest.raises(error):
            await service.open_stream(channel=CHANNEL, slot_key="k")
    assert service.statistics()["streams"] == 0


class SilentBroker(MemoryBroker):
    """Does not answer to a subscribe of the application's channel."""

    async def subscribe(self, channel: str) -> Subscription:
        if channel == CHANNEL:
            await let_pass(3600)
        return await super().subscribe(channel)


async def test_a_route_opens_after_the_subscribe_timeout_whatever_the_broker_does() -> None:
    service = SSEStreamService(SilentBroker())
    async with service.push.lifespan():
        began = anyio.current_time()
        stream = await service.open_stream(channel=CHANNEL)
        assert b"livepush.open" in await anext(stream.body)
        assert anyio.current_time() - began == pytest.approx(service.push.timing.subscribe_timeout, abs=0.1)
        await stream.body.aclose()
