"""Subscribing in Python: each event once and in order, or a gap in its place, as for a client."""

import logging
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from livepush_asgi import (
    Cursor,
    DrainPolicy,
    EndReason,
    Event,
    Gap,
    GapReason,
    Grant,
    History,
    InvalidGrantError,
    Limits,
    LivePush,
    MemoryBroker,
    MemorySlotCap,
    MockBroker,
    NotRunningError,
    Position,
    Received,
    Refusal,
    Subscriber,
    Timing,
    public,
)
from livepush_asgi.brokers import Broker
from livepush_asgi.testing import Client
from livepush_asgi.wire.event import to_payload

from .faulty_broker import FaultyBroker, FaultyServer
from .virtual_clock import let_pass, live_timers


def push_over(broker: Broker | None = None, **limits: object) -> LivePush:
    return LivePush(
        broker or MemoryBroker(),
        lambda request: Refusal(404),
        timing=Timing(subscribe_timeout=0.5, linger=0.1),
        limits=Limits(**limits),  # type: ignore[arg-type]
        drain=DrainPolicy(window=1, signals=False),
    )


async def take(events: Subscriber, count: int) -> list[Received | Gap]:
    with anyio.fail_after(30):
        return [await anext(events) for _ in range(count)]


async def data(events: Subscriber, count: int) -> list[str]:
    """Return the data of the next items, which have to be events."""
    return [item.data if isinstance(item, Received) else str(item) for item in await take(events, count)]


async def rest(events: Subscriber) -> list[str]:
    """Return the data of all that comes until the end."""
    with anyio.fail_after(30):
        return [item.data if isinstance(item, Received) else str(item) async for item in events]


def numbers(first: int, last: int) -> list[str]:
    return [str(number) for number in range(first, last + 1)]


BROKERS: dict[str, Callable[[], Broker]] = {"history": MemoryBroker, "no history": MockBroker}


@pytest.mark.parametrize("broker", BROKERS)
async def test_what_is_published_in_the_block_comes_in_order(broker: str) -> None:
    push = push_over(BROKERS[broker]())
    async with push.lifespan(), push.subscribe("news") as events:
        for number in range(1, 201):
            await push.publish("news", number)
        assert await data(events, 200) == numbers(1, 200)
    assert push.statistics()["channels"] == 0


async def test_an_item_has_all_of_the_event() -> None:
    push = push_over()
    async with push.lifespan(), push.subscribe("news") as events:
        sent = Event({"é": "\n\u2028"}, event="paid", id="7", retry=3000)
        await push.publish("news", sent)
        id = await push.publish("news", "plain")
        match await take(events, 2):
            case [Received(channel="news", event=first), Received(event=second, id=place)]:
                assert (first, second) == (sent, Event("plain"))
                assert place == id == events.last_event_id
            case other:
                pytest.fail(str(other))


async def test_several_channels_say_which_one_and_keep_its_order() -> None:
    push = push_over()
    async with push.lifespan(), push.subscribe("a", "b", "a") as events:
        for number in range(20):
            await push.publish("ab"[number % 2], number)
        items = await take(events, 20)
        assert [(item.channel, item.data) for item in items if isinstance(item, Received)] == [
            ("ab"[number % 2], str(number)) for number in range(20)
        ]


@pytest.mark.parametrize("broker", BROKERS)
async def test_without_ids_the_channel_is_known_too(broker: str) -> None:
    push = push_over(BROKERS[broker]())
    async with push.lifespan(), push.subscribe("a", "b") as events:
        await push.publish("b", "1", id="own")
        await push.publish("a", "2")
        assert [item.channel for item in await take(events, 2)] == ["b", "a"]


