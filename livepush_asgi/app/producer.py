"""A resumable producer: what one iterator yields, published once, in a channel with a start and an end."""

import logging
from collections.abc import AsyncGenerator, AsyncIterable
from secrets import token_urlsafe
from typing import Protocol

import anyio

from ..errors import PositionConflictError
from ..wire.cursor import Position
from ..wire.event import Event

logger = logging.getLogger("livepush_asgi")

START_EVENT = "start"
# How long, in seconds, telling the end of a job that failed or was cancelled may take.
END_TIMEOUT = 5.0


class Publish(Protocol):
    """What a producer needs: a publish over a broker with history."""

    async def __call__(
        self,
        channel: str,
        data: object,
        *,
        idempotency_key: str,
        expected: Position | None = None,
        patience: float = 0.0,
    ) -> object:
        """Publish an event, and return its id."""
        ...


async def produce(
    publish: Publish,
    channel: str,
    items: AsyncIterable[object],
    *,
    event: str | None,
    end_event: str,
    patience: float,
) -> bool:
    """Publish what `items` yields between a start and an end event; False if somebody has begun before."""
    if not isinstance(items, AsyncIterable):
        raise TypeError(f"a stream is of an async iterator, not of a {type(items).__name__}")
    # A name that no event can have is found before anything begins.
    for name in (event, end_event):
        Event("", name)
    try:
        # The key is this start's own, so that trying again is no second start.
        start = await publish(
            channel,
            Event({}, START_EVENT),
            idempotency_key=token_urlsafe(12),
            expected=Position("any", 0),
            patience=patience,
        )
    except PositionConflictError:
        return False
    await _Production(publish, channel, str(start), event, end_event, patience).run(items)
    return True


class _Production:
    """A job that has begun. Its keys come from its start, so that an event tried again is one event."""

    def __init__(
        self, publish: Publish, channel: str, start: str, event: str | None, end_event: str, patience: float
    ) -> None:
        self._publish = publish
        self._channel = channel
        self._start = start
        self._event = event
        self._end_event = end_event
        self._patience = patience
        self._count = 0

    async def run(self, items: AsyncIterable[object]) -> None:
        try:
            async for item in items:
                made = item if isinstance(item, Event) else Event(item, self._event)
                await self._add(made, str(self._count + 1), self._patience)
                self._count += 1
            await self._end(None, self._patience)
        except BaseException as error:
            await self._tell("failed" if isinstance(error, Exception) else "cancelled")
            raise
        finally:
            if isinstance(items, AsyncGenerator):
                await items.aclose()

    async def _tell(self, error: str) -> None:
        """Publish the end of what did not come to its own, whatever is being cancelled."""
        with anyio.CancelScope(shield=True), anyio.move_on_after(END_TIMEOUT):
            try:
                await self._end(error, END_TIMEOUT)
                return
            except Exception as failure:
                logger.warning("the end of %r cannot be told: %s", self._channel, failure)
                return
        logger.warning("the end of %r cannot be told within %s s", self._channel, END_TIMEOUT)

    async def _end(self, error: str | None, patience: float) -> None:
        await self._add(Event({"count": self._count, "error": error}, self._end_event), "end", patience)

    async def _add(self, event: Event, number: str, patience: float) -> None:
        key = f"{self._start}/{number}"
        await self._publish(self._channel, event, idempotency_key=key, patience=patience)
