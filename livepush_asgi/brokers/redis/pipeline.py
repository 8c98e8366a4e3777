"""Pipeline: sends the commands of many callers together on one connection, each at most once.

One exchange sends all commands that wait; the next one starts when its replies have arrived. So 500
concurrent callers need one connection. The pipeline gives the connection back soon after the last reply.
"""

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ResponseError

from ...runtime.event_loop import asyncio_loop, start_task
from .connection import Argument, Reply, drop, is_broken, named_timeout, pool_of, raise_if_cancelled, send

# Bounds of one exchange, so that its timeout does not depend on how many commands wait.
MAX_COMMANDS = 1000
MAX_BYTES = 1_000_000
# In a pool of fewer connections an idle connection is not held: other users need it at once.
LEAST_POOL = 10


class Receiver(Protocol):
    """Takes one reply. A future is a Receiver; other classes save a turn of the event loop."""

    def done(self) -> bool:
        """Return whether the reply is not needed any more."""

    def set_result(self, reply: Reply, /) -> None:
        """Take the reply. Never waits, never raises."""

    def set_exception(self, error: Exception, /) -> None:
        """Take an error reply, or the reason why there is no reply."""


class _Call(NamedTuple):
    command: bytes
    receiver: Receiver
    fallback: Callable[[], None] | None


def pack(arguments: tuple[Argument, ...]) -> bytes:
    """Return the bytes of a command. Text is encoded as UTF-8, and not in the client's encoding.

    https://redis.io/docs/latest/develop/reference/protocol-spec/#sending-commands-to-a-redis-server
    """
    parts: list[int | bytes] = [len(arguments)]
    for argument in arguments:
        if not isinstance(argument, bytes):
            argument = argument.encode() if isinstance(argument, str) else b"%d" % argument
        parts.append(len(argument))
        parts.append(argument)
    return (b"*%d\r\n" + b"$%d\r\n%b\r\n" * len(arguments)) % tuple(parts)


class Pipeline:
    """The commands to one server. For one event loop at a time.

    `timeout` in seconds bounds getting a connection, and each exchange: sending, and all replies. An idle
    connection is held for `idle_turns` turns of the event loop: a caller that awaits one command after the
    other sends the next one within two turns, and to return the connection in between would cost more.
    `idle_seconds` is for a pool without other users: an idle connection is held for this long, then closed.
    """

    def __init__(
        self, redis: Redis | ConnectionPool, *, timeout: float, idle_turns: int = 0, idle_seconds: float = 0.0
    ) -> None:
        self._pool = pool_of(redis)
        self._timeout = timeout
        self._idle_seconds = idle_seconds
        is_large = getattr(self._pool, "max_connections", LEAST_POOL) >= LEAST_POOL
        self._idle_turns = idle_turns if is_large else 0
        self._waiting: deque[_Call] = deque()
        # Set when a command is queued, while an idle connection is kept.
        self._queued: asyncio.Event | None = None
        self._task: asyncio.Task[None] | None = None

    def submit(self, *arguments: Argument) -> asyncio.Future[Reply]:
        """Queue a command and return the future of its reply, undecoded.

        A command whose future is cancelled is not sent, unless it was sent already. Commands are executed in
        the order of queueing. The future raises ResponseError for an error reply, and another RedisError or
        OSError if the command may or may not have been executed.
        """
        reply: asyncio.Future[Reply] = asyncio_loop().create_future()
        self.send(reply, *arguments)
        return reply

    def send(
        self, receiver: Receiver, *arguments: Argument, fallback: Callable[[], None] | None = None
    ) -> None:
        """Queue a command whose reply goes to `receiver`. See `submit`.

        If the server does not know the script that the command names, `fallback` is called instead.
        """
        loop = asyncio_loop()
        call = _Call(pack(arguments), receiver, fallback)
        if self._task is not None and self._task.get_loop() is not loop:
            # The earlier loop ended. Its task may be finalized later, and then fails its own calls.
            self._task, self._queued, self._waiting = None, None, deque()
        self._waiting.append(call)
        if self._task is None:
            self._task = start_task(self._run(), "livepush redis pipeline")
        elif self._queued is not None:
            self._queued.set()

    async def _run(self) -> None:
        task = asyncio.current_task()
        try:
            while self._waiting:
                await self._use_connection()
        finally:
            # A task of a closed loop may be finalized here; another one may have replaced it.
            if self._task is task:
                self._task = None
                _fail(self._waiting, RedisConnectionError("the event loop ended before this was sent"))

    async def _use_connection(self) -> None:
        """Send the queued commands on one connection, until it breaks or no more commands come."""
        connection: AbstractConnection | None = None
        # Without a connection all commands fail: the next attempt would end with the same error.
        calls = self._waiting
        try:
            async with asyncio.timeout(self._timeout) as limit:
                connection = await self._pool.get_connection()
                if is_broken(connection):
                    await drop(connection)
                    await connection.connect()
                while await self._has_more(connection, limit):
                    self._extend(limit)
                    calls = self._next_calls()
                    await self._exchange(calls, connection)
                if self._idle_seconds:
                    await drop(connection)
        except BaseException as error:
            if connection is not None:
                await drop(connection)
            if not isinstance(error, Exception):
                _fail(calls, RedisConnectionError("the event loop ended before the reply"))
                raise
            _fail(calls, named_timeout(error, self._timeout))
        finally:
            if connection is not None:
                await self._pool.release(connection)

    def _extend(self, limit: asyncio.Timeout) -> None:
        """Give the next exchange its time, or up to a tenth less: a timer for each would cost too much."""
        raise_if_cancelled()
        now, end = asyncio.get_running_loop().time(), limit.when()
        if end is None or end < now + 0.9 * self._timeout:
            limit.reschedule(now + self._timeout)

    async def _has_more(self, connection: AbstractConnection, limit: asyncio.Timeout) -> bool:
        """Return whether commands are queued, now or while the idle connection is held."""
        for _ in range(self._idle_turns):
            if self._waiting:
                return True
            await asyncio.sleep(0)
        if self._idle_seconds and not self._waiting:
            raise_if_cancelled()
            limit.reschedule(None)
            self._queued = asyncio.Event()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._idle_seconds):
                    await self._queued.wait()
            self._queued = None
            return bool(self._waiting) and not is_broken(connection)
        return bool(self._waiting)

    def _next_calls(self) -> deque[_Call]:
        calls: deque[_Call] = deque()
        size = 0
        while self._waiting and len(calls) < MAX_COMMANDS and size < MAX_BYTES:
            call = self._waiting.popleft()
            if not call.receiver.done():
                calls.append(call)
                size += len(call.command)
        return calls

    async def _exchange(self, calls: deque[_Call], connection: AbstractConnection) -> None:
        """Send the commands and pass on their replies. On an error `calls` has those without a reply."""
        # A timer for each reply costs as much as reading it. The client's own counts only if it is shorter.
        own = connection.socket_timeout
        timeout_of_one = math.inf if own is not None and own >= self._timeout else None
        await send(connection, b"".join([call.command for call in calls]))
        while calls:
            try:
                reply = await connection.read_response(disable_decoding=True, timeout=timeout_of_one)
            except ResponseError as error:
                call = calls.popleft()
                if call.fallback is not None and isinstance(error, NoScriptError):
                    call.fallback()
                else:
                    _fail(deque([call]), error)
            else:
                receiver = calls.popleft().receiver
                if not receiver.done():
                    receiver.set_result(reply)


def _fail(calls: deque[_Call], error: Exception) -> None:
    failed = list(calls)
    calls.clear()
    for call in failed:
        if not call.receiver.done():
            call.receiver.set_exception(error)
