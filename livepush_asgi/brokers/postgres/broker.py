"""PostgresBroker: pub/sub over PostgreSQL with history, and appends in a transaction of the application."""

import asyncio
import os
import random
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, Self, overload
from weakref import WeakSet

import asyncpg

from ...errors import PositionConflictError
from ...runtime.event_loop import asyncio_loop, spawn
from ...settings import value_or_default
from ...wire.cursor import Position
from .. import READ_BYTES, Page, Subscription
from ..faults import Fault
from ..history import History
from ..mailbox import Mailbox
from ..timeouts import BrokerTimeouts, no_answer
from ..transaction import AsyncConnection, Connection, SyncConnection, SyncCursor, append_on
from .failures import FAILURES, address_of, unavailable
from .listening import Listener
from .pool import Pool, Server
from .schema import Row, Schema, digest, outcome_of, page_of, shown

# The most events and bytes that one call appends.
_MAX_EVENTS, _MAX_BYTES = 200, 256 * 1024
# About how often a process with subscriptions cleans, in seconds.
_CLEAN_INTERVAL = 60.0


class Append(NamedTuple):
    """An event to append, the future of its position, and the loop's time at which its caller gives up."""

    payload: bytes
    idempotency_key: str | None
    expected_position: Position | None
    added: asyncio.Future[Position]
    deadline: float