@pytest.mark.parametrize("channels", [["a"], ["a", "b"]])
async def test_each_item_is_a_place_to_go_on_even_with_an_id_of_its_own(channels: list[str]) -> None:
    push = push_over()
    async with push.lifespan():
        async with push.subscribe(*channels) as events:
            begin = events.last_event_id
            for number in range(1, 8):
                await push.publish(channels[number % len(channels)], number, id="own" if number % 2 else None)
            items = await take(events, 7)
        for place, item in enumerate([begin, *(item.id for item in items)]):
            async with push.subscribe(*channels, last_event_id=item) as again:
                assert sorted(await data(again, 7 - place)) == numbers(place + 1, 7)


@pytest.mark.parametrize("first", ["client", "subscriber"])
async def test_a_subscriber_and_a_client_at_one_place_are_each_sent_their_own(first: str) -> None:
    """Clients of the same channels that come back together share the bytes of a page, and it shares none."""
    push = LivePush(MemoryBroker(), public("a", "b"))

    async def client_reads() -> None:
        async with Client(push) as client, client.open("/", last_event_id=place) as stream:
            found = [(event.data, event.id) for event in await stream.events(20)]
            assert [word for word, _ in found] == words
            clients.append(found)

    async def subscriber_reads() -> None:
        async with push.subscribe("a", "b", last_event_id=place) as events:
            items = await take(events, 20)
            assert [(item.channel, item.data) for item in items if isinstance(item, Received)] == [
                (word[0], word) for word in words
            ]
            subscribers.append([item.id for item in items])

    clients: list[list[tuple[str, str | None]]] = []
    subscribers: list[list[str | None]] = []
    async with push.lifespan():
        async with Client(push) as client, client.open("/") as stream:
            place = (await stream.next_event(name="livepush.open")).id
        words = [f"{channel}{number}" for channel in "ab" for number in range(10)]
        for word in words:
            await push.publish(word[0], word)
        for reads in [client_reads, subscriber_reads][:: 1 if first == "client" else -1] * 2:
            await reads()
    assert clients[0] == clients[1]
    assert subscribers == [[id for _, id in clients[0]]] * 2


async def test_it_goes_on_after_an_event_that_publish_has_returned() -> None:
    push = push_over()
    async with push.lifespan():
        first = await push.publish("news", 1)
        await push.publish("news", 2)
        async with push.subscribe("news", last_event_id=first) as events:
            assert await data(events, 1) == ["2"]


async def test_replay_is_that_of_a_grant() -> None:
    push = push_over()
    async with push.lifespan():
        for number in range(1, 6):
            await push.publish("news", number)
        for replay, expected in (("all", numbers(1, 5)), ("last", ["5"]), (2, ["4", "5"])):
            async with push.subscribe("news", replay=replay) as events:  # type: ignore[arg-type]
                assert await data(events, len(expected)) == expected
        async with push.subscribe("news") as events:
            await push.publish("news", 6)
            assert await data(events, 1) == ["6"]


async def test_all_that_is_not_there_any_more_is_a_gap_and_then_what_is_left() -> None:
    push = push_over(MemoryBroker(history=History(events=3)))
    async with push.lifespan():
        for number in range(1, 9):
            await push.publish("news", number)
        async with push.subscribe("news", replay="all") as events:
            gap, *others = await take(events, 4)
            assert isinstance(gap, Gap)
            assert (gap.channel, gap.reason) == ("news", GapReason.EXPIRED)
            assert [item.data for item in others if isinstance(item, Received)] == numbers(6, 8)
        for last_event_id in (gap.id, others[0].id):
            async with push.subscribe("news", replay="all", last_event_id=last_event_id) as events:
                assert (await data(events, 2))[-1] in numbers(7, 8)
        async with push.subscribe("news", replay=99) as events:
            assert await data(events, 3) == numbers(6, 8)
    push = push_over(replay_events=2)
    async with push.lifespan():
        for number in range(1, 9):
            await push.publish("news", number)
        async with push.subscribe("news", replay="all") as events:
            gap, *others = await take(events, 3)
            assert isinstance(gap, Gap)
            assert gap.reason is GapReason.OVERFLOW
            assert [item.data for item in others if isinstance(item, Received)] == numbers(7, 8)


