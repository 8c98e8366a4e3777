"""One stream, start to end, as transcripts: what a client reads, and when."""

import json
import time

import anyio
import pytest

from livepush_asgi import (
    EndReason,
    Event,
    Grant,
    Limits,
    LivePush,
    MemoryBroker,
    MemorySlotCap,
    Timing,
    public,
)
from livepush_asgi.testing import Client, MockBroker

from .virtual_clock import let_pass


def body_of(message: object) -> bytes:
    assert isinstance(message, dict)
    return bytes(message["body"])


async def test_the_first_messages_are_the_headers_and_the_open_event() -> None:
    push = LivePush(MemoryBroker(), public("news"))
    async with push.lifespan(), Client(push) as client, client.open("/") as stream:
        opened = await stream.next_event(control=True)
    assert stream.messages[0] == {
        "type": "http.response.start",
        "status": 200,
        "headers": [
            (b"content-type", b"text/event-stream"),
            (b"cache-control", b"no-cache, no-transform"),
            (b"x-accel-buffering", b"no"),
        ],
    }
    assert opened.event == "livepush.open"
    assert json.loads(opened.data) == {"resumed": False, "retry": opened.retry}
    assert opened.retry is not None
    assert 1500 <= opened.retry <= 4500


async def test_events_arrive_in_order_with_their_fields() -> None:
    push = LivePush(MemoryBroker(), public("news"))
    async with push.lifespan(), Client(push) as client, client.open("/") as stream:
        await stream.next_event(control=True)
        await push.publish("news", "plain\r\ntext")
        await push.publish("news", {"order": 7}, event="order-paid", id=41)
        await push.publish("news", Event("x", event="y", id="é", retry=9))
        await push.broker.publish("news", "from elsewhere\nevent: forged\n\nid: 9")
        first, second, third, fourth = await stream.events(4)
    epoch = (first.id or "").partition(".")[0]
    assert (first.event, first.data) == ("message", "plain\ntext")
    assert (second.event, second.data, second.id) == ("order-paid", '{"order":7}', "41")
    assert (third.event, third.data, third.id, third.retry) == ("y", "x", "é", 9)
    assert (fourth.event, fourth.data) == ("message", "from elsewhere\nevent: forged\n\nid: 9")
    # An event that brings no id of its own has its position in the channel's log.
    assert (first.id, fourth.id) == (f"{epoch}.1", f"{epoch}.4")
    assert stream.empty_blocks == 0


async def test_what_waits_is_sent_in_one_message() -> None:
    push = LivePush(MemoryBroker(), public("news"))
    async with push.lifespan(), Client(push) as client, client.open("/") as stream:
        epoch = ((await stream.next_event(control=True)).id or "").partition(".")[0]
        for number in range(20):
            await push.publish("news", number)
        await stream.events(20)
    assert [message["type"] for message in stream.messages[:3]] == [
        "http.response.start",
        *["http.response.body"] * 2,
    ]
    blocks = [f"id: {epoch}.{number + 1}\ndata: {number}\n\n" for number in range(20)]
    assert body_of(stream.messages[2]).decode() == "".join(blocks)


async def test_several_channels_come_over_one_stream_and_others_do_not() -> None:
    push = LivePush(MemoryBroker(), public("a", "b"))
    async with push.lifespan(), Client(push) as client, client.open("/") as stream:
        await stream.next_event(control=True)
        for channel in ("a", "c", "b"):
            await push.publish(channel, channel)
        assert [event.data for event in await stream.events(2)] == ["a", "b"]


async def test_a_heartbeat_is_a_comment_of_one_line_and_only_sent_while_idle() -> None:
    push = LivePush(MockBroker(), public("news"), timing=Timing(heartbeat_interval=15))
    async with push.lifespan(), Client(push) as client, client.open("/") as stream:
        await stream.next_event(control=True)
        start = anyio.current_time()
        await stream.next_comment(timeout=20)
        assert 15 <= anyio.current_time() - start < 15.2
        await let_pass(10)
        await push.publish("news", "busy")
        await stream.next_event()
        await stream.next_comment(timeout=20)
        assert 40 <= anyio.current_time() - start < 40.4
    assert [body_of(message) for message in stream.messages[2:]] == [b":\n", b"data: busy\n\n", b":\n"]
    assert stream.empty_blocks == 0


async def test_what_a_stream_was_woken_for_is_sent_before_its_end() -> None:
    # Behind a middleware the stream's own task sends, on Python 3.11 and on trio.
    push = LivePush(MemoryBroker(), public("news"), inline_send=False)
    async with push.lifespan(), Client(push) as client, client.open("/") as stream:
        await stream.next_event(control=True)
        await push.publish("news", "first")
        await push.publish("news", "second")
        # Both are delivered and the stream ends before its task runs.
        await push.disconnect(channel="news")
        assert await stream.wait_ended() == "revoked"
    assert [event.data for event in stream.received if event.event == "message"] == ["first", "second"]


