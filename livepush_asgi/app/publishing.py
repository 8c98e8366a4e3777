"""Publishing: one event, with retries, or a job: a series of events with a start and an end."""

import logging
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from functools import lru_cache, partial
from secrets import token_urlsafe
from typing import TypeGuard

import anyio

from ..brokers import Broker, HistoryBroker
from ..brokers.backoff import retry_unavailable
from ..brokers.transaction import Connection, TransactionBroker
from ..errors import PositionConflictError
from ..grant import check_channel
from ..runtime.failure_log import FailureLog, fields
from ..wire.cursor import Position, event_id
from ..wire.encode import Encode, encoded
from ..wire.event import Event, plain_payload, to_payload

#: The name of the first event of a job.
START_EVENT = "start"
# How long publishing the end of a job that failed or was cancelled may take, in seconds.
END_TIMEOUT = 5.0


#: One encoded event, ready for a broker: the channel, the payload, the caller's own event id, the idempotency
#: key and the expected position. One is made for every event, so it is a plain tuple.
Publication = tuple[str, bytes, str | None, str | None, Position | None]


def prepare(
    channel: str,
    data: object,
    event: str | None,
    id: str | int | None,
    retry: int | None,
    idempotency_key: str | None,
    expected_position: Position | str | None,
    encode: Encode | None,
) -> Publication:
    """Validate and encode the arguments of `LivePush.publish`. Without `encode`, Event encodes the data.

    Raises what `check_channel` and Event raise, ValueError for an `expected_position` that is no event id of
    `publish`, and TypeError if both an Event and one of `event`, `id` and `retry` are given.
    """
    check_channel(channel)
    if isinstance(expected_position, str):
        expected_position = Position.of_id(expected_position)
    has_more = event is not None or id is not None or retry is not None
    if not isinstance(data, Event):
        if encode is not None:
            data = encoded(data, encode)
        if not has_more:
            return channel, plain_payload(data), None, idempotency_key, expected_position
        data = Event(data, event, id, retry)
    elif has_more:
        raise TypeError("an Event has its own event, id and retry: give them to the Event, not to publish")
    own_id = None if data.id is None else str(data.id)
    return channel, to_payload(data.encode()), own_id, idempotency_key, expected_position


async def publish(broker: Broker, publication: Publication) -> str | None:
    """Publish once and return the event id. Raises what the broker raises."""
    channel, payload, own_id, idempotency_key, expected_position = publication
    if keeps_history(broker):
        position = await broker.append(
            channel, payload, idempotency_key=idempotency_key, expected_position=expected_position
        )
        return own_id or event_id(channel, position)
    if idempotency_key is not None or expected_position is not None:
        raise TypeError(
            f"{type(broker).__name__} keeps no history: it takes no idempotency_key and no expected_position"
        )
    await broker.publish(channel, payload)
    return own_id


async def publish_with_retries(broker: Broker, publication: Publication, retry_for: float) -> str | None:
    """Publish, retry for `retry_for` seconds while the broker is unavailable, and return the event id."""
    return await retry_unavailable(partial(publish, broker, publication), retry_for)


def publish_in(broker: Broker, connection: Connection, publication: Publication) -> str | Awaitable[str]:
    """Publish in the transaction of a connection. Return the event id, or an awaitable of it.

    Raises TypeError if the logs of the broker take part in no transaction.
    """
    if not isinstance(broker, TransactionBroker):
        raise TypeError(
            f"{type(broker).__name__} takes part in no transaction of a database: PostgresBroker does"
        )
    channel, payload, own_id, idempotency_key, expected_position = publication
    position: Position | Awaitable[Position] = broker.append_in(
        connection, channel, payload, idempotency_key=idempotency_key, expected_position=expected_position
    )
    if isinstance(position, Position):
        return own_id or event_id(channel, position)
    return _id_of(channel, own_id, position)


async def _id_of(channel: str, own_id: str | None, appending: Awaitable[Position]) -> str:
    position = await appending
    return own_id or event_id(channel, position)


def keeps_history(broker: Broker) -> TypeGuard[HistoryBroker]:
    """Return `isinstance(broker, HistoryBroker)`, which alone costs as much as the rest of a publish."""
    # A broker that wraps another may define its methods on the instance only.
    return _is_history_broker(type(broker)) or isinstance(broker, HistoryBroker)


@lru_cache(maxsize=64)
def _is_history_broker(kind: type) -> bool:
    return issubclass(kind, HistoryBroker)


#: `LivePush.publish`.
Publish = Callable[..., Awaitable[str | None]]


async def publish_job(
    publish: Publish,
    channel: str,
    items: AsyncIterable[object],
    *,
    event: str | None,
    end_event: str,
    retry_for: float,
    failures: FailureLog,
) -> bool:
    """Publish the items between a start and an end event. See `LivePush.publish_job`."""
    if not isinstance(items, AsyncIterable):
        raise TypeError(f"a job publishes the items of an async iterator, not a {type(items).__name__}")
    # Validate the event names before the job starts.
    for name in (event, end_event):
        Event("", name)
    try:
        start = await publish(
            channel,
            Event({}, START_EVENT),
            # The key is unique to this call, so that a retry publishes no second start event.
            idempotency_key=token_urlsafe(12),
            expected_position=Position("any", 0),
            retry_for=retry_for,
        )
    except PositionConflictError:
        return False
    await _Job(publish, channel, str(start), end_event, retry_for, failures).run(items, event)
    return True


class _Job:
    """A job that has started. Its idempotency keys contain the id of its start event."""

    def __init__(
        self,
        publish: Publish,
        channel: str,
        start: str,
        end_event: str,
        retry_for: float,
        failures: FailureLog,
    ) -> None:
        self._publish = publish
        self._channel = channel
        self._start = start
        self._end_event = end_event
        self._retry_for = retry_for
        self._failures = failures
        self._count = 0

    async def run(self, items: AsyncIterable[object], name: str | None) -> None:
        try:
            async for item in items:
                event = None if isinstance(item, Event) else name
                await self._add(item, event, str(self._count + 1), self._retry_for)
                self._count += 1
            await self._end(None, self._retry_for)
        except BaseException as error:
            await self._end_early("failed" if isinstance(error, Exception) else "cancelled")
            raise
        finally:
            if isinstance(items, AsyncGenerator):
                await items.aclose()

    async def _end_early(self, error: str) -> None:
        """Publish the end event of a job that failed or was cancelled. Shielded from cancellation."""
        with anyio.CancelScope(shield=True), anyio.move_on_after(END_TIMEOUT):
            try:
                await self._end(error, END_TIMEOUT)
            except Exception as failure:
                self._failures.log(
                    logging.WARNING,
                    "the end of the job on %r cannot be published: %s",
                    self._channel,
                    failure,
                    extra=fields("job_end_unpublished", channel=self._channel, error=str(failure)),
                )
            return
        self._failures.log(
            logging.WARNING,
            "the end of the job on %r was not published within %s s",
            self._channel,
            END_TIMEOUT,
            extra=fields("job_end_unpublished", channel=self._channel, seconds=END_TIMEOUT),
        )

    async def _end(self, error: str | None, retry_for: float) -> None:
        event = Event({"count": self._count, "error": error}, self._end_event)
        await self._add(event, None, "end", retry_for)

    async def _add(self, data: object, event: str | None, number: str, retry_for: float) -> None:
        key = f"{self._start}/{number}"
        await self._publish(self._channel, data, event=event, idempotency_key=key, retry_for=retry_for)