async def test_a_replay_without_history_is_refused() -> None:
    push = push_over(MockBroker())
    async with push.lifespan():
        with pytest.raises(TypeError, match=r"^replay='all' needs a broker with history"):
            await push.subscribe("news", replay="all").__aenter__()


async def test_a_place_that_the_log_has_dropped_is_a_gap() -> None:
    push = push_over(MemoryBroker(history=History(events=3)))
    async with push.lifespan():
        first = await push.publish("news", 1)
        for number in range(2, 9):
            await push.publish("news", number)
        async with push.subscribe("news", last_event_id=first) as events:
            gap, *others = await take(events, 4)
            assert isinstance(gap, Gap)
            assert (gap.channel, gap.reason) == ("news", GapReason.EXPIRED)
            assert [item.data for item in others if isinstance(item, Received)] == numbers(6, 8)
        async with push.subscribe("news", last_event_id=gap.id) as events:
            assert await data(events, 3) == numbers(6, 8)


@pytest.mark.parametrize("id", ["nonsense", "x" * 100_000, str(Cursor.of({"news": Position("other", 3)}))])
async def test_a_place_that_is_unknown_is_a_gap(id: str) -> None:
    push = push_over()
    async with push.lifespan():
        await push.publish("news", 1)
        async with push.subscribe("news", "more", last_event_id=id) as events:
            await push.publish("more", 2)
            items = await take(events, 3)
            assert "news" in [item.channel for item in items if isinstance(item, Gap)]
            assert "2" in [item.data for item in items if isinstance(item, Received)]


async def test_without_history_a_place_is_a_gap_and_live_goes_on() -> None:
    push = push_over(MockBroker())
    async with push.lifespan():
        async with push.subscribe("news") as events:
            await push.publish("news", 1)
            (item,) = await take(events, 1)
        async with push.subscribe("news", last_event_id=item.id) as events:
            await push.publish("news", 2)
            gap, event = await take(events, 2)
            assert isinstance(gap, Gap)
            assert gap.reason is GapReason.UNKNOWN
            assert isinstance(event, Received)


@pytest.mark.parametrize("replay", ["last", "all", 3])
async def test_without_history_a_replay_is_refused_and_not_left_out(replay: Any) -> None:
    push = push_over(MockBroker())
    async with push.lifespan():
        with pytest.raises(TypeError, match="needs a broker with history"):
            async with push.subscribe("news", replay=replay):
                pytest.fail("what was published before would be missing")
        async with push.subscribe("news", replay=0) as events:
            await push.publish("news", 1)
            assert await data(events, 1) == ["1"]


@pytest.mark.parametrize("channels", [["a"], ["a", "b"]])
async def test_a_slow_subscriber_with_history_misses_nothing(channels: list[str]) -> None:
    push = push_over(outbox_events=3, message_bytes=100)
    async with push.lifespan(), push.subscribe(*channels) as events:
        for number in range(1, 501):
            await push.publish("a", number)
            await anyio.lowlevel.checkpoint()
        # A client would have been given up long ago.
        await let_pass(500)
        assert await data(events, 500) == numbers(1, 500)
        assert events.end_reason is None


async def test_a_slow_subscriber_without_history_ends_and_the_end_can_be_seen(
    caplog: pytest.LogCaptureFixture,
) -> None:
    push = push_over(MockBroker(), outbox_events=3)
    async with push.lifespan(), push.subscribe("news") as events:
        for number in range(10):
            await push.publish("news", number)
            await anyio.wait_all_tasks_blocked()
        seen = await rest(events)
        assert seen == [str(number) for number in range(len(seen))]
        assert await rest(events) == []
        assert events.end_reason is EndReason.SLOW
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "a subscriber of news was too slow" in caplog.text


