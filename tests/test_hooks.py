"""Hooks: `on_open` and `on_end` are called once for each stream, whatever ends it, and break nothing."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest

from livepush_asgi import (
    CapExceededError,
    DrainPolicy,
    EndReason,
    Event,
    Grant,
    Limits,
    LivePush,
    MemoryBroker,
    MemorySlotCap,
    MockBroker,
    Refusal,
    Sent,
    SSEStreamService,
    StreamRequest,
    Timing,
    send_event_stream,
)
from livepush_asgi.runtime.asgi import Message, Receive, Scope, Send
from livepush_asgi.testing import Client, EventStreamParser, Stream

from .virtual_clock import let_pass

TERMS: dict[str, Any] = {
    "timing": Timing(max_lifetime=500, send_timeout=30, linger=1),
    "limits": Limits(outbox_events=5, overflow="close"),
    "drain": DrainPolicy(window=1, signals=False),
}


@dataclass
class House:
    """A LivePush whose hooks write down what they are called with."""

    opened: list[Grant] = field(default_factory=list)
    ended: list[tuple[Grant, EndReason, float, Sent]] = field(default_factory=list)
    control_events: bool = True
    refuses: bool = False

    def __post_init__(self) -> None:
        self.broker = MockBroker()
        self.slots = MemorySlotCap(1)
        self.push = LivePush(
            self.broker,
            self.authorize,
            slots=self.slots,
            control_events=self.control_events,
            on_open=self.opened.append,
            on_end=lambda *end: self.ended.append(end),
            **TERMS,
        )

    def authorize(self, request: StreamRequest) -> Grant:
        if self.refuses:
            raise Refusal(403)
        return Grant(channels=["a", "b"], slot_key="k")

    @property
    def reasons(self) -> list[EndReason]:
        return [reason for _, reason, _, _ in self.ended]


async def leave(house: House, stream: Stream) -> None:
    await stream.disconnect()


async def drain(house: House, stream: Stream) -> None:
    await house.push.drain()


async def stop(house: House, stream: Stream) -> None:
    await house.push.stop()


async def outlive(house: House, stream: Stream) -> None:
    await stream.wait_ended(timeout=600)


async def revoke(house: House, stream: Stream) -> None:
    await house.push.disconnect(slot_key="k")


async def overflow(house: House, stream: Stream) -> None:
    for _ in range(2):
        for number in range(6):
            await house.push.publish("a", number)
        await anyio.wait_all_tasks_blocked()


async def stall(house: House, stream: Stream) -> None:
    await house.push.publish("a", "nobody takes this")
    await let_pass(50)


def sent_to(stream: Stream) -> Sent:
    """Return what a stream has sent by what the server was given."""
    body = b"".join([message.get("body", b"") for message in stream.messages])
    events = EventStreamParser().feed(body)
    return Sent(sum(not event.event.startswith("livepush.") for event in events), len(body))


ENDINGS: dict[str, tuple[EndReason, Callable[[House, Stream], Awaitable[None]], float]] = {
    "disconnect": (EndReason.DISCONNECT, leave, 64),
    "drain": (EndReason.DRAIN, drain, 64),
    "stop": (EndReason.DRAIN, stop, 64),
    "lifetime": (EndReason.LIFETIME, outlive, 64),
    "revoked": (EndReason.REVOKED, revoke, 64),
    "slow by overflow": (EndReason.SLOW, overflow, 0),
    "slow by send timeout": (EndReason.SLOW, stall, 0),
}


@pytest.mark.parametrize("name", ENDINGS)
async def test_each_is_called_once_whatever_ends_the_stream(name: str) -> None:
    reason, end, window = ENDINGS[name]
    house = House()
    async with house.push.lifespan():
        await let_pass(7)
        async with Client(house.push) as client, client.open("/", window=window) as stream:
            await stream.next_event(control=True)
            (grant,) = house.opened
            assert (grant.channel_names, grant.slot_key) == (("a", "b"), "k")
            assert house.ended == []
            await let_pass(3)
            await end(house, stream)
            await anyio.wait_all_tasks_blocked()
        ((ended, told, duration, sent),) = house.ended
        assert ended is grant
        assert told is reason
        assert 2.9 < duration < 505
        assert sent == sent_to(stream)
        await let_pass(2)
    assert (len(house.opened), len(house.ended)) == (1, 1)


@pytest.mark.parametrize("inline", [True, False], ids=["inline", "woken"])
@pytest.mark.parametrize("overflow", ["resume", "drop_oldest", "latest", "close"])
async def test_sent_is_what_the_server_was_given(overflow: str, inline: bool) -> None:
    """Live, from history, of a snapshot, at the pace of a slow client; on one channel and on two."""
    ended: list[tuple[Grant, Sent]] = []

    def authorize(request: StreamRequest) -> Grant:
        snapshot = (lambda: [Event("state"), Event("more")]) if "snapshot" in request.query else None
        return Grant(
            channels=request.query_all("c"),
            snapshot=snapshot,
            replay="all" if "replay" in request.query else "new",
        )

    terms: dict[str, Any] = {**TERMS, "limits": Limits(outbox_events=5, overflow=overflow)}  # type: ignore[arg-type]
    push = LivePush(
        MemoryBroker(),
        authorize,
        inline_send=inline,
        on_end=lambda grant, reason, duration, sent: ended.append((grant, sent)),
        **terms,
    )
    queries = [
        "c=a",
        "c=a&c=b",
        "c=a&c=b&snapshot=1",
        "c=a&replay=all",
        "c=a&c=b&replay=all",
        "c=b&c=a&replay=all",
    ]
    async with push.lifespan(), Client(push) as client:
        for number in range(3):
            await push.publish("ab"[number % 2], number)
        for query in queries:
            for window, revoked in ((64, False), (64, True), (0, True)):
                async with client.open("/", query=query, window=window) as stream:
                    for number in range(20):
                        await push.publish("ab"[number % 2], number)
                        if number % 3 == 0:
                            await anyio.wait_all_tasks_blocked()
                    await let_pass(20)
                    if window:
                        await stream.next_event(control=True)
                        await push.publish("a", "last")
                    if revoked:
                        await push.disconnect(channel="a")
                    else:
                        await stream.disconnect()
                    await let_pass(2)
                assert len(ended) == 1
                assert ended.pop()[1] == sent_to(stream), (query, window)


async def test_sent_counts_the_events_of_a_generator() -> None:
    house = House()

    async def numbers() -> AsyncGenerator[object]:
        for number in range(5):
            yield {"n": number}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send_event_stream(scope, receive, send, numbers(), push=house.push, control_events=True)

    async with house.push.lifespan(), Client(app) as client, client.open("/") as stream:
        await stream.wait_ended()
        ((_, reason, _, sent),) = house.ended
        assert (reason, sent) == (EndReason.FINISHED, sent_to(stream))
        assert sent.events == 5


async def test_the_end_is_told_when_the_slot_is_free() -> None:
    free: list[int] = []
    slots = MemorySlotCap(1)
    push = LivePush(
        MemoryBroker(),
        lambda request: Grant(channels="a", slot_key="k"),
        slots=slots,
        on_open=lambda grant: free.append(slots.held("k")),
        on_end=lambda grant, reason, duration, sent: free.append(slots.held("k")),
    )
    async with push.lifespan(), Client(push) as client, client.open("/") as stream:
        await stream.next_event(control=True)
        await stream.disconnect()
    assert free == [1, 0]


async def test_a_send_that_raises_is_an_error_once() -> None:
    house = House()

    async def receive() -> Message:
        await anyio.sleep_forever()
        raise AssertionError

    async def send(message: Message) -> None:
        raise KeyError("broken")

    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": []}
    async with house.push.lifespan():
        with pytest.raises(KeyError):
            await house.push(scope, receive, send)
        assert (len(house.opened), house.reasons) == (1, [EndReason.ERROR])


@pytest.mark.real_time
async def test_an_event_loop_that_ends_without_a_stop_tells_the_end() -> None:
    house = House()

    async def serve() -> None:
        await house.push.start()
        opened = await SSEStreamService.of(house.push).open_stream(channel="a", slot_key="k")
        async for chunk in opened.body:
            # The first chunk has come, and the loop ends: nothing reads on, and nothing stops the LivePush.
            assert chunk
            break

    await asyncio.to_thread(asyncio.run, serve())
    assert (len(house.opened), len(house.ended)) == (1, 1)


async def test_a_request_that_is_refused_calls_nothing() -> None:
    house = House(refuses=True)
    async with house.push.lifespan(), Client(house.push) as client:
        assert (await client.request("GET", "/")).status == 403
        house.refuses = False
        async with client.open("/") as stream:
            await stream.next_event(control=True)
            assert (await client.request("GET", "/")).status == 429
            assert (await client.request("HEAD", "/")).status == 200
            with pytest.raises(CapExceededError):
                await SSEStreamService.of(house.push).open_stream(channel="a", slot_key="k")
            assert (len(house.opened), len(house.ended)) == (1, 0)


async def test_the_streams_of_routes_are_told_too() -> None:
    house = House()
    service = SSEStreamService.of(house.push)
    async with house.push.lifespan():
        for _ in range(2):
            opened = await service.open_stream(channel="a", slot_key="k")
            await anext(opened.body)
            await opened.body.aclose()
        house.broker.fail_subscribe(KeyError("no such channel"))
        with pytest.raises(KeyError):
            await service.open_stream(channel="new", slot_key="k")
        assert len(house.opened) == 3
        assert house.reasons == [EndReason.DISCONNECT, EndReason.DISCONNECT, EndReason.ERROR]


async def test_what_a_hook_raises_is_logged_once_per_kind_and_affects_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def answer() -> None:
        raise AssertionError("it is never awaited")

    calls = 0

    def on_end(grant: Grant, reason: EndReason, duration: float, sent: Sent) -> object:
        nonlocal calls
        calls += 1
        if calls % 3 == 1:
            raise KeyError("x")
        if calls % 3 == 2:
            raise ValueError("y")
        return answer()

    def on_open(grant: Grant) -> None:
        raise KeyError("z")

    push = LivePush(
        MemoryBroker(), lambda request: Grant(channels="a"), on_open=on_open, on_end=on_end, **TERMS
    )
    async with push.lifespan(), Client(push) as client:
        for _ in range(9):
            async with client.open("/") as stream:
                await push.publish("a", 1)
                assert (await stream.next_event()).data == "1"
        assert push.statistics()["ended"]["disconnect"] == calls == 9
        assert push.statistics()["streams"] == 0
    logged = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert [message.split()[0] for message in logged] == ["on_open", "on_end", "on_end", "on_end"]


@pytest.mark.parametrize("hook", ["on_open", "on_end"])
async def test_a_hook_that_asks_a_cancelled_future_cancels_nothing(
    hook: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Catches a cancellation that leaves a stream open, or ends the timers of the process."""

    def ask(*told: object) -> object:
        raise asyncio.CancelledError

    terms: dict[str, Any] = {**TERMS, "timing": Timing(send_timeout=30), hook: ask}
    push = LivePush(MemoryBroker(), lambda request: Grant(channels="a"), **terms)
    async with push.lifespan(), Client(push) as client:
        async with client.open("/", window=0) as stream:
            await push.publish("a", "nobody takes this")
            await let_pass(50)
        assert push.statistics()["ended"]["slow"] == 1
        async with client.open("/") as stream:
            await stream.next_comment(timeout=20)
        assert push.statistics()["streams"] == 0
    assert f"{hook} raised, and the stream is not affected" in caplog.text


