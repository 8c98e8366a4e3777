"""A broker with history on PostgreSQL: tables for the logs, and LISTEN/NOTIFY to tell that one has grown.

A notification holds no bytes and not many letters, and who is not connected misses it. So it tells only which
log has grown, and a subscription reads on in the table from where it is: payloads of any size come, in order,
each once. The newest `events` of each channel are kept. One connection per process does it all, to be closed
when the component has stopped: `async with aclosing(broker), push.lifespan(): ...`.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from hashlib import sha256

import asyncpg
from anyio import move_on_after

from livepush_asgi import (
    READ_BYTES,
    BrokerUnavailableError,
    MessagesLostError,
    Page,
    Position,
    PositionConflictError,
    Record,
    positioned,
)

# The last one is what asyncpg raises where the server's farewell and a query cross.
AWAY = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
# Run on every new connection: a server may come back without its data. Of two that create the same at the
# same time one fails, hence the lock. The function takes one round trip, and holds the log's row no longer;
# its notification is sent with the commit, so that whoever hears it can read the event.
SCHEMA = """SELECT pg_advisory_xact_lock(70725);
CREATE TABLE IF NOT EXISTS livepush_logs (log text PRIMARY KEY, last bigint NOT NULL DEFAULT 0,
    epoch text NOT NULL DEFAULT left(gen_random_uuid()::text, 13));
CREATE TABLE IF NOT EXISTS livepush_events (log text, number bigint, payload bytea NOT NULL, key text,
    PRIMARY KEY (log, number), UNIQUE (log, key));
CREATE OR REPLACE FUNCTION livepush_append(_log text, _payload bytea, _key text, _expected text, _keep bigint,
    OUT _epoch text, OUT _number bigint, OUT _conflict boolean) LANGUAGE plpgsql AS $$
DECLARE _last bigint; BEGIN
    INSERT INTO livepush_logs VALUES (_log) ON CONFLICT DO NOTHING;
    SELECT epoch, last INTO _epoch, _last FROM livepush_logs WHERE log = _log FOR UPDATE;
    SELECT number INTO _number FROM livepush_events WHERE log = _log AND key = _key;
    IF FOUND THEN RETURN; END IF;
    _number := _last;
    _conflict := _expected <> _epoch || '.' || _last AND NOT (_last = 0 AND _expected LIKE '%.0');
    IF _conflict THEN RETURN; END IF;
    _number := _last + 1;
    UPDATE livepush_logs SET last = _number WHERE log = _log;
    INSERT INTO livepush_events VALUES (_log, _number, _payload, _key);
    DELETE FROM livepush_events WHERE log = _log AND number <= _number - _keep;
    PERFORM pg_notify(_log, '');
END $$"""
APPEND = "SELECT * FROM livepush_append($1, $2, $3, $4, $5)"
BEGIN = "INSERT INTO livepush_logs VALUES ($1) ON CONFLICT DO NOTHING"
# One statement, so that it sees the bounds and the events at one moment.
READ = """WITH sizes AS (SELECT number, row_number() OVER events AS place,
        sum(octet_length(payload)) OVER events AS size FROM (SELECT number, payload FROM livepush_events
        WHERE log = $1 AND number > $2 ORDER BY number LIMIT $3) AS most WINDOW events AS (ORDER BY number)),
    page AS (SELECT event.* FROM livepush_events AS event JOIN sizes USING (number)
        WHERE log = $1 AND (size <= $4 OR place = 1))
SELECT epoch, last, number, payload,
    coalesce((SELECT min(number) FROM livepush_events WHERE log = $1), last + 1) AS first
