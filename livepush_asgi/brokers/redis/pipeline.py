"""Pipeline: sends the commands of many callers together on one connection, each at most once.

One exchange sends all commands that wait; the next one starts when its replies have arrived. So 500
concurrent callers need one connection. The pipeline gives the connection back soon after the last reply.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple, Protocol
from weakref import ReferenceType, WeakKeyDictionary, ref

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from ...runtime.event_loop import asyncio_loop, start_task
from .connection import (
    Argument,
    Reply,
    drop,
    is_broken,
    named_timeout,
    pool_of,
    read_timeout,
    send,
)

# Bounds of one exchange, so that its timeout does not depend on how many commands wait.
MOST_COMMANDS = 1000
MOST_BYTES = 1_000_000
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


def pack(arguments: tuple[Argument, ...]) -> bytes:
    """Return the bytes of a command. Text is encoded as UTF-8, and not in the client's encoding.

    https://redis.io/docs/latest/develop/reference/protocol-spec/#sending-commands-to-a-redis-server
    """
    parts: list[int | bytes] = [len(arguments)]
    for argument in arguments:
        data = _encode(argument)
        parts += (len(data), data)
    return (b"*%d\r\n" + b"$%d\r\n%b\r\n" * len(arguments)) % tuple(parts)


def _encode(argument: Argument) -> bytes:
    if isinstance(argument, str):
        return argument.encode()
    return argument if isinstance(argument, bytes) else b"%d" % argument


class Pipeline:
    """The commands to one server. For one event loop at a time.

    `timeout` in seconds bounds each exchange: getting a connection, sending, and all replies. An idle
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
        # The event loop on which each connection has answered. See `_check_loop`.
        self._loops: WeakKeyDictionary[AbstractConnection, ReferenceType[asyncio.AbstractEventLoop]]
        self._loops = WeakKeyDictionary()

    def submit(self, *arguments: Argument) -> asyncio.Future[Reply]:
        """Queue a command and return the future of its reply, undecoded.

        A command whose future is cancelled is not sent, unless it was sent already. Commands are executed in
        the order of queueing. The future raises ResponseError for an error reply, and another RedisError or
        OSError if the command may or may not have been executed.
        """
        reply: asyncio.Future[Reply] = asyncio_loop().create_future()
        self.send(reply, *arguments)
        return reply

    def send(self, receiver: Receiver, *arguments: Argument) -> None:
        """Queue a command whose reply goes to `receiver`. See `submit`."""
        loop = asyncio_loop()
        call = _Call(pack(arguments), receiver)
        if self._task is not None and self._task.get_loop() is not loop:
            self._task = self._queued = None
            self._waiting.clear()
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
                self._fail_waiting(RedisConnectionError("the event loop ended before this was sent"))

    async def _use_connection(self) -> None:
        """Send the queued commands on one connection, until it breaks or no more commands come."""
        try:
            async with asyncio.timeout(self._timeout):
                connection = await self._acquire()
        except Exception as error:
            # The next attempt would fail with the same error.
            self._fail_waiting(named_timeout(error, self._timeout))
            return
        calls: deque[_Call] = deque()
        try:
            while await self._has_more(connection):
                calls = self._next_calls()
                await self._exchange(calls, connection)
            if self._idle_seconds:
                await drop(connection)
        except Exception as error:
            _fail(calls, named_timeout(error, self._timeout))
            await drop(connection)
        except BaseException:
            _fail(calls, RedisConnectionError("the event loop ended before the reply"))
            await drop(connection)
            raise
        finally:
            await self._pool.release(connection)

    async def _has_more(self, connection: AbstractConnection) -> bool:
        """Return whether commands are queued, now or while the idle connection is held."""
        for _ in range(self._idle_turns):
            if self._waiting:
                return True
            await asyncio.sleep(0)
        if self._idle_seconds and not self._waiting:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                # On Python 3.11 `asyncio.wait_for`, which redis-py uses, may swallow a cancellation:
                # https://github.com/python/cpython/issues/86296. Without this the loop would end 30 s late.
                raise asyncio.CancelledError
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
        while self._waiting and len(calls) < MOST_COMMANDS and size < MOST_BYTES:
            call = self._waiting.popleft()
            if not call.receiver.done():
                calls.append(call)
                size += len(call.command)
        return calls

    async def _exchange(self, calls: deque[_Call], connection: AbstractConnection) -> None:
        """Send the commands and pass on their replies. On an error `calls` has those without a reply."""
        timeout_of_one = read_timeout(connection, self._timeout)
        async with asyncio.timeout(self._timeout):
            await send(connection, b"".join([call.command for call in calls]))
            while calls:
                try:
                    reply = await connection.read_response(disable_decoding=True, timeout=timeout_of_one)
                except ResponseError as error:
                    _fail((calls.popleft(),), error)
                else:
                    receiver = calls.popleft().receiver
                    if not receiver.done():
                        receiver.set_result(reply)

    async def _acquire(self) -> AbstractConnection:
        connection: AbstractConnection = await self._pool.get_connection()
        try:
            if is_broken(connection):
                await _reconnect(connection)
            await self._check_loop(connection)
        except BaseException:
            await drop(connection)
            await self._pool.release(connection)
            raise
        return connection

    async def _check_loop(self, connection: AbstractConnection) -> None:
        """Reconnect a connection that an earlier event loop left in the pool.

        Such a connection still sends, and the server executes the command, but the reply cannot be read.
        """
        loop = asyncio.get_running_loop()
        known = self._loops.get(connection)
        if known is not None and known() is loop:
            return
        try:
            await send(connection, pack((b"PING",)))
            await connection.read_response(disable_decoding=True)
        except RuntimeError:
            await _reconnect(connection)
        self._loops[connection] = ref(loop)

    def _fail_waiting(self, error: Exception) -> None:
        calls = list(self._waiting)
        self._waiting.clear()
        _fail(calls, error)


def _fail(calls: Iterable[_Call], error: Exception) -> None:
    for call in calls:
        if not call.receiver.done():
            call.receiver.set_exception(error)


async def _reconnect(connection: AbstractConnection) -> None:
    await drop(connection)
    await connection.connect()