async def test_without_an_interval_there_is_no_heartbeat() -> None:
    push = LivePush(MemoryBroker(), public("news"), timing=Timing(heartbeat_interval=None))
    async with push.lifespan(), Client(push) as client, client.open("/") as stream:
        await stream.next_event(control=True)
        with pytest.raises(TimeoutError):
            await stream.next_comment(timeout=3600)


async def test_a_client_that_leaves_while_idle_is_noticed_at_once() -> None:
    slots = MemorySlotCap(1)
    push = LivePush(MemoryBroker(), public("news", slot_key="k"), slots=slots)
    async with push.lifespan(), Client(push) as client, client.open("/") as stream:
        await stream.next_event(control=True)
        start = anyio.current_time()
        assert slots.held("k") == 1
        await stream.disconnect()
        assert slots.held("k") == 0
        assert anyio.current_time() - start < 0.5
        assert push.statistics()["ended"][EndReason.DISCONNECT] == 1


async def test_a_resume_without_history_is_told_as_a_gap() -> None:
    push = LivePush(MemoryBroker(), public("a", "b"))
    async with push.lifespan(), Client(push) as client, client.open("/", last_event_id="~") as stream:
        events = [await stream.next_event(control=True) for _ in range(3)]
    assert [event.event for event in events] == ["livepush.open", "livepush.gap", "livepush.gap"]
    assert [json.loads(event.data) for event in events[1:]] == [
        {"channel": "a", "reason": "unknown"},
        {"channel": "b", "reason": "unknown"},
    ]


async def test_a_lost_broker_connection_is_told_where_it_happened() -> None:
    broker = MockBroker()
    push = LivePush(broker, public("news"))
    async with push.lifespan(), Client(push) as client, client.open("/") as stream:
        await stream.next_event(control=True)
        await push.publish("news", "before")
        broker.drop()
        await push.publish("news", "after")
        events = [await stream.next_event(control=True) for _ in range(3)]
    assert [(event.event, event.data) for event in events] == [
        ("message", "before"),
        ("livepush.gap", '{"channel":"news","reason":"broker"}'),
        ("message", "after"),
    ]


async def test_without_control_events_a_loss_ends_the_stream() -> None:
    broker = MockBroker()
    push = LivePush(broker, public("news"), control_events=False)
    async with push.lifespan(), Client(push) as client, client.open("/") as stream:
        # No open event tells that it listens.
        await anyio.wait_all_tasks_blocked()
        await push.publish("news", "before")
        assert (await stream.next_event()).data == "before"
        broker.drop()
        assert await stream.wait_ended() is None
        assert push.statistics()["ended"][EndReason.BROKER] == 1
    assert stream.control_events == []
    assert stream.empty_blocks == 0
    assert body_of(stream.messages[1]).startswith(b"retry: ")


async def test_what_no_stream_can_hold_is_told_as_a_gap(caplog: pytest.LogCaptureFixture) -> None:
    broker = MemoryBroker()
    push = LivePush(broker, public("news"))
    async with push.lifespan(), Client(push) as client, client.open("/") as stream:
        await stream.next_event(control=True)
        await broker.publish("news", b"\xc3(")
        await broker.publish("news", b"\xc3(")
        await broker.publish("news", b"fine")
        events = [await stream.next_event(control=True) for _ in range(3)]
    assert [event.event for event in events] == ["livepush.gap", "livepush.gap", "message"]
    assert len(caplog.records) == 1


async def test_a_slow_client_is_closed_and_told_and_the_others_go_on() -> None:
    limits = Limits(outbox_events=10, overflow="close")
    push = LivePush(MemoryBroker(), public("news"), limits=limits)
    client = Client(push)
    async with push.lifespan(), client, client.open("/", window=0) as slow, client.open("/") as fast:
        await slow.next_event(control=True)
        await fast.next_event(control=True)
        for number in range(40):
            await push.publish("news", number)
            assert (await fast.next_event()).data == str(number)
        assert await slow.wait_ended() == "slow"
    received = [event.data for event in slow.received if event.event == "message"]
    assert received == [str(number) for number in range(len(received))]


