"""A response from a generator: what its client reads, and when the generator is closed. Real servers:
`test_generators_served.py`.
"""

import asyncio
import gc
import json
import logging
import math
import re
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import anyio
import anyio.lowlevel
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
from livepush_asgi.app.generator import default_push, open_source
from livepush_asgi.runtime.asgi import ASGIApp, Message, Receive, Scope, Send
from livepush_asgi.stream.source import iterator_of
from livepush_asgi.testing import Client, MockBroker, Stream
from livepush_asgi.testing.exchange import http_scope
from livepush_asgi.wire.event import RESERVED_PREFIX
from livepush_asgi.wire.parser import EventStreamParser

from .around import behind_a_middleware
from .faulty_broker import FaultyBroker
from .virtual_clock import let_pass

VISITOR = ContextVar("visitor", default="nobody")


@dataclass
class Desk:
    """An application with one generator, a LivePush with one slot, and what happened to the generator."""

    source: Callable[["Desk"], AsyncGenerator[object]]
    control_events: bool = False
    slot_key: str | None = "k"
    expires_at: float | None = None
    log: list[object] = field(default_factory=list)
    returned: int = 0
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
        # After the generator was closed.
        assert self.closed == self.returned + 1
        self.returned += 1

    async def watched(self) -> AsyncGenerator[object]:
        try:
            async with aclosing(self.source(self)) as source:
                async for item in source:
                    yield item
        finally:
            self.closed += 1

    def ended(self) -> dict[str, int]:
        return {reason: count for reason, count in self.push.statistics()["ended"].items() if count}


async def three(desk: Desk) -> AsyncGenerator[object]:
    yield "plain\ntext"
    yield {"n": 2}
    yield Event("x", event="y", id=7, retry=9)


async def ticking(desk: Desk) -> AsyncGenerator[object]:
    """Wait between the events, as most generators do."""
    number = 0
    while True:
        yield number
        number += 1
        await anyio.sleep(1)


async def silent(desk: Desk) -> AsyncGenerator[object]:
    yield "first"
    await anyio.sleep_forever()


async def endless(desk: Desk) -> AsyncGenerator[object]:
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
    assert rest == (b'data: plain\ndata: text\n\ndata: {"n":2}\n\nevent: y\nid: 7\nretry: 9\ndata: x\n\n')
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
    async def source(desk: Desk) -> AsyncGenerator[object]:
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


async def limited_by_asyncio(seconds: float) -> AsyncGenerator[object]:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            for number in count():
                yield number
    yield "too late"


async def limited_by_anyio(seconds: float) -> AsyncGenerator[object]:
    with anyio.move_on_after(seconds):
        for number in count():
            yield number
    yield "too late"


LIMITED = {"asyncio": limited_by_asyncio, "anyio": limited_by_anyio}


async def check_time_limit(kind: str, seconds: float, window: float) -> None:
    push = LivePush(MemoryBroker(), public("c"), drain=DrainPolicy(window=1, signals=False))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send_event_stream(scope, receive, send, LIMITED[kind](seconds), push=push)

    async with push.lifespan(), Client(app) as client, client.open("/", window=window) as stream:
        await let_pass(1.2 * seconds)
        await stream.wait_ended()
        *numbers, last = [event.data for event in stream.received]
        assert (numbers, last) == ([str(number) for number in range(len(numbers))], "too late")
        assert push.statistics()["ended"][EndReason.FINISHED] == 1


@pytest.mark.parametrize("kind", LIMITED)
async def test_a_time_limit_that_ends_while_the_client_takes_nothing_is_raised_in_the_generator(
    kind: str, anyio_backend_name: str
) -> None:
    if kind != "asyncio" or anyio_backend_name == "asyncio":
        await check_time_limit(kind, 5, window=0)


@pytest.mark.real_time
@pytest.mark.parametrize("kind", LIMITED)
async def test_a_time_limit_that_ends_while_a_generator_lets_others_run_is_raised_in_it(kind: str) -> None:
    await check_time_limit(kind, 0.02, window=math.inf)


