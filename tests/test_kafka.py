"""`contrib.kafka.bridge`: each record becomes one event, through crashes, absent brokers and rebalances.

No Kafka runs here. The records are those of aiokafka; the consumer is the test's own, over logs in memory.
It does what the bridge relies on: it delivers from the committed offset on, in the order of each partition.
"""

import math
from collections.abc import AsyncIterator, Callable, Hashable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import cast

import anyio
import pytest
from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.errors import CommitFailedError, KafkaError

from livepush_asgi import (
    BrokerUnavailableError,
    Event,
    LivePush,
    MemoryBroker,
    MockBroker,
    Position,
    public,
)
from livepush_asgi.contrib.kafka import Record, Routed, bridge
from livepush_asgi.testing import EventStreamParser
from livepush_asgi.wire.event import from_payload


class Kafka:
    """The logs of a topic, and what its consumer group has committed."""

    def __init__(self) -> None:
        self.logs: dict[TopicPartition, list[Record]] = {}
        self.committed: dict[TopicPartition, int] = {}

    def add(self, key: str, *values: str, partition: int = 0, timestamp: int = 1_700_000_000_000) -> None:
        log = self.logs.setdefault(TopicPartition("orders", partition), [])
        for value in values:
            fields = (key.encode(), value.encode(), None, len(key), len(value), ())
            record: Record = ConsumerRecord("orders", partition, len(log), timestamp, 0, *fields)
            log.append(record)


class Consumer:
    """A member of the group. It begins where the group has committed, as after a start or a rebalance."""

    def __init__(self, kafka: Kafka) -> None:
        self._kafka = kafka
        self._next = dict(kafka.committed)
        #: How many calls of `commit` raise from now on.
        self.failing: float = 0
        self.all_read = anyio.Event()

    async def getmany(self, *, timeout_ms: int, max_records: int) -> Mapping[Hashable, Sequence[Record]]:
        found = {}
        for partition, log in self._kafka.logs.items():
            start = self._next.get(partition, 0)
            found[partition] = log[start : start + max_records]
            self._next[partition] = start + len(found[partition])
        if not any(found.values()):
            self.all_read.set()
            await anyio.sleep(timeout_ms / 1000)
        return cast("Mapping[Hashable, Sequence[Record]]", found)

    async def commit(self, offsets: Mapping[Hashable, int]) -> None:
        await anyio.lowlevel.checkpoint()
        if self.failing:
            self.failing -= 1
            error: KafkaError = CommitFailedError()
            raise error
        self._kafka.committed.update(cast("Mapping[TopicPartition, int]", offsets))


def by_key(record: Record) -> Routed:
    assert isinstance(record.key, bytes)
    assert isinstance(record.value, bytes)
    return record.key.decode(), record.value


async def data(push: LivePush, channel: str) -> list[str]:
    page = await push.broker.read(channel, 0, 1000)  # type: ignore[attr-defined]
    parser = EventStreamParser()
    return [event.data for record in page.records for event in parser.feed(from_payload(record.payload))]


@asynccontextmanager
async def bridged(
    push: LivePush, consumer: Consumer, route: Callable[[Record], object] = by_key
) -> AsyncIterator[None]:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: bridge(push, consumer, route))  # type: ignore[arg-type]
        yield
        with anyio.fail_after(3600):
            await consumer.all_read.wait()
        tasks.cancel_scope.cancel()


async def test_each_record_is_an_event_and_is_committed() -> None:
    push, kafka = LivePush(MemoryBroker(), public("a")), Kafka()
    kafka.add("a", *"123")
    kafka.add("b", *"xy", partition=1)
    async with bridged(push, Consumer(kafka)):
        pass
    assert [await data(push, "a"), await data(push, "b")] == [list("123"), list("xy")]
    assert list(kafka.committed.values()) == [3, 2]