FROM livepush_logs LEFT JOIN page USING (log) WHERE log = $1 ORDER BY number"""


def short(name: str) -> str:
    return sha256(name.encode()).hexdigest()[:48]  # PostgreSQL's own names end after 63 bytes.


class PostgresSubscription:
    def __init__(self, broker: "PostgresBroker", channel: str, place: Position) -> None:
        self._broker, self._channel, self._place = broker, channel, place
        self._waiting: deque[bytes] = deque()
        self._news, self._closed = asyncio.Event(), False

    def wake(self, *_: object) -> None:
        self._news.set()

    def end(self, *_: object) -> None:
        self._closed = True
        self._news.set()

    async def get_message(self, *, timeout: float) -> bytes | None:
        with move_on_after(timeout):
            while not self._waiting and not self._closed:
                self._news.clear()
                page = await self._broker.read(self._channel, self._place.offset, 100)
                if page.epoch != self._place.epoch:
                    self._place = Position(page.epoch, 0)
                    raise MessagesLostError("the log was lost, and another one begun")
                for record in page.records:
                    self._place = Position(page.epoch, record.offset)
                    self._waiting.append(positioned(self._place, record.payload))
                if not page.records:
                    await self._news.wait()
        if self._closed:
            raise BrokerUnavailableError("the subscription is closed, or the connection lost")
        return self._waiting.popleft() if self._waiting else None

    async def close(self) -> None:
        self.end()
        await self._broker.leave(self._channel, self)


class PostgresBroker:
    def __init__(self, dsn: str, *, events: int = 1000, timeout: float = 10.0) -> None:
        self._dsn, self._events, self._timeout, self._lock = dsn, events, timeout, asyncio.Lock()
        self._db: asyncpg.Connection[asyncpg.Record] | None = None

    async def aclose(self) -> None:
        if self._db is not None:
            with suppress(*AWAY):
                await self._db.close(timeout=self._timeout)

    async def _connect(self) -> "asyncpg.Connection[asyncpg.Record]":
        db = await asyncpg.connect(self._dsn, timeout=self._timeout, command_timeout=self._timeout)
        try:
            await db.execute(SCHEMA)
        except BaseException:
            db.terminate()
            raise
        return db

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
        try:
            async with self._lock:
                if self._db is None or self._db.is_closed():
                    if self._db is not None:
                        self._db.terminate()  # Its subscriptions must hear of it before it is forgotten.
                    self._db = await self._connect()
                yield self._db
        except AWAY as error:
            if self._db is not None and not isinstance(error, asyncpg.PostgresError):
                self._db.terminate()  # Not the server's own word, so who knows what this one still does.
            raise BrokerUnavailableError(f"PostgreSQL cannot be asked: {error!r}") from error

    async def publish(self, channel: str, payload: str | bytes) -> int:
        await self.append(channel, payload.encode() if isinstance(payload, str) else payload)
        return 0

    async def append(
        self,
        channel: str,
        payload: bytes,
        *,
        idempotency_key: str | None = None,
        expected_position: Position | None = None,
    ) -> Position:
        key = None if idempotency_key is None else short(idempotency_key)
        after = None if expected_position is None else str(expected_position)
        async with self._connected() as db:
            ((epoch, number, conflict),) = await db.fetch(
                APPEND, short(channel), payload, key, after, self._events
            )
        if conflict:
            raise PositionConflictError(channel, Position(epoch, number))
        return Position(epoch, number)

    async def read(self, channel: str, after: int, limit: int, *, max_bytes: int = READ_BYTES) -> Page:
        async with self._connected() as db:
            while not (rows := await db.fetch(READ, short(channel), after, limit, max_bytes)):
                await db.execute(BEGIN, short(channel))
        records = [Record(row["number"], row["payload"]) for row in rows if row["number"]]
        return Page(rows[0]["epoch"], rows[0]["first"], rows[0]["last"], tuple(records))

    async def subscribe(self, channel: str) -> PostgresSubscription:
        page = await self.read(channel, 0, 0)
        subscription = PostgresSubscription(self, channel, Position(page.epoch, page.last))
        async with self._connected() as db:
            await db.add_listener(short(channel), subscription.wake)
            db.add_termination_listener(subscription.end)
        return subscription

    async def leave(self, channel: str, subscription: PostgresSubscription) -> None:
        async with self._lock:
            if self._db is not None:
                self._db.remove_termination_listener(subscription.end)
                with suppress(*AWAY):  # Without a connection nothing comes either.
                    await self._db.remove_listener(short(channel), subscription.wake)
