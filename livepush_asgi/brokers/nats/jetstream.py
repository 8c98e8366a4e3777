"""JetStreamBroker: pub/sub over NATS with history, with one connection for everything."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from ...settings import value_or_default
from ...wire.cursor import Position
from ...wire.event import payload_bytes
from .. import READ_BYTES, Page
from ..history import History
from ..timeouts import BrokerTimeouts
from .broker import NatsBroker
from .failures import FAILURES, unavailable
from .log import Logs
from .stream import Stream, live_payload_of


class JetStreamBroker(NatsBroker):
    """Pub/sub over NATS with JetStream, which keeps a log of each channel. Needs a server from 2.11 on.

    One stream holds all logs. The broker makes it if it is absent, and does not change an existing one.
    `history` bounds each log by events and age. Its `size` has no effect, since JetStream can bound bytes for
    a whole stream only: `max_size` (bytes) bounds the logs of all channels together. Beyond it the oldest
    events go, whatever their channel. So a busy channel can push out the log of a quiet one, whose clients
    are then told of a gap: choose it large enough for all channels. `replicas` is for a cluster. An
    `idempotency_key` is remembered for `idempotency_window` seconds, while the log has the event.

    An event is stored on the subject `livepush-log.CHANNEL`, and the server republishes it on
    `livepush.CHANNEL`. Every publisher has to use this class: a payload from `NatsBroker` or
    `nats pub livepush.CHANNEL` is in no log, and the application refuses it with a log line. No other program
    may publish on the subjects of the logs: a foreign message makes the log begin anew.

    A log that is neither read nor added to for twice the history's age is forgotten, and later events have
    another epoch. An append or a read raises after `BrokerTimeouts.publish`, which
    includes the time for which an append waits for others of its channel. For the rest see `NatsBroker`.
    """

    #: JetStream bounds the bytes of all channels together, and not those of each: see `max_size`.
    bounds_bytes = False

    def __init__(
        self,
        servers: str | Sequence[str] = "nats://127.0.0.1:4222",
        *,
        history: History | None = None,
        max_size: int = 1024**3,
        replicas: int = 1,
        idempotency_window: float = 120.0,
        stream: str | None = None,
        prefix: str = "livepush",
        # Any: the options of nats.connect have many types.
        options: Mapping[str, Any] | None = None,
        timeouts: BrokerTimeouts | None = None,
        linger: float = 10.0,
    ) -> None:
        super().__init__(servers, prefix=prefix, options=options, timeouts=timeouts, linger=linger)
        #: The bounds of each log.
        self.history = history = value_or_default("history", history, History)
        store = Stream(
            self._connect,
            prefix.replace(".", "_") if stream is None else stream,
            prefix,
            history,
            size=max_size,
            replicas=replicas,
            window=idempotency_window,
        )
        self._logs = Logs(store, history.events)

    async def publish(self, channel: str, payload: str | bytes) -> int:
        """Append a payload to the channel's log. Returns 0: NATS does not count the subscribers.

        Raises BrokerUnavailableError if the server is away or refuses.
        """
        await self.append(channel, payload_bytes(payload))
        return 0

    async def append(
        self,
        channel: str,
        payload: bytes,
        *,
        idempotency_key: str | None = None,
        expected_position: Position | None = None,
    ) -> Position:
        """Append and deliver an event. See `HistoryBroker`."""
        async with self._attempt("publish"):
            return await self._logs.append(channel, payload, idempotency_key, expected_position)

    async def read(self, channel: str, after: int, limit: int, *, max_bytes: int = READ_BYTES) -> Page:
        """Return a part of the channel's log. See `HistoryBroker`."""
        async with self._attempt("read"):
            return await self._logs.read(channel, after, limit, max_bytes)

    async def event_age(self, channel: str, position: Position) -> float | None:
        """Return how long ago an event was added, in seconds; None if the log has dropped it."""
        async with self._attempt("read"):
            return await self._logs.age(channel, position)

    @asynccontextmanager
    async def _attempt(self, attempt: str) -> AsyncIterator[None]:
        timeout = self._settings.timeouts.publish
        # First, since it raises a RuntimeError with the fix if no event loop of asyncio runs.
        self._connect()
        try:
            async with asyncio.timeout(timeout):
                yield
        except FAILURES as error:
            late = TimeoutError(f"not done within {timeout:g} s, which includes waiting for other publishers")
            raise unavailable(attempt, self._settings.address, error if str(error) else late) from error

    _decode = staticmethod(live_payload_of)
