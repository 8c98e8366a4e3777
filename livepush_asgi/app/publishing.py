"""Publishing: how an event gets from a program into a broker, whoever publishes and from where."""

import random
from collections.abc import Awaitable, Callable
from functools import lru_cache, partial
from typing import cast

import anyio

from ..brokers import Broker, HistoryBroker
from ..errors import BrokerUnavailableError
from ..wire.cursor import Position, event_id
from ..wire.event import Event, to_payload

RETRY_FIRST, RETRY_MOST = 0.05, 2.0


def event_of(data: object, event: str | None, id: str | int | None, retry: int | None) -> Event:
    """Return an Event of what a publisher gave. Raises InvalidEventError, and TypeError for two voices."""
    if not isinstance(data, Event):
        return Event(data, event, id, retry)
    if (event, id, retry) != (None, None, None):
        raise TypeError("an Event brings its own event, id and retry")
    return data


def publish_event(
    broker: Broker,
    channel: str,
    event: Event,
    *,
    idempotency_key: str | None = None,
    expected: Position | str | None = None,
    patience: float = 0.0,
) -> Awaitable[str | None]:
    """Publish, again and again for `patience` seconds while the broker is away; awaited, it is the id."""
    if isinstance(expected, str):
        expected = Position.of_id(expected)
    payload = to_payload(event.encode())
    if not patience:
        return _publish(broker, channel, event.id, payload, idempotency_key, expected)
    publish = partial(_publish, broker, channel, event.id, payload, idempotency_key, expected)
    return _with_patience(publish, patience)


async def _with_patience(publish: Callable[[], Awaitable[str | None]], patience: float) -> str | None:
    deadline, delay = anyio.current_time() + patience, RETRY_FIRST
    while True:
        try:
            return await publish()
        except BrokerUnavailableError:
            if anyio.current_time() + delay > deadline:
                raise
        await anyio.sleep(delay * random.uniform(0.5, 1.0))
        delay = min(RETRY_MOST, 2 * delay)


@lru_cache(maxsize=64)
def _keeps_history(kind: type) -> bool:
    # Asking a protocol costs as much as all the rest of a publish.
    return issubclass(kind, HistoryBroker)


async def _publish(
    broker: Broker,
    channel: str,
    id: str | int | None,
    payload: bytes,
    idempotency_key: str | None,
    expected: Position | None,
) -> str | None:
    own_id = None if id is None else str(id)
    # One that hands everything on to another says so only itself.
    if _keeps_history(type(broker)) or isinstance(broker, HistoryBroker):
        log = cast("HistoryBroker", broker)
        position = await log.append(channel, payload, idempotency_key=idempotency_key, expected=expected)
        return own_id or event_id(channel, position)
    if idempotency_key is not None or expected is not None:
        raise TypeError(
            f"{type(broker).__name__} keeps no history: it knows no idempotency_key and no expected"
        )
    await broker.publish(channel, payload)
    return own_id
