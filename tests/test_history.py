"""History as clients see it: resuming, where to begin, gaps, snapshots, slow readers, in memory."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import pytest

from livepush_asgi import Event, Grant, History, Limits, LivePush, MemoryBroker, PositionConflictError
from livepush_asgi.brokers import ForwardingSubscription
from livepush_asgi.grant import Replay
from livepush_asgi.runtime.asgi import Message, Scope
from livepush_asgi.testing import Client, ParsedEvent, Stream
from livepush_asgi.testing.exchange import RequestOptions
from livepush_asgi.wire.cursor import Cursor, Position
from livepush_asgi.wire.event import positioned

from .faulty_broker import FaultyBroker, FaultyServer
from .virtual_clock import let_pass


class House:
    def __init__(self, *channels: str, replay: Replay = "new", **limits: object) -> None:
        self.grant = Grant(channels=channels or ("c",), replay=replay)
        self.push = LivePush(
            MemoryBroker(History(events=10)),
            lambda request: self.grant,
            limits=Limits(**limits),  # type: ignore[arg-type]
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Client]:
        async with self.push.lifespan(), Client(self.push) as client:
            yield client

    async def publish(self, *data: object, channel: str = "c") -> None:
        for item in data:
            await self.push.publish(channel, item)


async def opened(stream: Stream) -> ParsedEvent:
    event = await stream.next_event(control=True)
    assert event.event == "livepush.open"
    return event


def resumed(event: ParsedEvent) -> bool:
    return bool(json.loads(event.data)["resumed"])


async def test_a_client_that_comes_back_gets_what_it_missed_and_then_what_is_new() -> None:
    house = House()
    async with house.running() as client:
        async with client.open("/") as stream:
            assert not resumed(await opened(stream))
            await house.publish("1", "2")
            assert [event.data for event in await stream.events(2)] == ["1", "2"]
        await house.publish("3", "4")
        async with client.open("/", last_event_id=stream.last_event_id) as again:
            assert resumed(await opened(again))
            await house.publish("5")
            assert [event.data for event in await again.events(3)] == ["3", "4", "5"]
            with pytest.raises(TimeoutError):
                await again.next_event()
    assert [event.event for event in again.control_events] == ["livepush.open"]


async def test_a_client_that_drops_before_its_first_event_resumes_too() -> None:
    house = House()
    async with house.running() as client:
        async with client.open("/") as stream:
            primed = (await opened(stream)).id
        await house.publish("missed")
        async with client.open("/", query={"last_event_id": primed or ""}) as again:
            assert resumed(await opened(again))
            assert (await again.next_event()).data == "missed"


async def test_one_id_resumes_several_channels_and_names_none_of_them() -> None:
    house = House("secret-a", "secret-b")
    async with house.running() as client:
        async with client.open("/") as stream:
            await opened(stream)
            await house.publish("a1", channel="secret-a")
            await house.publish("b1", channel="secret-b")
            await stream.events(2)
        assert "secret" not in stream.last_event_id
        cursor = Cursor.parse(stream.last_event_id)
        assert cursor is not None
        assert [place.offset for name in ("secret-a", "secret-b") for place in cursor.positions_in(name)] == [
            1,
            1,
        ]
        await house.publish("a2", "a3", channel="secret-a")
        await house.publish("b2", channel="secret-b")
        async with client.open("/", last_event_id=stream.last_event_id) as again:
            assert resumed(await opened(again))
            assert sorted([event.data for event in await again.events(3)]) == ["a2", "a3", "b2"]


@pytest.mark.parametrize(
    ("replay", "expected"),
    [
        ("new", []),
        ("last", ["4"]),
        ("all", ["1", "2", "3", "4"]),
        (2, ["3", "4"]),
        (0, []),
        (99, ["1", "2", "3", "4"]),
    ],
)
async def test_a_grant_says_where_a_new_client_begins(replay: Replay, expected: list[str]) -> None:
    house = House(replay=replay)
    async with house.running() as client:
        await house.publish("1", "2", "3", "4")
        async with client.open("/") as stream:
            assert not resumed(await opened(stream))
            await house.publish("live")
            events = await stream.events(len(expected) + 1)
    assert [event.data for event in events] == [*expected, "live"]
    assert [event.event for event in stream.control_events] == ["livepush.open"]


def gap_of(event: ParsedEvent) -> tuple[str, str]:
    assert event.event == "livepush.gap"
    data = json.loads(event.data)
    return data["channel"], data["reason"]


async def test_all_of_a_log_that_has_dropped_events_is_a_gap_and_what_is_left() -> None:
    house = House(replay="all")
    async with house.running() as client:
        await house.publish(*range(25))
        async with client.open("/") as stream:
            assert not resumed(await opened(stream))
            gap = await stream.next_event(control=True)
            assert gap_of(gap) == ("c", "expired")
            assert [event.data for event in await stream.events(10)] == [str(n) for n in range(15, 25)]
            async with client.open("/", last_event_id=gap.id) as again:
                assert resumed(await opened(again))
                events = [await again.next_event(control=True) for _ in range(10)]
                assert [event.data for event in events] == [str(n) for n in range(15, 25)]
            await house.publish("live")
            assert (await stream.next_event(control=True)).data == "live"


async def test_a_client_that_left_before_the_gap_is_told_when_it_comes_back() -> None:
    for limits, reason in ({}, "expired"), ({"replay_events": 4}, "overflow"):
        house = House(replay="all", **limits)
        async with house.running() as client:
            await house.publish(*range(25 if reason == "expired" else 8))
            async with client.open("/") as stream:
                open_id = (await opened(stream)).id
            async with client.open("/", last_event_id=open_id) as again:
                assert not resumed(await opened(again))
                assert gap_of(await again.next_event(control=True)) == ("c", reason)


async def test_all_of_a_log_with_more_events_than_the_limit_is_an_overflow_and_the_newest() -> None:
    house = House(replay="all", replay_events=4)
    async with house.running() as client:
        await house.publish(*range(8))
        async with client.open("/") as stream:
            await opened(stream)
            assert gap_of(await stream.next_event(control=True)) == ("c", "overflow")
            assert [event.data for event in await stream.events(4)] == ["4", "5", "6", "7"]
        # The limit skips more than the log has dropped, or less.
        await house.publish(*range(8, 30))
        async with client.open("/") as stream:
            await opened(stream)
            assert gap_of(await stream.next_event(control=True)) == ("c", "overflow")
            assert [event.data for event in await stream.events(4)] == ["26", "27", "28", "29"]
    house = House(replay="all", replay_events=20)
    async with house.running() as client:
        await house.publish(*range(40))
        async with client.open("/") as stream:
            await opened(stream)
            assert gap_of(await stream.next_event(control=True)) == ("c", "expired")
            assert [event.data for event in await stream.events(10)] == [str(n) for n in range(30, 40)]


@pytest.mark.parametrize("replay", ["last", 99, 3])
async def test_the_newest_events_there_are_come_without_a_gap(replay: Replay) -> None:
    house = House(replay=replay)
    async with house.running() as client:
        await house.publish(*range(25))
        async with client.open("/") as stream:
            await opened(stream)
            first = await stream.next_event(control=True)
            assert first.event == "message"


async def test_of_several_channels_only_the_one_that_has_dropped_events_has_a_gap() -> None:
    house = House("c", "d", "e", replay="all")
    async with house.running() as client:
        await house.publish(*range(25))
        await house.publish("only", channel="d")
        async with client.open("/") as stream:
            await opened(stream)
            events = [await stream.next_event(control=True) for _ in range(12)]
    assert [gap_of(event) for event in events if event.event == "livepush.gap"] == [("c", "expired")]
    data = [event.data for event in events if event.event == "message"]
    assert sorted(data) == sorted(["only", *map(str, range(15, 25))])
    # Nothing of the channel comes before its gap.
    names = [event.event if event.data != "only" else "d" for event in events]
    assert next(name for name in names if name != "d") == "livepush.gap"


async def test_a_channel_that_is_new_to_a_client_with_an_id_has_its_gap_too() -> None:
    house = House("c")
    async with house.running() as client:
        await house.publish("there", *range(25), channel="d")
        async with client.open("/") as stream:
            last_id = (await opened(stream)).id
        house.grant = Grant(channels=["c", "d"], replay="all")
        await house.publish("1")
        async with client.open("/", last_event_id=last_id) as again:
            await opened(again)
            events = [await again.next_event(control=True) for _ in range(12)]
    assert [gap_of(event) for event in events if event.event == "livepush.gap"] == [("d", "expired")]


async def test_a_state_has_what_the_gap_of_a_replay_tells_of() -> None:
    house = House()
    house.grant = Grant(channels="c", replay="all", snapshot=lambda: Event("all", event="state"))
    async with house.running() as client:
        await house.publish(*range(25))
        async with client.open("/") as stream:
            await opened(stream)
            events = [await stream.next_event(control=True) for _ in range(12)]
            assert [event.event for event in events[:3]] == ["state", "livepush.gap", "message"]
            assert [event.data for event in events if event.event == "message"] == [*map(str, range(15, 25))]
        async with client.open("/", last_event_id=stream.last_event_id) as again:
            assert resumed(await opened(again))


async def test_the_gap_of_a_replay_ends_a_stream_without_control_events_once() -> None:
    house = House()
    house.grant = Grant(channels="c", replay="all", control_events=False)
    async with house.running() as client:
        await house.publish(*range(25))
        async with client.open("/") as stream:
            await stream.wait_ended()
            assert stream.received == []
        async with client.open("/", last_event_id=stream.last_event_id) as again:
            assert [event.data for event in await again.events(10)] == [str(n) for n in range(15, 25)]


async def test_all_of_a_log_tells_of_a_server_that_took_over_in_its_middle() -> None:
    server = FaultyServer(History())
    push = LivePush(FaultyBroker(server), lambda request: Grant(channels="c", replay="all"))
    async with push.lifespan(), Client(push) as client:
        for text in "123":
            await push.publish("c", text)
        server.restart("c", 1, doubtful=True)
        await push.publish("c", "4")
        async with client.open("/") as stream:
            await opened(stream)
            assert [event.data for event in await stream.events(2)] == ["1", "2"]
            assert gap_of(await stream.next_event(control=True)) == ("c", "epoch")
            assert (await stream.next_event()).data == "4"


async def test_who_has_missed_too_many_is_told_of_a_server_that_took_over_among_the_rest() -> None:
    """Catches a client that goes on behind its gap as if it had been told of the doubtful end there."""
    server = FaultyServer(History())
    push = LivePush(FaultyBroker(server), lambda request: Grant(channels="c"), limits=Limits(replay_events=4))
    async with push.lifespan(), Client(push) as client:
        async with client.open("/") as stream:
            await push.publish("c", "1")
            await stream.next_event()
        for number in range(2, 9):
            await push.publish("c", str(number))
        server.restart("c", 3, doubtful=True)
        for number in (9, 10):
            await push.publish("c", str(number))
        last_id = stream.last_event_id
        for _ in range(2):
            # The client may leave right after the gap.
            async with client.open("/", last_event_id=last_id) as stream:
                last_id = (await opened(stream)).id or last_id
        async with client.open("/", last_event_id=last_id) as stream:
            await opened(stream)
            assert gap_of(await stream.next_event(control=True)) == ("c", "overflow")
            assert [event.data for event in await stream.events(2)] == ["4", "5"]
            assert gap_of(await stream.next_event(control=True)) == ("c", "epoch")
            assert [event.data for event in await stream.events(2)] == ["9", "10"]


@pytest.mark.parametrize("lost", [0, 1, 3])
@pytest.mark.parametrize("after", [[], ["4"]])
async def test_a_client_that_left_before_its_first_page_is_still_owed_all_of_the_log(
    lost: int, after: list[str]
) -> None:
    """Catches an id that does not say whether its client was told of a doubtful beginning."""
    server = FaultyServer(History())
    push = LivePush(FaultyBroker(server), lambda request: Grant(channels=("c", "d"), replay="all"))
    async with push.lifespan(), Client(push) as client:
        for text in "123":
            await push.publish("c", text)
        server.restart("c", lost, doubtful=True)
        for text in after:
            await push.publish("c", text)
        last_id = None
        for _ in range(2):
            async with client.open("/", last_event_id=last_id) as stream:
                last_id = (await opened(stream)).id
        async with client.open("/", last_event_id=last_id) as stream:
            assert not resumed(await opened(stream))
            assert [event.data for event in await stream.events(3 - lost)] == ["1", "2", "3"][: 3 - lost]
            assert gap_of(await stream.next_event(control=True)) == ("c", "epoch")
            assert [event.data for event in await stream.events(len(after))] == after
            await push.publish("c", "last")
            assert (await stream.next_event(control=True)).data == "last"
        # It was told, and is not told again.
        async with client.open("/", last_event_id=stream.last_event_id) as stream:
            assert resumed(await opened(stream))


async def test_an_id_from_before_ids_said_that_a_log_is_owed_stays_valid() -> None:
    house = House()
    async with house.running() as client:
        async with client.open("/") as stream:
            new = (await opened(stream)).id or ""
        await house.publish("1")
        house.grant = Grant(channels="c", replay="all")
        async with client.open("/") as stream:
            owed = (await opened(stream)).id or ""
        assert new.replace("~", "~!") == f"{owed}.0"
        for last_id in (new, owed):
            async with client.open("/", last_event_id=last_id) as stream:
                assert resumed(await opened(stream))
                assert (await stream.next_event(control=True)).data == "1"


async def test_a_position_of_its_own_counts_more_than_the_replay_of_the_grant() -> None:
    house = House(replay="all")
    async with house.running() as client:
        async with client.open("/") as stream:
            await opened(stream)
            await house.publish("1", "2")
            await stream.events(2)
        await house.publish("3")
        async with client.open("/", last_event_id=stream.last_event_id) as again:
            await opened(again)
            assert [event.data for event in await again.events(1)] == ["3"]


async def test_history_trimmed_past_a_client_is_a_gap_and_then_what_is_left() -> None:
    house = House()
    async with house.running() as client:
        async with client.open("/") as stream:
            await opened(stream)
        await house.publish(*range(25))
        async with client.open("/", last_event_id=stream.last_event_id) as again:
            assert not resumed(await opened(again))
            gap = await again.next_event(control=True)
            assert json.loads(gap.data) == {"channel": "c", "reason": "expired"}
            assert [event.data for event in await again.events(10)] == [str(n) for n in range(15, 25)]


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "~",
        "1",
        "a.b",
        "epoch.-1",
        "a.1,a.2",
        "a.1,",
        "a.01",
        "é.1",
        "a." + "9" * 30,
        "x" * 8_000,
        "y" * 1_000_000,
        "a.1\t",
    ],
    ids=lambda text: text[:12],
)
async def test_a_cursor_that_is_none_is_a_gap_and_never_an_error(text: str) -> None:
    house = House()
    # A longer query is refused whatever is in it.
    place: RequestOptions = (
        {"query": {"last_event_id": text}} if len(text) <= 8_000 else {"last_event_id": text}
    )
    async with house.running() as client, client.open("/", **place) as stream:
        assert stream.status == 200
        assert not resumed(await opened(stream))
        gap = await stream.next_event(control=True)
        assert json.loads(gap.data) == {"channel": "c", "reason": "unknown"}
        await house.publish("live")
        assert (await stream.next_event()).data == "live"


async def test_a_cursor_of_another_log_is_a_gap_with_the_reason_epoch() -> None:
    house, other = House(), House()
    async with other.running() as client, client.open("/") as stream:
        await opened(stream)
    async with house.running() as client, client.open("/", last_event_id=stream.last_event_id) as again:
        assert not resumed(await opened(again))
        assert json.loads((await again.next_event(control=True)).data)["reason"] == "epoch"


async def test_a_channel_that_is_new_to_a_client_is_no_gap() -> None:
    house = House("a")
    async with house.running() as client:
        async with client.open("/") as stream:
            await opened(stream)
            await house.publish("1", channel="a")
            await stream.next_event()
        house.grant = Grant(channels=["a", "b"])
        await house.publish("2", channel="a")
        async with client.open("/", last_event_id=stream.last_event_id) as again:
            assert resumed(await opened(again))
            assert (await again.next_event()).data == "2"
    assert [event.event for event in again.control_events] == ["livepush.open"]


async def test_a_client_that_missed_more_than_the_replay_cap_is_told_and_gets_the_newest() -> None:
    house = House(replay_events=3)
    async with house.running() as client:
        async with client.open("/") as stream:
            await opened(stream)
        await house.publish(*range(8))
        async with client.open("/", last_event_id=stream.last_event_id) as again:
            await opened(again)
            assert json.loads((await again.next_event(control=True)).data)["reason"] == "overflow"
            assert [event.data for event in await again.events(3)] == ["5", "6", "7"]


async def test_a_slow_client_reads_on_from_history_and_misses_nothing() -> None:
    push = LivePush(
        MemoryBroker(History(events=1000)),
        lambda request: Grant(channels="c"),
        limits=Limits(outbox_events=5, message_bytes=100),
    )
    async with push.lifespan(), Client(push) as client, client.open("/", window=0) as stream:
        await opened(stream)
        for number in range(500):
            await push.publish("c", number)
        events = [await stream.next_event() for _ in range(500)]
        await push.publish("c", "live again")
        assert (await stream.next_event()).data == "live again"
    assert [event.data for event in events] == [str(number) for number in range(500)]
    assert [event.event for event in stream.control_events] == ["livepush.open"]


async def test_latest_skips_to_the_newest_of_each_name() -> None:
    house = House(overflow="latest", outbox_events=5)
    async with house.running() as client, client.open("/", window=0) as stream:
        await opened(stream)
        await house.push.publish("c", "first", event="price")
        await anyio.wait_all_tasks_blocked()
        for number in range(50):
            await house.push.publish("c", number, event="price")
            await house.push.publish("c", -number, event="cursor")
        events = await stream.events(3)
        await house.push.publish("c", "live", event="price")
        events.append(await stream.next_event())
    assert [(event.event, event.data) for event in events] == [
        ("price", "first"),
        ("price", "49"),
        ("cursor", "-49"),
        ("price", "live"),
    ]


async def test_a_snapshot_comes_before_the_changes_and_again_after_a_gap_only() -> None:
    house = House()
    state = 0

    async def snapshot() -> Event:
        nonlocal state
        # What is published while the state is read must not get lost between the two.
        state += 1
        await house.push.publish("c", f"change {state}")
        return Event({"state": state}, event="state")

    house.grant = Grant(channels="c", snapshot=snapshot)
    async with house.running() as client:
        async with client.open("/") as stream:
            await opened(stream)
            events = await stream.events(2)
            assert [event.data for event in events] == ['{"state":1}', "change 1"]
        async with client.open("/", last_event_id=stream.last_event_id) as again:
            assert resumed(await opened(again))
            await house.publish("no snapshot before this")
            assert (await again.next_event()).data == "no snapshot before this"
        async with client.open("/", last_event_id="garbage") as lost:
            await opened(lost)
            assert (await lost.next_event(control=True)).event == "livepush.gap"
            assert [event.data for event in await lost.events(2)] == ['{"state":2}', "change 2"]


async def test_a_snapshot_may_be_several_events_and_a_plain_function() -> None:
    house = House()
    house.grant = Grant(channels="c", snapshot=lambda: [{"n": 1}, "two"])
    async with house.running() as client, client.open("/") as stream:
        await opened(stream)
        assert [event.data for event in await stream.events(2)] == ['{"n":1}', "two"]


async def test_a_quiet_loss_is_found_by_looking_into_the_log() -> None:
    broker = FaultyBroker()
    push = LivePush(broker, lambda request: Grant(channels="c"))
    async with push.lifespan(), Client(push) as client, client.open("/") as stream:
        await opened(stream)
        broker.losing = 1
        await push.publish("c", "lost on the way")
        with pytest.raises(TimeoutError):
            await stream.next_event(1)
        assert (await stream.next_event(100)).data == "lost on the way"


async def test_a_lost_log_is_told_with_the_reason_epoch_and_the_stream_goes_on() -> None:
    broker = FaultyBroker()
    push = LivePush(broker, lambda request: Grant(channels="c"))
    async with push.lifespan(), Client(push) as client, client.open("/") as stream:
        await opened(stream)
        await push.publish("c", "before")
        broker.server.lose_log("c")
        await push.publish("c", "after")
        events = [await stream.next_event(control=True) for _ in range(3)]
    assert [event.event for event in events] == ["message", "livepush.gap", "message"]
    assert json.loads(events[1].data) == {"channel": "c", "reason": "epoch"}
    assert events[2].data == "after"


async def test_a_channel_that_has_nothing_to_read_keeps_no_other_waiting() -> None:
    """A client comes back from a process that had heard more of two channels, and has missed a third one."""
    server = FaultyServer(History())
    brokers = FaultyBroker(server), FaultyBroker(server)
    grant = Grant(channels=["a", "b", "c"])
    first, second = (LivePush(broker, lambda request: grant) for broker in brokers)
    async with first.lifespan(), Client(first) as client, second.lifespan(), Client(second) as other:
        async with client.open("/") as stream, other.open("/") as beside:
            await opened(stream)
            await opened(beside)
            brokers[1].losing = 2
            await first.publish("a", "a1")
            await first.publish("b", "b1")
            await stream.events(2)
        await first.publish("c", "c1")
        async with other.open("/", last_event_id=stream.last_event_id) as again:
            assert resumed(await opened(again))
            # Well before the heartbeat, or anything else, makes it look again.
            assert (await again.next_event(1)).data == "c1"


# With their ids, 100 events of 2,600 bytes are larger than `message_bytes`.
@pytest.mark.parametrize(("number", "size"), [(350, 0), (300, 2590)])
async def test_a_busy_channel_keeps_no_other_from_being_read_on(number: int, size: int) -> None:
    behind = [f"{each} {'x' * size}" for each in range(number)]
    push = LivePush(MemoryBroker(), lambda request: Grant(channels=["busy", "behind"]))
    async with push.lifespan(), Client(push) as client:
        async with client.open("/") as stream:
            await opened(stream)
        for data in behind:
            await push.publish("behind", data)
        async with client.open("/", last_event_id=stream.last_event_id, window=0) as again:
            await opened(again)
            seen: list[str] = []
            # Whenever the client takes something, something live waits already.
            while seen.count("live") < 500 and seen[-1:] != behind[-1:]:
                await push.publish("busy", "live")
                seen.append((await again.next_event()).data)
    # History is read a page ahead, so the two take turns within a page.
    assert [data for data in seen if data != "live"] == behind
    assert "live" in seen[:number]


async def test_a_long_replay_lets_others_run_though_send_never_waits() -> None:
    push = LivePush(MemoryBroker(), lambda request: Grant(channels="news", replay="all"))
    received, turns = 0, 0

    async def receive() -> Message:
        await anyio.sleep_forever()
        raise AssertionError

    async def send(message: Message) -> None:
        nonlocal received
        received += message.get("body", b"").count(b"data: old")
        if received == 10_000:
            tasks.cancel_scope.cancel()

    async def turn() -> None:
        nonlocal turns
        while True:
            turns += 1
            await anyio.lowlevel.checkpoint()

    scope: Scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
    async with push.lifespan():
        for _ in range(10_000):
            await push.publish("news", "old")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(turn)
            tasks.start_soon(push, scope, receive, send)
    assert received == 10_000
    # A hundred pages.
    assert turns >= 10


async def test_an_event_that_the_log_shows_late_is_sent_when_it_does() -> None:
    server = FaultyServer(History())
    broker = FaultyBroker(server)
    push = LivePush(broker, lambda request: Grant(channels="c"))
    async with push.lifespan(), Client(push) as client:
        async with client.open("/") as stream:
            await opened(stream)
        await push.publish("c", "missed")
        server.away = True
        async with client.open("/", last_event_id=stream.last_event_id) as again:
            await opened(again)
            await let_pass(3)
            server.away = False
            assert (await again.next_event(1)).data == "missed"


@pytest.mark.parametrize("away", [False, True])
async def test_who_comes_back_to_a_log_under_another_epoch_misses_nothing_while_it_cannot_be_asked(
    away: bool,
) -> None:
    server = FaultyServer(History())
    push = LivePush(FaultyBroker(server), lambda request: Grant(channels=["a", "b"]))
    async with push.lifespan(), Client(push) as client, client.open("/") as beside:
        await opened(beside)
        async with client.open("/") as stream:
            await opened(stream)
            for channel in ("a", "b"):
                await push.publish(channel, f"{channel}1")
            await stream.events(2)
        for channel in ("a", "b"):
            await push.publish(channel, f"{channel}2")
            server.restart(channel, losing=0)
        await let_pass(1)
        server.away = away
        async with client.open("/", last_event_id=stream.last_event_id) as again:
            assert resumed(await opened(again)) is not away
            await let_pass(5)
            server.away = False
            await let_pass(1)
            for channel in ("a", "b"):
                await push.publish(channel, f"{channel}3")
            events = [event.data for event in await again.events(4)]
            assert [data for data in events if data[0] == "a"] == ["a2", "a3"]
            assert [data for data in events if data[0] == "b"] == ["b2", "b3"]
    assert [event.event for event in again.control_events] == ["livepush.open"]


async def test_an_absent_log_delays_events_and_loses_none() -> None:
    broker = FaultyBroker()
    push = LivePush(broker, lambda request: Grant(channels="c"))
    async with push.lifespan(), Client(push) as client, client.open("/") as stream:
        await opened(stream)
        broker.losing = 1
        await push.publish("c", "1")
        await push.publish("c", "2")
        broker.server.away = True
        await let_pass(0.01)
        broker.say_lost()
        await let_pass(20)
        assert not push.healthy
        broker.server.away = False
        assert [event.data for event in await stream.events(2, timeout=20)] == ["1", "2"]
        # The channel of the commands is read again, too.
        await let_pass(6)
        assert push.healthy
    assert [event.event for event in stream.control_events] == ["livepush.open"]


async def test_publish_knows_a_repeated_key_and_an_expected_position() -> None:
    push = LivePush(MemoryBroker(), lambda request: Grant(channels="c", replay="all"))
    first = await push.publish("c", "1", idempotency_key="k")
    assert await push.publish("c", "1", idempotency_key="k") == first
    assert first is not None
    second = await push.publish("c", "2", expected_position=first)
    with pytest.raises(PositionConflictError):
        await push.publish("c", "3", expected_position=first)
    assert second == first.replace(".1", ".2")
    async with push.lifespan(), Client(push) as client, client.open("/") as stream:
        assert [event.data for event in await stream.events(2)] == ["1", "2"]
        with pytest.raises(TimeoutError):
            await stream.next_event()


async def test_history_is_bounded_in_bytes_in_age_and_in_channels() -> None:
    broker = MemoryBroker(History(size=10, age=60, channels=3))
    for text in (b"12345", b"12345", b"12345"):
        await broker.append("c", text)
    assert [record.offset for record in (await broker.read("c", 0, 10)).records] == [2, 3]
    await let_pass(61)
    page = await broker.read("c", 0, 10)
    assert (page.first, page.last, page.records) == (4, 3, ())
    epochs = {name: (await broker.read(name, 0, 0)).epoch for name in "defg"}
    assert (await broker.read("g", 0, 0)).epoch == epochs["g"]
    assert (await broker.read("d", 0, 0)).epoch != epochs["d"]


class PlainSink:
    """A sink that knows of no positions but those in a payload."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []

    def deliver(self, payload: bytes, /) -> None:
        self.taken.append(payload)

    def lost(self) -> None:
        raise AssertionError("nothing is lost here")


class LoggedSink(PlainSink):
    def __init__(self) -> None:
        super().__init__()
        self.placed: list[tuple[Position, bytes]] = []

    def deliver_at(self, position: Position, payload: bytes, /) -> None:
        self.placed.append((position, payload))


async def test_a_sink_gets_the_position_apart_if_it_takes_it_so_and_with_the_payload_if_not() -> None:
    broker, plain, logged = MemoryBroker(), PlainSink(), LoggedSink()
    for sink in (plain, logged):
        subscription = await broker.subscribe("c")
        assert isinstance(subscription, ForwardingSubscription)
        if sink is logged:
            early = await broker.append("c", b"early")
        subscription.forward(sink)
    late = await broker.append("c", b"late")
    assert plain.taken == [positioned(early, b"early"), positioned(late, b"late")]
    assert logged.taken == [positioned(early, b"early")]
    assert logged.placed == [(late, b"late")]