async def test_a_generator_that_is_closed_at_a_yield_leaves_its_scopes_and_tasks_in_order(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def child(desk: Desk) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            desk.log.append("child")

    async def source(desk: Desk) -> AsyncGenerator[object]:
        try:
            with anyio.move_on_after(60):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(child, desk)
                    while True:
                        yield "more"
        finally:
            desk.log.append("generator")

    desk = Desk(source)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send_event_stream(scope, receive, send, source(desk), push=desk.push)

    async with desk.push.lifespan(), Client(app) as client, client.open("/", window=0) as stream:
        await stream.next_event()
        await let_pass(0.1)
        await stream.disconnect()
        assert desk.log == ["child", "generator"]
    assert caplog.text == ""


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
# Virtual time passes only while everybody waits, and a silent generator is never slow.
IMPOSSIBLE = {(EndReason.LIFETIME, endless), (EndReason.SLOW, silent)}
CASES = [
    (reason, source)
    for reason in ENDINGS
    for source in (ticking, silent, endless)
    if (reason, source) not in IMPOSSIBLE
]


@pytest.mark.parametrize("around", [lambda app: app, behind_a_middleware], ids=["bare", "middleware"])
@pytest.mark.parametrize(("reason", "source"), CASES)
async def test_every_ending_closes_the_generator_once_and_before_the_application_returns(
    reason: EndReason,
    source: Callable[[Desk], AsyncGenerator[object]],
    around: Callable[[ASGIApp], ASGIApp],
) -> None:
    desk = Desk(source)
    async with desk.push.lifespan(), Client(around(desk)) as client:
        window = 0 if reason is EndReason.SLOW else 2
        async with client.open("/", window=window) as stream:
            if reason is not EndReason.SLOW:
                await stream.next_event()
            await ENDINGS[reason](desk, stream)
            with anyio.fail_after(2):
                while not desk.returned:
                    await let_pass(0.01)
        assert desk.ended()[reason] == 1
        assert desk.slots.held("k") == 0
    assert desk.closed == desk.returned


async def test_what_was_produced_before_an_exception_arrives_and_the_log_has_it_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def source(desk: Desk) -> AsyncGenerator[object]:
        yield "a"
        yield "b"
        raise ValueError("the model is gone")

    desk = Desk(source, control_events=True, slot_key=None)
    async with desk.push.lifespan(), Client(desk) as client:
        for _ in range(3):
            async with client.open("/") as stream:
                assert await stream.wait_ended() == "error"
            assert [event.data for event in stream.received if event.event == "message"] == ["a", "b"]
    (record,) = [each for each in caplog.records if each.levelno >= logging.ERROR]
    assert record.getMessage() == "a generator raised, so its stream ended as `error`"
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "the model is gone"
    assert desk.ended() == {EndReason.ERROR: 3}
    assert desk.closed == 3


async def test_data_that_no_event_can_have_ends_the_stream_and_closes_the_generator(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def source(desk: Desk) -> AsyncGenerator[object]:
        yield "a"
        yield object()

    desk = Desk(source)
    async with desk.push.lifespan(), Client(desk) as client, client.open("/") as stream:
        await stream.wait_ended()
    assert [event.data for event in stream.received] == ["a"]
    assert "neither text, UTF-8 bytes nor JSON" in caplog.text
    assert (desk.ended(), desk.closed) == ({EndReason.ERROR: 1}, 1)


@pytest.mark.parametrize("place", ["yield", "wait"])
async def test_a_finally_may_await_and_the_drain_waits_for_it(place: str) -> None:
    async def source(desk: Desk) -> AsyncGenerator[object]:
        try:
            yield "first"
            if place == "yield":
                while True:
                    yield "next"
            await anyio.sleep_forever()
        finally:
            # As code for trio has to do, and code for anyio.
            with anyio.CancelScope(shield=True):
                await anyio.sleep(2.5)
            desk.log.append("saved")

    desk = Desk(source)
    async with Client(desk) as client, desk.push.lifespan(), client.open("/", window=0) as stream:
        await stream.next_event()
        start = anyio.current_time()
        await desk.push.stop()
        assert desk.log == ["saved"]
        assert 2.5 <= anyio.current_time() - start < 3.5 + 1
    assert desk.returned == 1


@pytest.mark.parametrize("place", ["yield", "wait"])
async def test_a_finally_that_takes_too_long_is_cancelled_and_the_log_says_so(
    place: str, caplog: pytest.LogCaptureFixture, anyio_backend_name: str
) -> None:
    async def source(desk: Desk) -> AsyncGenerator[object]:
        try:
            yield "first"
            if place == "yield":
                while True:
                    yield "next"
            await anyio.sleep_forever()
        finally:
            await anyio.sleep(1000)
            desk.log.append("saved")

    desk = Desk(source)
    async with desk.push.lifespan(), Client(desk) as client, client.open("/", window=0) as stream:
        await stream.next_event()
        await let_pass(0.1)
        start = anyio.current_time()
        await stream.disconnect()
        took = anyio.current_time() - start
    assert (desk.log, desk.closed, desk.returned) == ([], 1, 1)
    # trio cancels a `finally` at its first await, unless that is shielded.
    if place == "wait" and anyio_backend_name == "trio":
        assert took < 0.1
    else:
        assert 3 <= took < 3.2
        assert "a generator was not closed 3 s after the end of its stream" in caplog.text


async def test_a_generator_that_ignores_its_end_holds_up_nobody_for_long(
    caplog: pytest.LogCaptureFixture, anyio_backend_name: str
) -> None:
    over = anyio.Event()

    async def source(desk: Desk) -> AsyncGenerator[object]:
        yield "first"
        with anyio.CancelScope(shield=True):
            while not over.is_set():
                try:
                    await over.wait()
                except BaseException:
                    if anyio_backend_name == "trio":
                        raise

    desk = Desk(source)
    app_returned: list[float] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send_event_stream(scope, receive, send, desk.watched(), push=desk.push)
        app_returned.append(anyio.current_time())

    async with desk.push.lifespan(), Client(app) as client, client.open("/") as stream:
        await stream.next_event()
        start = anyio.current_time()
        await stream.disconnect()
        assert 3.4 < app_returned[0] - start < 3.7
        assert desk.closed == 0
        over.set()
    assert "a generator was not closed" in caplog.text


async def test_generators_that_ignore_their_end_hold_up_a_stop_together(
    caplog: pytest.LogCaptureFixture,
) -> None:
    over = anyio.Event()

    async def source(desk: Desk) -> AsyncGenerator[object]:
        yield "first"
        with anyio.CancelScope(shield=True):
            while not over.is_set():
                with suppress(asyncio.CancelledError):
                    await over.wait()

    desk = Desk(source, slot_key=None)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send_event_stream(scope, receive, send, source(desk), push=desk.push)

    await desk.push.start()
    async with Client(app) as client, AsyncExitStack() as stack:
        for _ in range(20):
            stream = await stack.enter_async_context(client.open("/"))
            await stream.next_event()
        start = anyio.current_time()
        await desk.push.stop()
        # The window of the drain, and the time that all of them have.
        assert anyio.current_time() - start < 1 + 3.6
        over.set()
    assert desk.ended() == {EndReason.DRAIN: 20}
    assert caplog.text.count("a generator was not closed") == 1


async def test_a_cancellation_that_a_generator_raises_itself_is_logged(
    caplog: pytest.LogCaptureFixture, anyio_backend_name: str
) -> None:
    if anyio_backend_name == "trio":
        # There only a cancel scope can raise one, which then catches it.
        return

    async def source(desk: Desk) -> AsyncGenerator[object]:
        yield "first"
        task = asyncio.create_task(anyio.sleep_forever())
        task.cancel()
        await task

    desk = Desk(source)
    async with desk.push.lifespan(), Client(desk) as client, client.open("/") as stream:
        await stream.wait_ended()
    assert [event.data for event in stream.received] == ["first"]
    assert "a generator raised a cancellation of its own" in caplog.text
    assert desk.ended() == {EndReason.ERROR: 1}


async def test_an_item_that_comes_after_the_end_is_dropped_and_the_generator_closed() -> None:
    async def source(desk: Desk) -> AsyncGenerator[object]:
        try:
            yield "first"
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            yield "a farewell"

    desk = Desk(source)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send_event_stream(scope, receive, send, source(desk), push=desk.push)

    async with desk.push.lifespan(), Client(app) as client, client.open("/") as stream:
        await stream.next_event()
        await desk.push.drain()
        await stream.wait_ended()
    assert [event.data for event in stream.received] == ["first"]


async def test_a_generator_is_one_event_ahead_of_a_client_that_reads_slowly() -> None:
    desk = Desk(endless)
    async with desk.push.lifespan(), Client(desk) as client, client.open("/", window=0) as stream:
        for number in range(1, 100):
            assert (await stream.next_event()).data == str(number - 1)
            await let_pass(0.1)
            # One event waits in `send`, and one behind it.
            assert len(desk.log) == number + 2


@pytest.mark.parametrize("around", [lambda app: app, behind_a_middleware], ids=["bare", "middleware"])
async def test_an_event_goes_out_before_the_generator_goes_on(
    around: Callable[[ASGIApp], ASGIApp],
) -> None:
    sent: list[list[object]] = []
    made: list[object] = []

    async def source(desk: Desk) -> AsyncGenerator[object]:
        for number in range(20):
            # The code here may block the event loop for long.
            made.append(number)
            yield number

    async def noting(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_on(message: Message) -> None:
            sent.append(list(made))
            await send(message)

        await send_event_stream(scope, receive, send_on, source(desk), push=desk.push)

    desk = Desk(source)
    async with desk.push.lifespan(), Client(around(noting)) as client, client.open("/") as stream:
        await stream.wait_ended()
    assert [event.data for event in stream.received] == [str(number) for number in range(20)]
    # The start and the reconnection time, an event after the other, and the end.
    assert [len(each) for each in sent[2:-1]][1:] == list(range(2, 21))


async def test_a_broker_that_is_away_ends_only_generators_that_may_have_been_revoked() -> None:
    broker = MockBroker()
    push = LivePush(broker, public("news"), drain=DrainPolicy(signals=False))
    desk = Desk(ticking)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        key = scope["path"].removeprefix("/") or None
        await send_event_stream(scope, receive, send, ticking(desk), push=push, slot_key=key)

    async with push.lifespan(), Client(app) as client, client.open("/") as stays:
        await stays.next_event()
        async with client.open("/alice") as ends:
            await ends.next_event()
            broker.drop()
            await ends.wait_ended(timeout=8)
        await stays.events(20, timeout=2)
        ended = push.statistics()["ended"]
    assert (ended[EndReason.REVOKED], ended[EndReason.DISCONNECT]) == (1, 0)


class Feed:
    """An async iterator that is no generator, and has something to close."""

    def __init__(self) -> None:
        self.steps = self.closed = 0

    def __aiter__(self) -> "Feed":
        return self

    async def __anext__(self) -> object:
        self.steps += 1
        await anyio.sleep(1)
        return self.steps

    async def aclose(self) -> None:
        await anyio.sleep(0.1)
        self.closed += 1


async def test_head_a_refusal_and_a_drain_close_the_iterator_and_never_run_it() -> None:
    push = LivePush(
        MemoryBroker(), public("c"), slots=MemorySlotCap(1), drain=DrainPolicy(window=0.1, signals=False)
    )
    feeds: list[Feed] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        feeds.append(Feed())
        key = scope["path"].removeprefix("/")
        expires_at = time.time() - 1 if key == "expired" else None
        await send_event_stream(
            scope, receive, send, feeds[-1], push=push, slot_key=key, expires_at=expires_at
        )

    async with push.lifespan(), Client(app) as client:
        answer = await client.request("HEAD", "/k")
        assert (answer.status, answer.body) == (200, b"")
        assert answer.headers["content-type"] == "text/event-stream"
        async with client.open("/k") as stream:
            await stream.next_event(timeout=2)
            refused = await client.request("GET", "/k")
            assert (refused.status, refused.headers["retry-after"]) == (429, "5")
            assert (await client.request("GET", "/expired")).status == 401
            assert (await client.request("GET", "/")).status == 400
        await push.drain()
        drained = await client.request("GET", "/k")
        assert drained.status == 200
        (event,) = EventStreamParser().feed(drained.body)
        assert (event.event, json.loads(event.data)["reason"]) == ("livepush.refused", "drain")
        assert event.retry is not None
    assert [bool(feed.steps) for feed in feeds] == [False, True, False, False, False, False]
    assert [feed.closed for feed in feeds] == [1] * 6
    refusals = push.statistics()["refused"]
    assert [refusals[cause] for cause in (RefusalCause.CAP, RefusalCause.EXPIRED, RefusalCause.DRAIN)] == [
        1
    ] * 3


async def test_a_soft_refusal_is_told_from_an_answer_without_events() -> None:
    """The streams of generators have no control events, and a refused one must not look finished."""
    push = LivePush(MemoryBroker(), public("c"), slots=MemorySlotCap(1), soft_refusals={RefusalCause.CAP})

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send_event_stream(scope, receive, send, ticking(Desk(ticking)), push=push, slot_key="k")

    async with push.lifespan(), Client(app) as client, client.open("/") as stream:
        assert (await stream.next_event(timeout=2)).data == "0"
        async with client.open("/") as refused:
            event = await refused.next_event(name="livepush.refused")
            assert await refused.wait_ended() is None
        assert [event.event for event in refused.received] == ["livepush.refused"]
        assert (json.loads(event.data)["reason"], json.loads(event.data)["status"]) == ("cap", 429)
        assert event.retry is not None


async def test_a_client_that_leaves_before_its_stream_is_opened_has_its_iterator_closed() -> None:
    broker = FaultyBroker()
    # The process waits until it hears commands.
    broker.faults[RESERVED_PREFIX].slow = 60
    push = LivePush(broker, public("c"), slots=MemorySlotCap(1), timing=Timing(subscribe_timeout=5))
    feed = Feed()
    async with push.lifespan():
        with anyio.move_on_after(1) as scope:
            await open_source(http_scope("GET", "/"), feed, push=push, slot_key="k")
        assert scope.cancelled_caught
        assert (feed.steps, feed.closed) == (0, 1)
        broker.heal()


async def test_a_response_that_nobody_sends_is_closed() -> None:
    push = LivePush(MemoryBroker(), public("c"), timing=Timing(send_timeout=30))
    feed = Feed()
    async with push.lifespan():
        opened = await open_source(http_scope(), feed, push=push)
        assert push.statistics()["streams"] == 1
        await let_pass(32)
        assert (push.statistics()["streams"], feed.steps, feed.closed) == (0, 0, 1)
        await opened.body.aclose()
    assert feed.closed == 1


async def one() -> AsyncGenerator[object]:
    yield 1


async def test_a_source_that_is_none_raises_with_the_likely_mistake() -> None:
    async def forgot_to_yield() -> None: ...

    wrong: dict[str, object] = {
        r"call it, one\(\)": one,
        "no `yield`": forgot_to_yield(),
        "it is synchronous": iter([1]),
        "not 3$": 3,
    }
    for message, source in wrong.items():
        with pytest.raises(TypeError, match=message):
            iterator_of(source)


async def test_a_slot_key_needs_the_push_that_counts() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        with pytest.raises(TypeError, match="needs the LivePush whose slots it counts in"):
            await send_event_stream(scope, receive, send, one(), slot_key="k")
        with pytest.raises(TypeError, match=r"push is a LivePush, or left out, not <.*MemoryBroker"):
            await send_event_stream(scope, receive, send, one(), push=MemoryBroker())  # type: ignore[arg-type]
        await send_event_stream(scope, receive, send, one())

    async with Client(app) as client, client.open("/") as stream:
        await stream.wait_ended()


async def test_an_argument_of_another_library_raises_and_says_where_it_belongs() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        with pytest.raises(TypeError, match=r"no `headers`, `ping`; .* `ping` is Timing"):
            await send_event_stream(scope, receive, send, one(), ping=15, headers={})  # type: ignore[call-arg]
        await send_event_stream(scope, receive, send, one())

    async with Client(app) as client, client.open("/") as stream:
        await stream.wait_ended()


async def test_without_a_push_streams_share_one_of_the_process() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send_event_stream(scope, receive, send, one())

    before = default_push().statistics()["opened"]
    async with Client(app) as client:
        for _ in range(2):
            async with client.open("/") as stream:
                assert (await stream.next_event()).data == "1"
                await stream.wait_ended()
    assert default_push().statistics()["opened"] == before + 2
    assert default_push().statistics()["channels"] == 0


def sources_left() -> Counter[str]:
    """Return how many objects of generators there are: the loop of another test may have left some."""
    gc.collect()
    kinds = Counter(type(each).__name__ for each in gc.get_objects())
    return Counter({name: kinds[name] for name in ("Source", "SourceStream", "SourceBody")})


async def test_a_thousand_quick_visits_leave_nothing() -> None:
    before, desk = sources_left(), Desk(ticking, slot_key=None)
    async with desk.push.lifespan(), Client(desk) as client:
        for number in range(1000):
            async with client.open("/") as stream:
                if number % 3:
                    await stream.next_event()
        assert desk.returned == 1000
        statistics = desk.push.statistics()
        assert (statistics["streams"], statistics["opened"]) == (0, 1000)
    assert sources_left() == before


def test_the_document_names_every_end_that_a_generator_may_have() -> None:
    text = (Path(__file__).parent.parent / "docs" / "guides" / "generators.md").read_text()
    table = text.partition("| What happens |")[2].partition("\n\n")[0]
    # Without channels no event of a broker can be missing.
    for reason in set(EndReason) - {EndReason.BROKER}:
        assert f"`{reason}`" in table
    for name in re.findall(r"`tests/(\w+\.py)`", text):
        assert (Path(__file__).parent / name).exists()
