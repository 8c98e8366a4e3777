"""Statistics: each number is what clients and publishers saw; a count only grows; counting breaks nothing."""

import json
import logging
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack

import anyio
import pytest

from livepush_asgi import (
    BrokerUnavailableError,
    DrainPolicy,
    EndReason,
    Grant,
    History,
    InvalidEventError,
    Limits,
    LivePush,
    MemoryBroker,
    MemorySlotCap,
    MockBroker,
    Position,
    PositionConflictError,
    SSEStreamService,
    StreamRequest,
    Timing,
    public,
)
from livepush_asgi.process.observer import Observer
from livepush_asgi.runtime.histogram import Histogram, HistogramData
from livepush_asgi.stream.stream import Stream as ClientStream
from livepush_asgi.testing import Client, ParsedEvent, Stream

from .virtual_clock import let_pass

DRAIN = DrainPolicy(window=0.5, signals=False)


def bytes_of(stream: Stream) -> int:
    return sum(len(message.get("body", b"")) for message in stream.messages)


def in_ranges(data: HistogramData) -> dict[float, int]:
    """Return the counts that are not 0, by the upper bound of their range."""
    bounds = [*data["bounds"], float("inf")]
    return {bound: count for bound, count in zip(bounds, data["counts"], strict=True) if count}


async def next_gap(stream: Stream) -> None:
    while (await stream.next_event(control=True)).event != "livepush.gap":
        pass


def test_a_range_includes_its_bound() -> None:
    histogram = Histogram(0.5, 1)
    for value in (0.25, 0.5, 0.75, 1, 2):
        histogram.add(value)
    assert histogram.data() == {"bounds": [0.5, 1], "counts": [2, 2, 1], "sum": 4.5}


async def test_json_holds_all_of_it() -> None:
    push = LivePush(MemoryBroker(), public("news"), namespace="staging")
    numbers = push.statistics()
    assert json.loads(json.dumps(numbers, allow_nan=False)) == numbers
    assert numbers["broker"] == "MemoryBroker"


async def test_streams_by_how_they_opened() -> None:
    broker = MemoryBroker(History(events=3))
    push = LivePush(broker, public("news"), drain=DRAIN)
    async with push.lifespan(), Client(push) as client:
        async with client.open("/") as stream:
            first = await push.publish("news", 0)
            await stream.next_event()
        await push.publish("news", 1)
        async with client.open("/", last_event_id=first) as stream:
            assert (await stream.next_event()).data == "1"
        for number in range(5):
            await push.publish("news", number)
        # Pages and bounds of history that were read before are known for two seconds.
        await let_pass(3)
        async with client.open("/", last_event_id=first) as stream:
            await next_gap(stream)
            assert [event.data for event in await stream.events(3)] == ["2", "3", "4"]
        async with client.open("/", last_event_id="of another server") as stream:
            await next_gap(stream)
        numbers = push.statistics()
    assert numbers["opened_by_resume"] == {"fresh": 1, "resumed": 1, "gap": 2, "unopened": 0}
    assert numbers["opened"] == sum(numbers["ended"].values()) == 4
    assert {reason: count for reason, count in numbers["gaps"].items() if count} == {
        "expired": 1,
        "unknown": 1,
    }
    assert numbers["replayed"] == 1 + 3


async def test_a_stream_that_ends_before_it_opens() -> None:
    broker = MockBroker()
    broker.fail_subscribe(BrokerUnavailableError("away"))
    push = LivePush(broker, public("news"), timing=Timing(subscribe_timeout=20), drain=DRAIN)
    async with push.lifespan(), anyio.create_task_group() as tasks:

        async def request() -> None:
            async with Client(push) as client, client.open("/"):
                pass

        tasks.start_soon(request)
        await let_pass(1)
        assert push.statistics()["opened"] == 1
        assert sum(push.statistics()["opened_by_resume"].values()) == 0
        await push.disconnect(channel="news")
    numbers = push.statistics()
    assert numbers["opened_by_resume"]["unopened"] == numbers["ended"]["revoked"] == 1
    assert sum(numbers["open_duration_seconds"]["counts"]) == 0


async def test_the_durations_of_streams_and_of_their_opening() -> None:
    async def authorize(request: StreamRequest) -> Grant:
        await anyio.sleep(float(request.query["wait"]))
        return Grant(channels="news")

    push = LivePush(MemoryBroker(), authorize, drain=DRAIN)
    async with push.lifespan(), Client(push) as client:
        async with client.open("/", query={"wait": "2"}):
            await let_pass(100)
        async with client.open("/", query={"wait": "0.2"}) as stream:
            await let_pass(3)
            await push.disconnect(channel="news")
            await stream.wait_ended()
        numbers = push.statistics()
    assert in_ranges(numbers["open_duration_seconds"]) == {2.5: 1, 0.25: 1}
    assert 2.2 <= numbers["open_duration_seconds"]["sum"] < 2.3
    durations = {
        reason: data for reason, data in numbers["stream_duration_seconds"].items() if any(data["counts"])
    }
    assert {reason: in_ranges(data) for reason, data in durations.items()} == {
        "disconnect": {120: 1},
        "revoked": {5: 1},
    }
    assert set(numbers["stream_duration_seconds"]) == set(EndReason)


