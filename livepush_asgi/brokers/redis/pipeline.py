"""Batch: the commands of many callers, sent together on one connection, each at most once.

A flight is one pipeline: it takes along all that waits, and the next one starts when its replies are
in. So 500 callers at once need one connection, not 500. Soon after the last reply no task lives.
"""

import asyncio
from collections import deque
from collections.abc import Iterable
from weakref import ReferenceType, WeakKeyDictionary, ref

from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from ...loop import asyncio_loop, start_task
from .command import Receiver, pack
from .connection import (
    Argument,
    Connection,
    Pool,
    Reply,
    drop,
    is_broken,
    no_answer,
    patience,
    pool_of,
    send,
)

# Bounds of one flight, so that its deadline is about the server and not about the length of the queue.
MOST_COMMANDS = 1000
MOST_BYTES = 1_000_000
# In a pool of fewer connections others need each as soon as it is free.
LEAST_POOL = 10


class _Call:
    __slots__ = ("command", "receiver")

    def __init__(self, command: bytes, receiver: Receiver) -> None:
        self.command = command
        self.receiver = receiver


class Batch:
    """A pipeline on the client's pool, for one event loop at a time.

    `timeout` in seconds bounds each flight: getting a connection, sending, and all replies. `linger` is for
    how many turns of the event loop a connection is kept when all replies are in: who sends one command
    after the other asks for the next within two, and to give it back and take it again costs more.
    """

    def __init__(self, redis: Redis | Pool, *, timeout: float, linger: int = 0) -> None:
        self._pool = pool_of(redis)
        self._timeout = timeout
        self._linger = linger if getattr(self._pool, "max_connections", LEAST_POOL) >= LEAST_POOL else 0
        self._waiting: deque[_Call] = deque()
        self._flying: asyncio.Task[None] | None = None
        # Which connections have answered on which event loop. See `_prove`.
        self._proven: WeakKeyDictionary[Connection, ReferenceType[asyncio.AbstractEventLoop]]
        self._proven = WeakKeyDictionary()

    def submit(self, *arguments: Argument) -> asyncio.Future[Reply]:
        """Queue a command and return what will be its reply, undecoded.

        Cancel the future and the command is not sent, if it has not left yet. Commands are carried
        out in the order in which they were queued. The future raises ResponseError for an error
        reply, and another RedisError or OSError when the fate of the command is unknown.
        """
        reply: asyncio.Future[Reply] = asyncio_loop().create_future()
        self.send(reply, *arguments)
        return reply

    def send(self, receiver: Receiver, *arguments: Argument) -> None:
        """Queue a command and say who gets its reply. See `submit`."""
        loop = asyncio_loop()
        call = _Call(pack(arguments), receiver)
        if self._flying is not None and self._flying.get_loop() is not loop:
            self._flying = None
            self._waiting.clear()
        self._waiting.append(call)
        if self._flying is None:
            self._flying = start_task(self._fly(), "livepush batch")

    async def call(self, *arguments: Argument) -> Reply:
        """Send a command and return its reply. See `submit`."""
        return await self.submit(*arguments)

    async def _fly(self) -> None:
        task = asyncio.current_task()
        try:
            while self._waiting:
                await self._use_connection()
        finally:
            # The finalizer of a task that an earlier loop left behind comes here too, and is not meant.
            if self._flying is task:
                self._flying = None
                _fail(self._take_all(), RedisConnectionError("the event loop ended before this was sent"))

    async def _use_connection(self) -> None:
        """Carry what waits and what comes meanwhile, on one connection, until it breaks or all is done."""
        try:
            async with asyncio.timeout(self._timeout):
                connection = await self._board()
        except Exception as error:
            # All who wait would only wait for the same again.
            _fail(self._take_all(), self._told(error))
            return
        calls: deque[_Call] = deque()
        try:
            while calls := await self._gather_calls():
                await self._carry(calls, connection)
        except Exception as error:
            _fail(calls, self._told(error))
            await drop(connection)
        except BaseException:
            _fail(calls, RedisConnectionError("the event loop ended before the reply"))
            await drop(connection)
            raise
        finally:
            await self._pool.release(connection)

    async def _gather_calls(self) -> deque[_Call]:
        """Return what waits, or comes within a few turns of the event loop."""
        for _ in range(self._linger):
            if self._waiting:
                break
            await asyncio.sleep(0)
        return self._next_calls()

    async def _carry(self, calls: deque[_Call], connection: Connection) -> None:
        """Send the commands and take their replies; those left in `calls` have none."""
        each = patience(connection, self._timeout)
        async with asyncio.timeout(self._timeout):
            await send(connection, b"".join([call.command for call in calls]))
            while calls:
                try:
                    reply = await connection.read_response(disable_decoding=True, timeout=each)
                except ResponseError as error:
                    _fail((calls.popleft(),), error)
                else:
                    receiver = calls.popleft().receiver
                    if not receiver.done():
                        receiver.set_result(reply)

    async def _board(self) -> Connection:
        connection = await self._pool.get_connection()
        try:
            if is_broken(connection):
                await drop(connection)
                await connection.connect()
            await self._prove(connection)
        except BaseException:
            await drop(connection)
            await self._pool.release(connection)
            raise
        return connection

    async def _prove(self, connection: Connection) -> None:
        """See that the connection belongs to this event loop, before anything is entrusted to it.

        The pool hands out what an earlier loop has left in it. Such a connection still sends, and
        the server still acts, but the reply cannot be read.
        """
        loop = asyncio.get_running_loop()
        proof = self._proven.get(connection)
        if proof is not None and proof() is loop:
            return
        try:
            await connection.send_packed_command(connection.pack_commands([(b"PING",)]), check_health=False)
            await connection.read_response(disable_decoding=True)
        except RuntimeError:
            await drop(connection)
            await connection.connect()
        self._proven[connection] = ref(loop)

    def _next_calls(self) -> deque[_Call]:
        calls: deque[_Call] = deque()
        size = 0
        while self._waiting and len(calls) < MOST_COMMANDS and size < MOST_BYTES:
            call = self._waiting.popleft()
            if not call.receiver.done():
                calls.append(call)
                size += len(call.command)
        return calls

    def _take_all(self) -> list[_Call]:
        calls = list(self._waiting)
        self._waiting.clear()
        return calls

    def _told(self, error: Exception) -> Exception:
        # A deadline raises a TimeoutError without a word.
        return no_answer(self._timeout) if isinstance(error, TimeoutError) and not str(error) else error


def _fail(calls: Iterable[_Call], error: Exception) -> None:
    for call in calls:
        if not call.receiver.done():
            call.receiver.set_exception(error)