@pytest.mark.parametrize("channels", [["a"], ["a", "b"]])
async def test_a_slow_subscriber_that_may_skip_events_is_told_so(channels: list[str]) -> None:
    push = push_over(MockBroker(), outbox_events=3, overflow="drop_oldest")
    async with push.lifespan(), push.subscribe(*channels) as events:
        for number in range(10):
            await push.publish("a", number)
            await anyio.wait_all_tasks_blocked()
        gap, *others = await take(events, 4)
        assert isinstance(gap, Gap)
        assert (gap.channel, gap.reason) == ("a", GapReason.OVERFLOW)
        assert [item.data for item in others if isinstance(item, Received)] == ["7", "8", "9"]


async def test_a_slow_subscriber_that_wants_the_latest_gets_it() -> None:
    push = push_over(outbox_events=3, overflow="latest")
    async with push.lifespan(), push.subscribe("a") as events:
        for number in range(10):
            await push.publish("a", number)
            await anyio.wait_all_tasks_blocked()
        assert await data(events, 1) == ["9"]


async def test_a_reader_that_never_waits_lets_others_run() -> None:
    push = push_over()
    ran = 0

    async def run() -> None:
        nonlocal ran
        while True:
            ran += 1
            await anyio.lowlevel.checkpoint()

    async with push.lifespan():
        for number in range(1000):
            await push.publish("news", number)
        async with anyio.create_task_group() as tasks, push.subscribe("news", replay="all") as events:
            tasks.start_soon(run)
            assert await data(events, 1000) == numbers(0, 999)
            tasks.cancel_scope.cancel()
    # Between ten pages.
    assert ran >= 8


async def test_a_call_that_is_cancelled_loses_nothing() -> None:
    push = push_over()
    seen = []
    async with push.lifespan(), push.subscribe("news") as events:
        for number in range(100):
            with anyio.move_on_after(0.001):
                item = await anext(events)
                assert isinstance(item, Received)
                seen.append(item.data)
            await push.publish("news", number)
        seen += await data(events, 100 - len(seen))
    assert seen == numbers(0, 99)


async def test_a_drain_yields_what_was_delivered_and_then_ends() -> None:
    push = push_over()
    async with push.lifespan():
        async with push.subscribe("a", "b") as events:
            for number in range(1, 4):
                await push.publish("ab"[number % 2], number)
            await push.drain()
            assert events.end_reason is EndReason.DRAIN
            assert sorted(await rest(events)) == numbers(1, 3)
            assert await rest(events) == []
        with pytest.raises(NotRunningError):
            async with push.subscribe("a"):
                pytest.fail("it drains")


async def test_stop_ends_it_and_what_came_can_be_read_afterwards() -> None:
    push = push_over()
    await push.start()
    async with push.subscribe("news") as events:
        await push.publish("news", 1)
        await push.stop()
        assert await rest(events) == ["1"]
        assert events.end_reason is EndReason.DRAIN
    with pytest.raises(NotRunningError):
        await push.subscribe("news").__aenter__()


async def test_a_drain_waits_for_an_event_that_is_being_handled() -> None:
    push = push_over()
    handled = False

    async def work() -> None:
        nonlocal handled
        async with push.subscribe("news") as events:
            async for _ in events:
                await let_pass(0.6)
                handled = True

    async with push.lifespan(), anyio.create_task_group() as tasks:
        tasks.start_soon(work)
        await anyio.wait_all_tasks_blocked()
        await push.publish("news", 1)
        await anyio.wait_all_tasks_blocked()
        await push.drain()
        assert handled


async def test_a_drain_waits_no_longer_than_its_window() -> None:
    push = push_over()
    async with push.lifespan(), push.subscribe("news"):
        # Nobody leaves the block meanwhile.
        begun = anyio.current_time()
        await push.drain()
        assert anyio.current_time() - begun < 1.1


async def test_a_stop_wakes_a_subscriber_that_waits() -> None:
    push = push_over()
    await push.start()
    ended = anyio.Event()

    async def read() -> None:
        async with push.subscribe("news") as events:
            assert await rest(events) == []
        ended.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        await anyio.wait_all_tasks_blocked()
        await push.stop()
        with anyio.fail_after(1):
            await ended.wait()