async def test_a_stream_of_a_route_counts_as_one_of_the_application() -> None:
    service = SSEStreamService(MemoryBroker(), heartbeat_seconds=None, drain=DRAIN)
    push = service.push
    async with push.lifespan():
        stream = await service.open_stream(channel="news")
        size = len(await anext(stream.body))
        await push.publish("news", "hello")
        size += len(await anext(stream.body))
        await stream.body.aclose()
        numbers = push.statistics()
    assert numbers["sent_bytes"] == size
    assert sum(numbers["open_duration_seconds"]["counts"]) == numbers["opened_by_resume"]["fresh"] == 1


async def test_publishes_that_raise() -> None:
    broker = MockBroker()
    push = LivePush(broker, public("news"))
    with pytest.raises(InvalidEventError):
        await push.publish("news", "x", event="livepush.mine")
    with pytest.raises(TypeError):
        await push.publish("news", "x", idempotency_key="k")
    broker.fail_publish(KeyError("a defect of a broker"))
    with pytest.raises(KeyError):
        await push.publish("news", "x")
    broker.fail_publish(BrokerUnavailableError("away"))
    with pytest.raises(BrokerUnavailableError):
        await push.publish("news", "x", retry_for=2)
    broker.fail_publish(None)
    await push.publish("news", "x")
    numbers = push.statistics()
    assert numbers["publish_errors"] == {"unavailable": 1, "conflict": 0, "invalid": 2, "error": 1}
    assert numbers["published"] == sum(numbers["publish_duration_seconds"]["counts"]) == 1
    logged = LivePush(MemoryBroker(), public("news"))
    with pytest.raises(PositionConflictError):
        await logged.publish("news", "x", expected_position=Position("any", 7))
    assert logged.statistics()["publish_errors"]["conflict"] == 1


async def test_a_cancelled_publish_is_neither_an_event_nor_an_error() -> None:
    push = LivePush(MockBroker(), public("news"))
    with anyio.CancelScope() as scope:
        scope.cancel()
        await push.publish("news", "x")
    numbers = push.statistics()
    assert numbers["published"] == sum(numbers["publish_errors"].values()) == 0


async def test_bytes_and_events_are_those_that_clients_got() -> None:
    timing = Timing(heartbeat_interval=10, linger=1)
    push = LivePush(
        MemoryBroker(), lambda request: Grant(channels=request.query_all("c")), timing=timing, drain=DRAIN
    )
    async with push.lifespan(), Client(push) as client, AsyncExitStack() as stack:
        queries = ["c=a", "c=a", "c=b", "c=a&c=b"]
        streams = [await stack.enter_async_context(client.open("/", query=query)) for query in queries]
        for number in range(50):
            await push.publish("ab"[number % 2], {"n": number})
            if number % 7 == 0:
                await let_pass(11)
        for stream, count in zip(streams, (25, 25, 25, 50), strict=True):
            await stream.events(count)
        await push.drain()
        for stream in streams:
            await stream.wait_ended()
        numbers = push.statistics()
        assert numbers["sent_bytes"] == sum(map(bytes_of, streams))
        assert (numbers["delivered"], numbers["replayed"], numbers["published"]) == (125, 0, 50)


@pytest.mark.parametrize("overflow", ["drop_oldest", "resume"])
async def test_a_slow_client(overflow: str) -> None:
    """Its outbox shows while it waits, each gap that it gets counts once, and what it is sent again."""
    limits = Limits(outbox_events=5, overflow=overflow)  # type: ignore[arg-type]
    push = LivePush(MemoryBroker(), public("news"), limits=limits, drain=DRAIN)
    async with push.lifespan(), Client(push) as client, client.open("/", window=0) as stream:
        for number in range(4):
            await push.publish("news", number)
            await let_pass(0.1)
        assert push.statistics()["outbox_bytes"] > 0
        for number in range(4, 40):
            await push.publish("news", number)
        await let_pass(0.1)
        seen: list[ParsedEvent] = []
        while not seen or seen[-1].data != "39":
            seen.append(await stream.next_event(control=True))
        gaps = Counter(json.loads(event.data)["reason"] for event in seen if event.event == "livepush.gap")
        numbers = push.statistics()
        assert numbers["outbox_bytes"] == 0
        assert {reason: count for reason, count in numbers["gaps"].items() if count} == gaps
        assert bool(gaps) == (overflow == "drop_oldest")
        assert bool(numbers["replayed"]) == (overflow == "resume")
        assert numbers["delivered"] == 40


async def test_subscribers_count_only_as_listeners() -> None:
    push = LivePush(MemoryBroker(), public("news"), drain=DRAIN)
    async with push.lifespan():
        first = await push.publish("news", 0)
        await push.publish("news", 1)
        async with push.subscribe("news", last_event_id=first) as events:
            await anext(aiter(events))
            numbers = push.statistics()
    assert (numbers["channels"], numbers["opened"], numbers["sent_bytes"], numbers["replayed"]) == (
        1,
        0,
        0,
        0,
    )
    assert sum(numbers["opened_by_resume"].values()) == 0