class PostgresBroker:
    """Pub/sub with history over PostgreSQL 13 or later, with asyncpg.

    `dsn` is `postgresql://user@host/database`; without it, asyncpg reads the environment (`PGHOST`, ...).
    `options` are further keyword arguments of `asyncpg.connect`: a password, TLS.

    `append_in` adds an event in a transaction of the application: the event exists if and only if the
    transaction commits. LivePush.publish_in uses it.

    The events are in three tables, whose names begin with `prefix`: `livepush`, or `schema.livepush` in
    another schema than `public`. The broker creates them on first use. If its user may not create tables, let
    their owner run the SQL that `PostgresBroker.schema(prefix)` returns. `history` bounds each log by events,
    bytes and age. Processes that listen delete old rows now and then; there is no job to set up. A log to
    which nothing was added and no process listened for twice the age, and at least ten minutes, is forgotten,
    and later events have another epoch. An `idempotency_key` is remembered for the age, at least for five
    minutes; for a day if `age` is None.

    A process has one connection that listens, whatever the number of channels, and at most `max_connections`
    others, which are closed when none was used for `linger` seconds. The listening one needs the server's own
    address: a pooler in transaction mode (PgBouncer) lets no LISTEN through. When it breaks, the broker
    reconnects until that works; each subscription then reports that messages may be lost, and the logs have
    them.

    A server may come back without its last commits, from a backup or as a standby. A log goes on under
    another epoch after each start of the server; clients that received lost events are told of a gap, and all
    clients if the database may lack events that nobody has seen. `timeouts` says how long the broker waits
    for the server. Use one broker on one event loop at a time, and close it after the component has stopped:
    `async with PostgresBroker(dsn)`.
    """

    def __init__(
        self,
        dsn: str | None = None,
        *,
        history: History | None = None,
        prefix: str = "livepush",
        # Any: the options of asyncpg.connect have many types.
        options: Mapping[str, Any] | None = None,
        timeouts: BrokerTimeouts | None = None,
        max_connections: int = 4,
        linger: float = 10.0,
    ) -> None:
        check_dsn(dsn)
        if max_connections < 2:
            raise ValueError(f"max_connections is 2 or more, not {max_connections!r}")
        self._timeouts = value_or_default("timeouts", timeouts, BrokerTimeouts)
        #: The bounds of each log.
        self.history = value_or_default("history", history, History)
        self._schema = Schema(prefix, self.history)
        self._server = Server(dsn, options or {}, self._schema, self._timeouts)
        self._address = address_of(dsn)
        self._max_connections = max_connections
        self._linger = linger
        self._append = f"SELECT set_config('lock_timeout', $9, true), {self._schema.append_numbered}"
        self._pool: Pool | None = None
        self._listener: Listener | None = None
        # The reconnects of earlier listeners.
        self._reconnects = 0
        # The appends of each channel that has a call under way.
        self._waiting: dict[str, list[Append]] = {}
        self._clean_at = 0.0
        _brokers.add(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    @staticmethod
    def schema(prefix: str = "livepush") -> str:
        """Return the SQL that creates the tables and functions, or updates them; for migrations.

        Running it again is harmless. The user of the broker needs SELECT, INSERT, UPDATE and DELETE on the
        tables.
        """
        return Schema(prefix, History()).sql()

    @property
    def healthy(self) -> bool:
        """Whether the listening connection is up; True without channels."""
        return self._listener is None or self._listener.loop.is_closed() or self._listener.fault is None

    @property
    def faults(self) -> tuple[Fault, ...]:
        """Why it is not healthy. Empty while it is healthy."""
        return () if self._listener is None or self._listener.loop.is_closed() else self._listener.faults

    @property
    def reconnects(self) -> int:
        """How often the listening connection was up again after it had been lost."""
        return self._reconnects + (0 if self._listener is None else self._listener.reconnects)

    async def publish(self, channel: str, payload: str | bytes) -> int:
        """Append a payload to the channel's log. Returns 0: the subscribers are not counted.

        Raises BrokerUnavailableError if the server is away or refuses.
        """
        await self.append(channel, payload.encode() if isinstance(payload, str) else bytes(payload))
        return 0

    async def append(
        self,
        channel: str,
        payload: bytes,
        *,
        idempotency_key: str | None = None,
        expected_position: Position | None = None,
    ) -> Position:
        """Append and deliver an event. See `HistoryBroker`.

        Waits while a transaction is open that has added to the same channel, and raises
        BrokerUnavailableError after four fifths of `BrokerTimeouts.publish`.
        """
        pool = self._connect()
        added = self._queue(pool, channel, [(payload, idempotency_key, expected_position)])
        (outcome,) = await self._outcomes(added)
        return _raised(outcome)

    async def append_batch(
        self, channel: str, payloads: Sequence[bytes], *, expected_position: Position
    ) -> Position:
        """Append and deliver events in order, as many as fit into one call. See `BatchBroker`."""
        events = [
            (payload, None, expected_position.at(expected_position.offset + number))
            for number, payload in enumerate(payloads[:_MAX_EVENTS])
        ]
        first, *others = await self._outcomes(self._queue(self._connect(), channel, events))
        last = _raised(first)
        for outcome in others:
            if isinstance(outcome, PositionConflictError):
                # Another call has appended in between, or the log has another epoch since the first event.
                break
            last = outcome
        return last

    def _queue(
        self, pool: Pool, channel: str, events: Sequence[tuple[bytes, str | None, Position | None]]
    ) -> list[asyncio.Future[Position]]:
        """Have events appended, with the next call to their channel."""
        # Raises UnicodeError at once: it would fail the other events of the call.
        digest(channel), [digest(key or "") for _, key, _ in events]
        deadline = pool.loop.time() + self._timeouts.publish
        appends = [Append(*event, pool.loop.create_future(), deadline) for event in events]
        if channel in self._waiting:
            self._waiting[channel] += appends
        else:
            self._waiting[channel] = appends
            spawn(partial(self._send, pool, channel, self._waiting), "livepush postgres append")
        return [append.added for append in appends]

    async def _outcomes(
        self, added: Sequence[asyncio.Future[Position]]
    ) -> list[Position | PositionConflictError]:
        """Wait until events are appended. Raises BrokerUnavailableError if one of them may not be."""
        outcomes: list[Position | PositionConflictError] = []
        try:
            async with asyncio.timeout(self._timeouts.publish):
                for outcome in await asyncio.gather(*added, return_exceptions=True):
                    if not isinstance(outcome, Position | PositionConflictError):
                        raise outcome
                    outcomes.append(outcome)
        except FAILURES as error:
            cause = error if str(error) else no_answer(self._timeouts.publish)
            raise unavailable("publish", self._address, cause, self._schema.grant) from error
        return outcomes

    @overload
    def append_in(
        self,
        connection: AsyncConnection,
        channel: str,
        payload: bytes,
        *,
        idempotency_key: str | None = None,
        expected_position: Position | None = None,
    ) -> Awaitable[Position]: ...

    @overload
    def append_in(
        self,
        connection: SyncConnection | SyncCursor,
        channel: str,
        payload: bytes,
        *,
        idempotency_key: str | None = None,
        expected_position: Position | None = None,
    ) -> Position: ...

    def append_in(
        self,
        connection: Connection,
        channel: str,
        payload: bytes,
        *,
        idempotency_key: str | None = None,
        expected_position: Position | None = None,
    ) -> Position | Awaitable[Position]:
        """Append an event in the transaction of a connection to this database. See `HistoryBroker.append`.

        `connection` is of asyncpg or psycopg, or Django's. With an asynchronous one, await the result. The
        event is delivered when the transaction commits; if it rolls back, nothing was appended. Until then
        other publishers of the channel wait, so append late in the transaction, and to several channels in
        one order. Raises RuntimeError if no transaction is open, PositionConflictError, and the errors of the
        driver.
        """

        def result(outcomes: object) -> Position:
            if not isinstance(outcomes, list):
                raise TypeError(f"the driver returned no list for an array: {outcomes!r:.100}")
            return _raised(outcome_of(channel, outcomes[0]))

        arguments = self._arguments(channel, [(payload, idempotency_key, expected_position)])
        return append_on(
            connection, self._schema.append_numbered, self._schema.append_formatted, arguments, result
        )

    async def read(self, channel: str, after: int, limit: int, *, max_bytes: int = READ_BYTES) -> Page:
        """Return a part of the channel's log. See `HistoryBroker`."""
        asked = [digest(channel)], [max(after, 0)], [max(limit, 0)]
        pool = self._connect()
        try:
            while True:
                rows = await pool.fetch(self._schema.read, *asked, max_bytes, *self._schema.bounds)
                page = page_of([Row(*row) for _, *row in rows])
                if page is not None:
                    return page
                await pool.fetch(self._schema.begin)
        except FAILURES as error:
            raise unavailable("read", self._address, error, self._schema.grant) from error

    async def event_age(self, channel: str, position: Position) -> float | None:
        """Return how long ago an event was appended, in seconds; None if the log has dropped it.

        The rest of a transaction that appended it is in that time.
        """
        try:
            rows = await self._connect().fetch(self._schema.age_of, digest(channel), position.offset)
        except FAILURES as error:
            raise unavailable("read", self._address, error, self._schema.grant) from error
        return max(0.0, rows[0][0]) if rows else None

    async def subscribe(self, channel: str) -> Subscription:
        """Return a subscription, which gets what is committed from now on.

        Raises BrokerUnavailableError if the server refuses, or does not confirm within
        `BrokerTimeouts.subscribe`.
        """
        key, listener = digest(channel), self._listen()
        mailbox = Mailbox(channel, partial(self._leave, listener, key))
        try:
            async with asyncio.timeout(self._timeouts.subscribe):
                await listener.add(key, mailbox)
        except BaseException as error:
            cause = error
            if isinstance(error, TimeoutError):
                cause = listener.fault or no_answer(self._timeouts.subscribe)
            self._leave(listener, key, mailbox)
            if not isinstance(error, FAILURES):
                raise
            raise unavailable("subscribe", self._address, cause, self._schema.grant) from cause
        return mailbox

    async def aclose(self) -> None:
        """Close the connections. Call it after the last use."""
        loop = asyncio_loop()
        self._reconnects = self.reconnects
        listener, self._listener = self._listener, None
        if listener is not None and listener.loop is loop:
            await listener.aclose()
        pool, self._pool = self._pool, None
        if pool is not None and pool.loop is loop:
            await pool.aclose()

    def _connect(self) -> Pool:
        loop = asyncio_loop()
        pool = self._pool
        if pool is None or pool.has_ended or pool.loop.is_closed():
            # An earlier event loop may have ended with appends that wait.
            if pool is None or pool.loop is not loop:
                self._waiting = {}
            pool = self._pool = Pool(self._server, self._max_connections, self._linger)
        elif pool.loop is not loop:
            raise RuntimeError("a PostgresBroker is used on one event loop at a time; make one for each")
        pool.note_use()
        return pool

    def _listen(self) -> Listener:
        loop = asyncio_loop()
        listener = self._listener
        if listener is None or listener.loop.is_closed():
            self._reconnects = self.reconnects
            listener = self._listener = Listener(self._server, self._address, self._tend)
        elif listener.loop is not loop:
            raise RuntimeError("a PostgresBroker is used on one event loop at a time; make one for each")
        return listener

    @staticmethod
    def _leave(listener: Listener, key: str, mailbox: Mailbox) -> None:
        if not listener.loop.is_closed():
            listener.remove(key, mailbox)

    def _arguments(
        self, channel: str, events: Sequence[tuple[bytes, str | None, Position | None]]
    ) -> list[object]:
        return [
            digest(channel),
            shown(channel),
            [payload for payload, _, _ in events],
            [None if key is None else digest(key) for _, key, _ in events],
            [None if expected is None else str(expected) for _, _, expected in events],
            *self._schema.bounds,
        ]

    async def _send(self, pool: Pool, channel: str, queues: dict[str, list[Append]]) -> None:
        """Append what waits for a channel, one call at a time: it carries what came during the last one."""
        waiting = queues[channel]
        sent: list[Append] = []
        try:
            while waiting:
                async with pool.appending():
                    sent = _take(waiting)
                    if sent:
                        outcomes = await self._append_all(pool, channel, sent)
                        for append, text in zip(sent, outcomes, strict=True):
                            _settle(append, outcome_of(channel, text))
        except Exception as error:
            for append in (*sent, *waiting):
                _settle(append, error)
        finally:
            del queues[channel]
            # The event loop ends.
            for append in (*sent, *waiting):
                _settle(append, ConnectionAbortedError("the event loop has ended"))

    async def _append_all(self, pool: Pool, channel: str, sent: Sequence[Append]) -> list[str]:
        arguments = self._arguments(channel, [append[:3] for append in sent])
        while True:
            try:
                (row,) = await pool.fetch(self._append, *arguments, self._lock_timeout(pool, sent))
            except asyncpg.SerializationError:
                # The database has another isolation level by default, and the row has changed meanwhile.
                continue
            outcomes: list[str] = row[1]
            return outcomes

    def _lock_timeout(self, pool: Pool, sent: Sequence[Append]) -> str:
        """Return how long the server may wait for the row of the channel, in milliseconds.

        It gives up before the callers do, so that they know that nothing was appended.
        """
        left = min(append.deadline for append in sent) - pool.loop.time() - self._timeouts.publish / 5
        if left < 0.001:
            raise TimeoutError("all connections wait for transactions that have published and are open")
        return str(round(left * 1000))

    def _tend(self, keys: list[str]) -> None:
        """Clean now and then, in the background."""
        now = asyncio.get_running_loop().time()
        if now >= self._clean_at:
            self._clean_at = now + _CLEAN_INTERVAL * random.uniform(0.5, 1.5)
            spawn(partial(self._clean, keys), "livepush postgres cleaner")

    async def _clean(self, keys: list[str]) -> None:
        with suppress(*FAILURES):  # Next time.
            pool = self._connect()
            if self._schema.age is not None:
                await pool.fetch(self._schema.see, keys, self._schema.age)
            while (await pool.fetch(self._schema.clean, self._schema.age, self._schema.remember))[0][0]:
                pass


def check_dsn(dsn: object) -> None:
    """Raise TypeError or ValueError for what asyncpg could not read."""
    if dsn is not None and not isinstance(dsn, str):
        raise TypeError(f"dsn is a text, such as 'postgresql://user@host/database', not {type(dsn).__name__}")
    if dsn is not None and not dsn.startswith(("postgresql://", "postgres://")):
        scheme = dsn.partition("://")[0] if "://" in dsn else "another text"
        raise ValueError(f"dsn begins with 'postgresql://', and this one with {scheme!r}")


def _take(waiting: list[Append]) -> list[Append]:
    """Remove and return the appends that fit into one call, without those that are given up."""
    size = count = 0
    while count < min(len(waiting), _MAX_EVENTS) and size < _MAX_BYTES:
        size += len(waiting[count].payload)
        count += 1
    taken = [append for append in waiting[:count] if not append.added.done()]
    del waiting[:count]
    return taken


def _settle(append: Append, outcome: Position | Exception) -> None:
    if append.added.done():
        return
    if isinstance(outcome, Position):
        append.added.set_result(outcome)
    else:
        append.added.set_exception(outcome)


def _raised(outcome: Position | PositionConflictError) -> Position:
    if isinstance(outcome, PositionConflictError):
        raise outcome
    return outcome


_brokers: WeakSet[PostgresBroker] = WeakSet()
# The connections that a forked process has inherited. To collect them would disturb the event loop of the
# parent process.
_inherited: list[object] = []


def _reset_after_fork() -> None:
    """Let a forked process open connections of its own."""
    for broker in list(_brokers):
        _inherited.append((broker._pool, broker._listener, broker._waiting))
        broker._pool = broker._listener = None
        broker._waiting = {}


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