@pytest.mark.parametrize("how", ["return", "raise", "cancel"])
async def test_leaving_the_block_leaves_nothing(how: str) -> None:
    push = push_over()
    async with push.lifespan():
        with anyio.move_on_after(1) if how == "cancel" else anyio.CancelScope():
            try:
                async with push.subscribe("news") as events:
                    await push.publish("news", 1)
                    await push.publish("news", 2)
                    await data(events, 1)
                    if how == "raise":
                        raise KeyError
                    if how == "cancel":
                        await take(events, 5)
            except KeyError:
                pass
        assert events.end_reason is EndReason.DISCONNECT
        # What was not read is left behind, and can be had by its id.
        assert [item async for item in events] == []
        await let_pass(1)
        assert push.statistics()["channels"] == 0
        async with push.subscribe("news", last_event_id=events.last_event_id) as again:
            await push.publish("news", 3)
            assert await data(again, 1) == ["3" if how == "cancel" else "2"]


async def test_entering_that_is_cancelled_leaves_nothing() -> None:
    server = FaultyServer(History())
    broker = FaultyBroker(server)
    broker.faults["news"].subscribe = True
    push = push_over(broker)
    async with push.lifespan():
        with anyio.move_on_after(0.1) as scope:
            async with push.subscribe("news"):
                pytest.fail("the channel is not subscribed yet")
        assert scope.cancelled_caught
        await let_pass(10)
        assert push.statistics()["channels"] == 0


async def test_a_broker_that_comes_late_is_a_gap_and_then_all_comes(caplog: pytest.LogCaptureFixture) -> None:
    server = FaultyServer(History())
    broker = FaultyBroker(server)
    broker.faults["news"].subscribe = True
    push = push_over(broker)
    async with push.lifespan(), push.subscribe("news") as events:
        broker.heal()
        await let_pass(10)
        await push.publish("news", 1)
        gap, event = await take(events, 2)
        assert isinstance(gap, Gap)
        assert gap.reason is GapReason.BROKER
        assert isinstance(event, Received)


async def test_a_lost_connection_without_history_is_a_gap() -> None:
    broker = MockBroker()
    push = push_over(broker)
    async with push.lifespan(), push.subscribe("a", "b") as events:
        await push.publish("a", 1)
        assert await data(events, 1) == ["1"]
        broker.drop()
        told = await take(events, 2)
        assert {(item.channel, type(item)) for item in told} == {("a", Gap), ("b", Gap)}


async def test_it_takes_no_slot_and_counts_as_no_stream_and_is_not_revoked() -> None:
    slots = MemorySlotCap(1)
    push = LivePush(
        MemoryBroker(),
        lambda request: Grant(channels="news", slot_key="k"),
        slots=slots,
        limits=Limits(streams=1),
    )
    async with push.lifespan(), push.subscribe("news") as events, Client(push) as client:
        assert (push.statistics()["streams"], push.listeners("news")) == (0, 0)
        async with client.open("/") as stream:
            await stream.next_event(control=True)
            assert (push.statistics()["opened"], push.listeners("news")) == (1, 1)
            done = await push.disconnect(channel="news")
            assert (done.streams, await stream.wait_ended()) == (1, "revoked")
        await push.publish("news", 1)
        assert await data(events, 1) == ["1"]
        assert sum(push.statistics()["ended"].values()) == 1


async def test_a_lost_log_of_commands_ends_no_subscriber() -> None:
    server = FaultyServer(History())
    broker = FaultyBroker(server)
    push = LivePush(broker, public("news"), timing=Timing(subscribe_timeout=0.5, linger=0.1))
    async with push.lifespan(), Client(push) as client, push.subscribe("news") as events:
        async with client.open("/") as stream:
            await stream.next_event(control=True)
            broker.say_lost()
            await let_pass(30)
        await push.publish("news", 1)
        assert (await data(events, 1))[-1] == "1"
        assert events.end_reason is None