async def test_a_hook_that_cannot_be_one_raises_where_it_is_given() -> None:
    async def on_open(grant: Grant) -> None: ...

    def make(**hooks: Any) -> None:
        LivePush(MemoryBroker(), lambda request: Grant(channels="a"), **hooks)

    with pytest.raises(TypeError, match=r"on_open is a plain function.*a queue that a task of yours reads"):
        make(on_open=on_open)
    with pytest.raises(TypeError, match="on_end is a function, not 3"):
        make(on_end=3)
    with pytest.raises(TypeError, match=r"called as on_end\(grant, reason, duration, sent\)"):
        make(on_end=lambda grant, reason, duration: None)
    with pytest.raises(TypeError, match=r"called as on_open\(grant\)"):
        make(on_open=lambda: None)


async def test_listeners_are_the_open_streams_of_a_channel() -> None:
    push = LivePush(MemoryBroker(), lambda request: Grant(channels=request.query_all("channel")), **TERMS)
    assert push.listeners("a") == 0
    async with push.lifespan(), Client(push) as client, client.open("/", query="channel=a") as one:
        await one.next_event(control=True)
        async with client.open("/", query="channel=a&channel=b") as both, push.subscribe("a"):
            await both.next_event(control=True)
            assert [push.listeners(name) for name in "abc"] == [2, 1, 0]
        assert [push.listeners(name) for name in "abc"] == [1, 0, 0]
        await one.disconnect()
        assert push.listeners("a") == 0
        with pytest.raises(ValueError, match="not empty"):
            push.listeners("")
    assert push.listeners("a") == 0


