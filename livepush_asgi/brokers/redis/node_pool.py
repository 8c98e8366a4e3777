"""NodePool: connections to one node of a cluster, with the settings of a RedisCluster.

The client's own connections are not used: how it keeps them differs from version to version, and it must not
be asked to find its way again on our account. Idle ones are closed after a while, and when the event loop
ends, so that nobody has to close a broker.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, cast

from redis.asyncio import RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from ...loop import start_task
from .connection import Connection, drop

# How long a connection may be idle, in seconds.
IDLE = 30.0


class NodePool:
    """For one event loop at a time."""

    def __init__(self, redis: RedisCluster, host: str, port: int) -> None:
        settings: dict[str, Any] = redis.get_connection_kwargs()
        # It knows which of the client's settings are those of a connection.
        node = ClusterNode(host, port, **settings)
        self._make = cast("Callable[..., Connection]", node.connection_class)
        self._settings = {**node.connection_kwargs, "host": host}
        self._idle: deque[tuple[Connection, float]] = deque()
        self._closer: asyncio.Task[None] | None = None

    @property
    def connection_kwargs(self) -> Mapping[str, object]:
        """The client's settings."""
        return self._settings

    def make_connection(self) -> Connection:
        """Return a new connection, which the pool does not keep."""
        # Who uses it has a backoff of its own. Retries in here would hide that the node is away.
        return self._make(**{**self._settings, "retry": Retry(NoBackoff(), 0)})

    async def get_connection(self) -> Connection:
        """Return an idle or a new connection, ready to be used."""
        self._leave_loop()
        connection = self._idle.pop()[0] if self._idle else self.make_connection()
        try:
            await connection.connect()
        except BaseException:
            await drop(connection)
            raise
        return connection

    async def disconnect(self) -> None:
        """Close all idle connections."""
        while self._idle:
            await drop(self._idle.popleft()[0])

    # Any, for the pool that this stands in for.
    async def release(self, connection: Any) -> None:
        """Take a connection back."""
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        if task is not None and task.cancelling():
            # The event loop ends, then. It would not wait for another task that closes this one.
            await drop(connection)
            return
        self._leave_loop()
        self._idle.append((connection, loop.time()))
        if self._closer is None:
            self._closer = start_task(self._close_idle(), "livepush redis idle")

    def _leave_loop(self) -> None:
        """Forget what an earlier event loop left behind: it cannot be used on this one."""
        if self._closer is not None and self._closer.get_loop() is not asyncio.get_running_loop():
            self._idle.clear()
            self._closer = None

    async def _close_idle(self) -> None:
        task, loop, idle = asyncio.current_task(), asyncio.get_running_loop(), self._idle
        try:
            while idle:
                await asyncio.sleep(idle[0][1] + IDLE - loop.time())
                while idle and idle[0][1] + IDLE <= loop.time():
                    await drop(idle.popleft()[0])
        finally:
            if self._closer is task:
                self._closer = None
                while idle:
                    await drop(idle.popleft()[0])
