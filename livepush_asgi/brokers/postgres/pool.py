"""The connections to append and to read, and the schema, which is created on first use."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeAlias

import asyncpg

from ...runtime.event_loop import start_task
from ..timeouts import BrokerTimeouts, no_answer
from .failures import FAILURES
from .schema import Schema, is_current

logger = logging.getLogger("livepush_asgi")

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

# The errors of a connection that used the tables before somebody dropped them.
_SCHEMA_IS_GONE = (
    asyncpg.UndefinedTableError,
    asyncpg.UndefinedFunctionError,
    asyncpg.UndefinedObjectError,
    asyncpg.InternalServerError,
)
# The name that pg_stat_activity shows.
_APPLICATION = "livepush_asgi"


class Server:
    """Where the server is, how to connect, and whether the schema was seen there."""

    def __init__(
        self, dsn: str | None, options: Mapping[str, Any], schema: Schema, timeouts: BrokerTimeouts
    ) -> None:
        self.schema = schema
        self.timeouts = timeouts
        settings = {"application_name": _APPLICATION, **options.get("server_settings", {})}
        self.options: dict[str, Any] = {"dsn": dsn, **options, "server_settings": settings}

    async def connect(self) -> Connection:
        """Return a connection to a server that has the schema."""
        connection: Connection = await asyncpg.connect(**self.options, timeout=self.timeouts.ping)
        try:
            await self.prepare(connection)
        except BaseException:
            connection.terminate()
            raise
        return connection

    async def prepare(self, connection: Connection) -> None:
        """Create or update the schema, unless it is there."""
        # Done for each connection: the server may have come back without its data.
        timeout = self.timeouts.ping
        if not is_current(await connection.fetchval(self.schema.installed, timeout=timeout)):
            try:
                await connection.execute(self.schema.sql(), timeout=timeout)
            except asyncpg.InsufficientPrivilegeError as error:
                raise PermissionError(f"the tables are absent or old, and {error}") from error


class Pool:
    """At most `size` connections, closed when none was used for `linger` seconds, or when the loop ends."""

    def __init__(self, server: Server, size: int, linger: float) -> None:
        self.loop = asyncio.get_running_loop()
        self.has_ended = False
        self._server = server
        self._linger = linger
        self._used_at = self.loop.time()
        self._users = 0
        self._pool: asyncpg.Pool[asyncpg.Record] = asyncpg.create_pool(
            **server.options,
            min_size=0,
            max_size=size,
            max_inactive_connection_lifetime=0,
            init=server.prepare,
            reset=_leave_as_it_is,
            timeout=server.timeouts.ping,
        )
        # One connection is left to read while the others wait for the rows of channels.
        self._appends = asyncio.Semaphore(size - 1)
        self._opened = asyncio.Lock()
        self._closing = asyncio.Event()
        self._task = start_task(self._watch(), "livepush postgres connections")

    def note_use(self) -> None:
        """Note that a call is about to use a connection."""
        self._used_at = self.loop.time()

    async def fetch(self, query: str, *arguments: object) -> list[asyncpg.Record]:
        """Run a query. Raises one of FAILURES; the server may have run it then."""
        timeout = self._server.timeouts.publish
        self._users += 1
        try:
            async with asyncio.timeout(timeout), self._acquired(timeout) as connection:
                return await connection.fetch(query, *arguments, timeout=timeout)
        except TimeoutError as error:
            if str(error):
                raise
            raise no_answer(timeout) from error
        finally:
            self._users -= 1
            self.note_use()

    @asynccontextmanager
    async def appending(self) -> AsyncIterator[None]:
        """Wait until an append may take a connection."""
        async with self._appends:
            yield

    @asynccontextmanager
    async def _acquired(
        self, timeout: float
    ) -> "AsyncIterator[asyncpg.pool.PoolConnectionProxy[asyncpg.Record]]":
        async with self._opened:
            await self._pool
        connection = await self._pool.acquire(timeout=timeout)
        try:
            yield connection
        except BaseException as error:
            if isinstance(error, _SCHEMA_IS_GONE):
                # The next connections look for it, and create it.
                await self._pool.expire_connections()
            if not isinstance(error, asyncpg.PostgresError):
                # Not the server's own word, so its answer may still come, or never.
                connection.terminate()
            raise
        finally:
            await self._pool.release(connection)

    async def aclose(self) -> None:
        """Close the connections, also those in use."""
        self._closing.set()
        await asyncio.wait([self._task])

    async def _watch(self) -> None:
        """Return when nothing has used a connection for `linger` seconds."""
        try:
            while self._users or self.loop.time() - self._used_at < self._linger:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._linger):
                        await self._closing.wait()
                        break
            self.has_ended = True
            with suppress(*FAILURES):
                async with asyncio.timeout(0 if self._users else self._server.timeouts.ping):
                    await self._pool.close()
        finally:
            self.has_ended = True
            self._pool.terminate()


async def _leave_as_it_is(connection: Connection) -> None:
    """Reset nothing: the statements of the broker leave nothing behind."""