async def lines_of(push: LivePush, caplog: pytest.LogCaptureFixture) -> list[str]:
    async with push.lifespan(), Client(push) as client:
        for _ in range(2):
            async with client.open("/") as stream:
                await stream.next_event(control=True)
                await let_pass(5)
    return [record.getMessage() for record in caplog.records if record.name == "livepush_asgi.streams"]


async def test_one_line_per_end_if_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    push = LivePush(MemoryBroker(), lambda request: Grant(channels=["a\n", "b"], slot_key="42"), **TERMS)
    # This asks for the lines of the component, and not for one per client.
    caplog.set_level(logging.INFO)
    assert await lines_of(push, caplog) == []
    caplog.set_level(logging.INFO, "livepush_asgi.streams")
    lines = await lines_of(push, caplog)
    assert len(lines) == 2
    assert lines[0].startswith("a stream ended: disconnect after 5.")
    assert " s, 0 events and " in lines[0]
    assert lines[0].endswith(" bytes sent, channels 'a\\n', 'b', slot key '42'")


async def test_a_drain_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "livepush_asgi")
    push = LivePush(MemoryBroker(), lambda request: Grant(channels="a"), **TERMS)
    async with push.lifespan(), Client(push) as client, client.open("/") as stream:
        await stream.next_event(control=True)
        await push.drain()
    (record,) = [record for record in caplog.records if "draining" in record.getMessage()]
    assert (record.levelname, record.name) == ("INFO", "livepush_asgi")