class WatchingSlots(MemorySlotCap):
    """Slots that look at the numbers while the LivePush closes them."""

    push: LivePush

    def __init__(self) -> None:
        super().__init__(9)
        self.seen: list[int] = []

    async def aclose(self) -> None:
        self.seen.append(self.push.statistics()["delivered"])
        await super().aclose()


async def test_counts_only_grow_also_while_it_stops_and_starts_again() -> None:
    slots = WatchingSlots()
    push = slots.push = LivePush(MemoryBroker(), public("news"), slots=slots, drain=DRAIN)
    for turn in (1, 2):
        async with push.lifespan(), Client(push) as client, client.open("/") as stream:
            await push.publish("news", 1)
            await stream.next_event()
        assert push.statistics()["delivered"] == turn
        assert push.statistics()["opened"] == push.statistics()["opened_by_resume"]["fresh"] == turn
    assert slots.seen == [1, 2]


@pytest.fixture
def switching_often() -> Iterator[None]:
    """Let threads take turns a hundred times as often as usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(before / 100)
    yield
    sys.setswitchinterval(before)


@pytest.mark.real_time
async def test_any_thread_may_ask_for_them(switching_often: None) -> None:
    push = LivePush(
        MemoryBroker(),
        lambda request: Grant(channels=request.query["c"]),
        timing=Timing(linger=0),
        drain=DRAIN,
    )
    failures: list[BaseException] = []
    ended = threading.Event()

    def ask() -> None:
        try:
            while not ended.is_set():
                assert push.statistics()["streams"] >= 0
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    async with push.lifespan(), Client(push) as client:
        for thread in threads:
            thread.start()
        for number in range(60):
            async with client.open("/", query={"c": f"c{number}"}), client.open("/", query={"c": "all"}):
                pass
        ended.set()
        for thread in threads:
            thread.join()
    assert not failures


class AgeingBroker(MemoryBroker):
    """It takes three seconds to say how old an event is, by a clock that may be wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, Position]] = []
        self.age: float | None = 5.0
        self.error: Exception | None = None

    async def event_age(self, channel: str, position: Position) -> float | None:
        self.asked.append((channel, position))
        await anyio.sleep(3)
        if self.error is not None:
            raise self.error
        return self.age


async def test_the_delivery_lag_of_one_event_a_second() -> None:
    broker = AgeingBroker()
    push = LivePush(broker, public("news"), namespace="here", drain=DRAIN)
    async with push.lifespan(), Client(push) as client, client.open("/") as stream:
        for number in range(20):
            await push.publish("news", number)
        await stream.events(20)
        await let_pass(4)
        # It was 5 s old in the middle of the three seconds, which began at its delivery.
        assert [channel for channel, _ in broker.asked] == ["here:news"]
        lag = push.statistics()["delivery_lag_seconds"]
        assert in_ranges(lag) == {5: 1}
        assert lag["sum"] == pytest.approx(3.5, abs=0.1)
        for age, error in ((None, None), (5.0, BrokerUnavailableError("away"))):
            broker.age, broker.error = age, error
            await push.publish("news", "again")
            await stream.next_event()
            await let_pass(4)
        assert len(broker.asked) == 3
        assert sum(push.statistics()["delivery_lag_seconds"]["counts"]) == 1


async def test_the_hub_counts_the_reconnects_of_a_broker_that_does_not() -> None:
    broker = MockBroker()
    broker.fail_subscribe(BrokerUnavailableError("away"))
    push = LivePush(broker, public("news"), drain=DRAIN)
    async with push.lifespan(), Client(push) as client, client.open("/"):
        broker.fail_subscribe(None)
        await let_pass(10)
        assert push.statistics()["broker_reconnects"] == 1


class FailingObserver(Observer):
    interval = 1.0

    def __init__(self) -> None:
        self.calls: list[str] = []

    def sample(self) -> None:
        self.calls.append("sample")
        raise OSError("no space left on device")

    def opened(self, stream: ClientStream, seconds: float) -> None:
        self.calls.append("opened")
        raise ValueError("opened")

    def ended(self, stream: ClientStream, reason: EndReason, seconds: float) -> None:
        self.calls.append("ended")
        raise ValueError("ended")


async def test_what_an_observer_raises_affects_no_stream(caplog: pytest.LogCaptureFixture) -> None:
    observer = FailingObserver()
    push = LivePush(MemoryBroker(), public("news"), drain=DRAIN)
    push._observe(observer)
    async with push.lifespan(), Client(push) as client:
        async with client.open("/") as stream:
            await push.publish("news", "hello")
            assert (await stream.next_event()).data == "hello"
            await let_pass(10)
        with pytest.raises(RuntimeError, match="before it starts"):
            push._observe(Observer())
    assert Counter(observer.calls)["opened"] == Counter(observer.calls)["ended"] == 1
    assert 10 <= Counter(observer.calls)["sample"] <= 13
    assert observer.calls[-1] == "sample"
    assert 1 <= sum(record.levelno == logging.ERROR for record in caplog.records) <= 3