async def test_a_route_may_wait_name_an_event_and_pass_over_a_record() -> None:
    async def route(record: Record) -> Routed:
        await anyio.sleep(1)
        return None if record.offset == 1 else ("a", Event(record.offset, "order"))

    push, kafka = LivePush(MemoryBroker(), public("a")), Kafka()
    kafka.add("k", *"xyz")
    async with bridged(push, Consumer(kafka), route):
        pass
    assert await data(push, "a") == ["0", "2"]
    assert list(kafka.committed.values()) == [3]


async def test_after_a_crash_between_publish_and_commit_a_record_is_no_second_event() -> None:
    push, kafka = LivePush(MemoryBroker(), public("a")), Kafka()
    kafka.add("a", *"123")
    crashed = Consumer(kafka)
    crashed.failing = math.inf
    async with bridged(push, crashed):
        pass
    assert await data(push, "a") == list("123")
    assert kafka.committed == {}
    kafka.add("a", "4")
    async with bridged(push, Consumer(kafka)):
        pass
    assert await data(push, "a") == list("1234")


async def test_a_commit_that_fails_is_logged_once_and_the_next_one_makes_good(
    caplog: pytest.LogCaptureFixture,
) -> None:
    push, kafka = LivePush(MemoryBroker(), public("a")), Kafka()
    consumer = Consumer(kafka)
    consumer.failing = 5
    for partition in range(6):
        kafka.add("a", "1", partition=partition)
    async with bridged(push, consumer):
        pass
    assert len(kafka.committed) == 1
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "CommitFailedError" in caplog.text


async def test_a_topic_that_was_made_again_has_other_records() -> None:
    push, first, second = LivePush(MemoryBroker(), public("a")), Kafka(), Kafka()
    first.add("a", "1")
    second.add("a", "2", timestamp=1_800_000_000_000)
    for kafka in (first, second):
        async with bridged(push, Consumer(kafka)):
            pass
    assert await data(push, "a") == ["1", "2"]


async def test_a_record_that_route_cannot_read_stops_the_bridge_and_is_not_committed() -> None:
    push, kafka = LivePush(MemoryBroker(), public("a")), Kafka()
    kafka.add("a", "1", "2")
    kafka.add("", "3")
    kafka.add("a", "4")
    for _ in range(2):
        # It begins with the record again: an empty key is no channel.
        with pytest.raises(ValueError, match="a channel name is not empty"):
            await bridge(push, Consumer(kafka), by_key)
        assert list(kafka.committed.values()) == [2]
    async with bridged(push, Consumer(kafka), lambda record: by_key(record) if record.key else None):
        pass
    assert await data(push, "a") == ["1", "2", "4"]


class Away(MemoryBroker):
    """Is away until the clock says so."""

    until = 0.0

    async def append(
        self,
        channel: str,
        payload: bytes,
        *,
        idempotency_key: str | None = None,
        expected_position: Position | None = None,
    ) -> Position:
        position = await super().append(
            channel, payload, idempotency_key=idempotency_key, expected_position=expected_position
        )
        if anyio.current_time() < self.until:
            raise BrokerUnavailableError("the answer is lost")
        return position


@pytest.mark.virtual_time
async def test_while_the_broker_is_away_nothing_is_lost_doubled_or_out_of_order() -> None:
    broker = Away()
    push, kafka = LivePush(broker, public("a")), Kafka()
    kafka.add("a", *"12345")
    broker.until = anyio.current_time() + 100
    async with bridged(push, Consumer(kafka)):
        pass
    assert await data(push, "a") == list("12345")
    broker.until = anyio.current_time() + 1000
    kafka.add("a", "6")
    with pytest.raises(BrokerUnavailableError):
        await bridge(push, Consumer(kafka), by_key)
    assert list(kafka.committed.values()) == [5]


async def test_what_cannot_work_raises() -> None:
    kafka = Kafka()
    kafka.add("a", "1")
    with pytest.raises(TypeError, match="keeps no history"):
        await bridge(LivePush(MockBroker(), public("a")), Consumer(kafka), by_key)
    with pytest.raises(TypeError, match="route is a function"):
        await bridge(LivePush(MemoryBroker(), public("a")), Consumer(kafka), "a")  # type: ignore[arg-type]