PAYLOADS = {
    "no utf-8": to_payload(b"data: \xff\n\n"),
    "a reserved name": to_payload(b"event: livepush.close\ndata: {}\n\n"),
    "a gap": to_payload(b"event: livepush.gap\ndata: nonsense\n\n"),
    "a large retry": to_payload(b"retry: 99999999999\ndata: x\n\n"),
    "an origin": to_payload(b': ["other", "id"]\ndata: x\n\n'),
    "an origin that is none": to_payload(b": nonsense\ndata: x\n\n"),
    "an unknown field": to_payload(b"field: x\ndata: x\n\n"),
    "no event": to_payload(b"field: x\n\n"),
    "two events": to_payload(b"data: x\n\ndata: y\n\n"),
    "an event and a gap": to_payload(b"data: x\n\nevent: livepush.gap\ndata: nonsense\n\n"),
    "plain": b"data: x\n\nevent: livepush.gap\n",
    "binary": b"\xff\xfe",
}


@pytest.mark.parametrize("name", PAYLOADS)
async def test_what_another_program_publishes_breaks_nothing(name: str) -> None:
    broker = MemoryBroker()
    push = push_over(broker)
    async with push.lifespan(), push.subscribe("a", "b") as events:
        await broker.append("a", PAYLOADS[name])
        await push.publish("b", "last")
        with anyio.fail_after(5):
            async for item in events:
                if item.channel == "b":
                    break
                assert item.channel == "a"
        assert isinstance(item, Received)
        assert item.data == "last"
        async with push.subscribe("a", "b", last_event_id=item.id) as again:
            await push.publish("b", "more")
            assert await data(again, 1) == ["more"]


async def test_two_events_of_another_program_in_one_payload_both_come() -> None:
    broker = MemoryBroker()
    push = push_over(broker)
    async with push.lifespan(), push.subscribe("a", "b") as events:
        await broker.append("a", PAYLOADS["two events"])
        await push.publish("b", "z")
        items = await take(events, 3)
        assert [(item.channel, item.data) for item in items if isinstance(item, Received)] == [
            ("a", "x"),
            ("a", "y"),
            ("b", "z"),
        ]


async def test_two_tasks_cannot_iterate_at_once() -> None:
    push = push_over()
    async with push.lifespan(), push.subscribe("news") as events, anyio.create_task_group() as tasks:
        tasks.start_soon(take, events, 1)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(anyio.BusyResourceError):
            await anext(events)
        tasks.cancel_scope.cancel()


async def test_wrong_use_says_what_is_right() -> None:
    push = push_over()
    with pytest.raises(TypeError, match=r'name the channels .* push\.subscribe\("news"\)'):
        push.subscribe()
    with pytest.raises(InvalidGrantError, match="replay is"):
        push.subscribe("news", replay=-1)
    with pytest.raises(TypeError, match="a channel name is a str"):
        push.subscribe(["news"])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="last_event_id is the id of an item, a str, not 7"):
        push.subscribe("news", last_event_id=7)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match=r"async with push\.subscribe"):
        await anext(push.subscribe("news"))
    async with push.lifespan():
        events = push.subscribe("news")
        async with events:
            with pytest.raises(RuntimeError, match="entered once"):
                await events.__aenter__()


async def test_it_starts_a_livepush_that_is_not_started() -> None:
    push = push_over()
    async with push.subscribe("news") as events:
        await push.publish("news", 1)
        assert await data(events, 1) == ["1"]
    await push.stop()


async def test_subscribers_that_come_and_go_leave_no_timers() -> None:
    before, push = live_timers(), push_over()
    async with push.lifespan():
        for _ in range(300):
            async with push.subscribe("news"):
                pass
        # The scheduler keeps a few that are cancelled.
        assert live_timers() < before + 70


async def test_nothing_is_logged_that_is_no_fault(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "livepush_asgi")
    push = push_over()
    async with push.lifespan(), push.subscribe("news") as events:
        await push.publish("news", 1)
        await take(events, 1)
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []
