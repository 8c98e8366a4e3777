"""Kafka as a source: each record of a topic becomes an event, once."""

import logging
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from inspect import isawaitable
from typing import Protocol

try:
    from aiokafka.errors import KafkaError
except ModuleNotFoundError as error:
    raise ImportError("this needs aiokafka: pip install 'livepush_asgi[kafka]'") from error

from ..app.livepush import LivePush
from ..runtime.failure_log import FailureLog, fields

# How many records are taken at once; their offsets are committed together.
MAX_RECORDS = 500
# How long one call waits for records, in milliseconds. A cancellation ends it at once.
POLL = 1000
# How long an absent broker is waited for, in seconds. A consumer that does not poll for
# `max_poll_interval_ms`, five minutes by default, loses its partitions.
RETRY_FOR = 240.0


class Record(Protocol):
    """What `route` is given: a record of Kafka, such as `aiokafka.ConsumerRecord`."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: object
    value: object


class Consumer(Protocol):
    """A started consumer, such as `aiokafka.AIOKafkaConsumer`."""

    async def getmany(self, *, timeout_ms: int, max_records: int) -> Mapping[Hashable, Sequence[Record]]:
        """Wait for records and return them by partition."""
        ...

    async def commit(self, offsets: Mapping[Hashable, int]) -> None:
        """Store the offset of the next record of each partition. Raises KafkaError."""
        ...


#: The channel and the data of the event, as for `publish`; None to pass over the record.
Routed = tuple[str, object] | None
Route = Callable[[Record], Routed | Awaitable[Routed]]


async def bridge(push: LivePush, consumer: Consumer, route: Route, *, retry_for: float = RETRY_FOR) -> None:
    """Publish the records of a consumer until this call is cancelled.

    `route(record)` returns the channel and the data of the event, or None to pass over the record. The data
    may be an Event; `route` may be async. The records of a partition are published in their order. Offsets
    are committed after their events were published. A record that Kafka delivers again, after a crash or when
    partitions change hands, publishes no second event as long as the broker remembers its idempotency key,
    which names the topic, partition, offset and time of the record. So the broker must keep history.

    The consumer is started and stopped by the caller. It needs a `group_id` and `enable_auto_commit=False`.

    While the broker is unavailable, each publish is retried for `retry_for` seconds. Raises what `publish`,
    `route` and `getmany` raise; the record at which it failed is not committed, and comes again. So a `route`
    that meets a record which it cannot read returns None, or it stops the bridge each time.
    """
    await _Bridge(push, consumer, route, retry_for).run()


class _Bridge:
    def __init__(self, push: LivePush, consumer: Consumer, route: Route, retry_for: float) -> None:
        if not callable(route):
            raise TypeError(
                f"route is a function that returns the channel and the data of a record, not {route!r:.100}"
            )
        self._push = push
        self._consumer = consumer
        self._route = route
        self._retry_for = retry_for
        self._failures = FailureLog()

    async def run(self) -> None:
        while True:
            found = await self._consumer.getmany(timeout_ms=POLL, max_records=MAX_RECORDS)
            for partition, records in found.items():
                for index, record in enumerate(records):
                    try:
                        await self._publish(record)
                    except Exception:
                        # The records before it are published and need not come again.
                        if index:
                            await self._commit(partition, record.offset)
                        raise
                if records:
                    await self._commit(partition, records[-1].offset + 1)

    async def _publish(self, record: Record) -> None:
        routed = self._route(record)
        if isawaitable(routed):
            routed = await routed
        if routed is None:
            return
        channel, data = routed
        # The time tells records apart of a topic that was deleted and made again.
        key = f"{record.topic}/{record.partition}/{record.offset}/{record.timestamp}"
        await self._push.publish(channel, data, idempotency_key=key, retry_for=self._retry_for)

    async def _commit(self, partition: Hashable, offset: int) -> None:
        try:
            await self._consumer.commit({partition: offset})
        except KafkaError as error:
            # Another consumer has the partition now, or Kafka is away: the records may come again.
            self._failures.log(
                logging.WARNING,
                "offsets of Kafka cannot be committed: %r",
                error,
                extra=fields("offsets_uncommitted", error=repr(error)),
            )
