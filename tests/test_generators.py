"""A response from a generator: what its client reads, and when the generator is closed. Real servers:
`test_generators_served.py`.
"""

import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field

import anyio
import pytest

from livepush_asgi import (
    DrainPolicy,
    EndReason,
    Event,
    LivePush,
    MemoryBroker,
    MemorySlotCap,
    RefusalCause,
    Timing,
    public,
    send_event_stream,
)
from livepush_asgi.runtime.asgi import ASGIApp, Receive, Scope, Send
from livepush_asgi.testing import Client, Stream

from .around import behind_a_middleware
from .virtual_clock import let_pass

VISITOR = ContextVar("visitor", default="nobody")


@dataclass
class Desk:
    """An application with one generator, a LivePush with one slot, and what happened to the generator."""

    source: Callable[["Desk"], AsyncIterator[object]]
    control_events: bool = False
    slot_key: str | None = "k"
    expires_at: float | None = None
    log: list[object] = field(default_factory=list)
    closed: int = 0

    def __post_init__(self) -> None:
        self.slots = MemorySlotCap(1, on_full="replace_oldest")
        self.push = LivePush(
            MemoryBroker(),
            public("news"),
            slots=self.slots,
            timing=Timing(max_lifetime=500, send_timeout=30),
            drain=DrainPolicy(window=1, signals=False),
        )
        #: Whether the application has returned when the generator was closed, and the reverse.
        self.returned = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        VISITOR.set(scope["path"])
        await send_event_stream(
            scope,
            receive,
            send,
            self.watched(),
            push=self.push,
            slot_key=self.slot_key,
            expires_at=self.expires_at,
            control_events=self.control_events,
        )
        self.returned += 1

    async def watched(self) -> AsyncIterator[object]:
        source = self.source(self)
        try:
            async for item in source:
                yield item
        finally:
            self.closed += 1
            self.log.append("closed")

    def ended(self) -> dict[str, int]:
        return {reason: count for reason, count in self.push.statistics()["ended"].items() if count}


async def three(desk: Desk) -> AsyncIterator[object]:
    yield "plain\ntext"
    yield {"n": 2}
    yield Event("x", event="y", id=7, retry=9)


async def ticking(desk: Desk) -> AsyncIterator[object]:
    """Wait between the events, as most generators do."""
    number = 0
    while True:
        yield number
        number += 1
        await anyio.sleep(1)


async def silent(desk: Desk) -> AsyncIterator[object]:
    yield "first"
    await anyio.sleep_forever()


async def endless(desk: Desk) -> AsyncIterator[object]:
    """Never wait."""
    number = 0
    while True:
        desk.log.append(number)
        yield number
        number += 1


def body_of(stream: Stream) -> bytes:
    return b"".join(message["body"] for message in stream.messages[1:])


async def test_the_events_go_out_as_publish_would_send_them_and_nothing_else() -> None:
    desk = Desk(three)
    async with desk.push.lifespan(), Client(desk) as client, client.open("/") as stream:
        await stream.wait_ended()
    assert stream.headers == {
        "content-type": "text/event-stream",
        "cache-control": "no-cache, no-transform",
        "x-accel-buffering": "no",
    }
    retry, _, rest = body_of(stream).partition(b"\n")
    assert 1500 <= int(retry.removeprefix(b"retry: ")) <= 4500
    assert rest == (
        b'data: plain\ndata: text\n\ndata: {"n":2}\n\nevent: y\nid: 7\nretry: 9\ndata: x\n\n'
    )
    # The reconnection time that the generator has set stands.
    assert stream.received[-1].retry == 9
    assert desk.ended() == {EndReason.FINISHED: 1}
    assert (desk.closed, desk.slots.held("k")) == (1, 0)


async def test_control_events_are_sent_if_asked_for() -> None:
    desk = Desk(three, control_events=True)
    async with desk.push.lifespan(), Client(desk) as client, client.open("/") as stream:
        assert await stream.wait_ended() == "finished"
    names = [event.event for event in stream.received]
    assert names == ["livepush.open", "message", "message", "y", "livepush.close"]
    assert json.loads(stream.received[0].data)["resumed"] is False
    # It has no position: a client keeps the id of the generator's last event.
    assert stream.received[0].id is None
    assert stream.last_event_id == "7"


async def test_an_idle_generator_has_heartbeats() -> None:
    desk = Desk(silent)
    async with desk.push.lifespan(), Client(desk) as client, client.open("/") as stream:
        await stream.next_event()
        start = anyio.current_time()
        await stream.next_comment(timeout=20)
        await stream.next_comment(timeout=20)
        assert 30 <= anyio.current_time() - start < 30.5
    assert desk.ended() == {EndReason.DISCONNECT: 1}


async def test_a_generator_has_the_context_of_its_request_and_one_task() -> None:
    async def source(desk: Desk) -> AsyncIterator[object]:
        with anyio.move_on_after(60):
            yield VISITOR.get()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anyio.sleep_forever)
                VISITOR.set("changed")
                yield VISITOR.get()
                yield VISITOR.get()
                tasks.cancel_scope.cancel()

    desk = Desk(source)
    async with desk.push.lifespan(), Client(desk) as client, client.open("/alice") as stream:
        assert [event.data for event in await stream.events(3)] == ["/alice", "changed", "changed"]
        await stream.wait_ended()
    assert desk.ended() == {EndReason.FINISHED: 1}


async def leave(desk: Desk, stream: Stream) -> None:
    await stream.disconnect()


async def drain(desk: Desk, stream: Stream) -> None:
    await desk.push.drain()


async def revoke(desk: Desk, stream: Stream) -> None:
    assert (await desk.push.disconnect(slot_key="k")).streams == 1


async def outlive(desk: Desk, stream: Stream) -> None:
    await stream.wait_ended(timeout=600)


async def replace(desk: Desk, stream: Stream) -> None:
    async with Client(desk) as client, client.open("/"):
        await stream.wait_ended()


async def stand_still(desk: Desk, stream: Stream) -> None:
    await let_pass(31)


ENDINGS: dict[EndReason, Callable[[Desk, Stream], Awaitable[None]]] = {
    EndReason.DISCONNECT: leave,
    EndReason.DRAIN: drain,
    EndReason.REVOKED: revoke,
    EndReason.LIFETIME: outlive,
    EndReason.REPLACED: replace,
    EndReason.SLOW: stand_still,
}


@pytest.mark.parametrize("around", [lambda app: app, behind_a_middleware], ids=["bare", "middleware"])
@pytest.mark.parametrize("source", [ticking, silent, endless])
@pytest.mark.parametrize("reason", ENDINGS)
async def test_every_ending_closes_the_generator_once_and_before_the_application_returns(
    reason: EndReason,
    source: Callable[[Desk], AsyncIterator[object]],
    around: Callable[[ASGIApp], ASGIApp],
) -> None:
    if (reason, source) == (EndReason.LIFETIME, endless):
        pytest.skip("in virtual time an endless generator without a wait would never let the lifetime pass")
    desk = Desk(source)
    if reason is EndReason.SLOW and source is silent:
        source = desk.source = ticking
    async with desk.push.lifespan(), Client(around(desk)) as client:
        window = 0 if reason is EndReason.SLOW else 64
        async with client.open("/", window=window) as stream:
            if reason is not EndReason.SLOW:
                await stream.next_event()
            await ENDINGS[reason](desk, stream)
            with anyio.fail_after(2):
                while not desk.returned:
                    await let_pass(0.01)
            assert desk.closed >= 1
        assert desk.ended()[reason] == 1
        assert desk.slots.held("k") == 0
    assert desk.closed == desk.returned