async def test_drop_oldest_keeps_the_stream_and_marks_the_gap() -> None:
    limits = Limits(outbox_events=10, overflow="drop_oldest")
    push = LivePush(MemoryBroker(), public("news"), limits=limits)
    async with push.lifespan(), Client(push) as client, client.open("/", window=0) as stream:
        await stream.next_event(control=True)
        await push.publish("news", "first")
        await anyio.wait_all_tasks_blocked()
        for number in range(30):
            await push.publish("news", number)
        events = [await stream.next_event(control=True) for _ in range(12)]
    assert events[0].data == "first"
    assert (events[1].event, events[1].data) == ("livepush.gap", '{"channel":"news","reason":"overflow"}')
    assert [event.data for event in events[2:]] == [str(number) for number in range(20, 30)]


async def test_a_client_that_takes_nothing_ends_within_the_send_timeout() -> None:
    slots = MemorySlotCap(1)
    timing = Timing(send_timeout=30, heartbeat_interval=15)
    push = LivePush(MemoryBroker(), public("news", slot_key="k"), slots=slots, timing=timing)
    async with push.lifespan(), Client(push) as client, client.open("/", window=0) as stream:
        await stream.next_event(control=True)
        await push.publish("news", "nobody reads this")
        await let_pass(30 + 15 + 0.2)
        assert slots.held("k") == 0
        assert push.statistics()["streams"] == 0
        assert push.statistics()["ended"][EndReason.SLOW] == 1


async def test_a_stream_ends_in_the_last_fifth_of_its_lifetime() -> None:
    push = LivePush(MemoryBroker(), public("news"), timing=Timing(max_lifetime=100))
    async with push.lifespan(), Client(push) as client, client.open("/") as stream:
        start = anyio.current_time()
        assert await stream.wait_ended(timeout=200) == "lifetime"
        assert 80 <= anyio.current_time() - start <= 100.5
    assert stream.control_events[-1].retry is not None


async def test_a_stream_ends_when_its_login_does() -> None:
    def authorize(request: object) -> Grant:
        return Grant(channels="news", expires_at=time.time() + 50)

    push = LivePush(MemoryBroker(), authorize)
    async with push.lifespan(), Client(push) as client, client.open("/") as stream:
        start = anyio.current_time()
        assert await stream.wait_ended(timeout=200) == "expired"
        assert 49 <= anyio.current_time() - start <= 51


async def test_a_stream_opens_without_its_broker_and_is_told_when_it_came(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker = MockBroker()
    broker.fail_subscribe(ConnectionError("away"))
    push = LivePush(broker, public("news"), timing=Timing(subscribe_timeout=2))
    start = anyio.current_time()
    async with push.lifespan(), Client(push) as client, client.open("/") as stream:
        opened = await stream.next_event(control=True, timeout=5)
        assert (opened.event, json.loads(opened.data)["not_live"]) == ("livepush.open", ["news"])
        assert 2 <= anyio.current_time() - start < 2.2
        assert not push.statistics()["healthy"]
        broker.fail_subscribe(None)
        gap = await stream.next_event(control=True, timeout=10)
        assert (gap.event, json.loads(gap.data)["reason"]) == ("livepush.gap", "broker")
        await push.publish("news", "here")
        assert (await stream.next_event()).data == "here"
        await let_pass(10)
        assert push.statistics()["healthy"]
    # It went away and came back, and the stream was authorized again: a revocation may have been lost.
    assert len(caplog.records) == 3


async def test_a_channel_is_subscribed_once_and_released_after_it_lingered() -> None:
    broker = MemoryBroker()
    push = LivePush(broker, public("news"), timing=Timing(linger=5))
    async with push.lifespan(), Client(push) as client:
        async with client.open("/") as one, client.open("/") as two:
            await one.next_event(control=True)
            await two.next_event(control=True)
            assert broker.subscriptions("news") == 1
        await let_pass(4)
        assert broker.subscriptions("news") == 1
        async with client.open("/") as three:
            await three.next_event(control=True)
            await let_pass(10)
            assert broker.subscriptions("news") == 1
        await let_pass(6)
        assert broker.subscriptions("news") == 0
        assert push.statistics()["channels"] == 0


@pytest.mark.parametrize("spec_version", ["2.1", "2.3", "2.4", "2.5"])
@pytest.mark.parametrize("after_disconnect", ["ignore", "raise"])
async def test_a_departure_is_noticed_whatever_the_server_says_or_does(
    spec_version: str, after_disconnect: str
) -> None:
    slots = MemorySlotCap(1)
    push = LivePush(MemoryBroker(), public("news", slot_key="k"), slots=slots)
    client = Client(push, spec_version=spec_version, after_disconnect=after_disconnect)  # type: ignore[arg-type]
    async with push.lifespan(), client:
        for _ in range(3):
            async with client.open("/") as stream:
                await stream.next_event(control=True)
                await push.publish("news", "in flight")
                await stream.disconnect()
            assert slots.held("k") == 0
