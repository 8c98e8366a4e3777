"""Listener: the one listening connection to a server, kept up while there are subscriptions."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine
from itertools import count
from math import inf

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from ...runtime.event_loop import asyncio_loop, start_task
from ..backoff import Backoff
from ..mailbox import MESSAGES_BETWEEN_PAUSES, Mailbox
from ..timeouts import BrokerTimeouts, no_answer
from .connection import (
    FAILURES,
    Reply,
    address_of,
    drop,
    named_timeout,
    pool_of,
    send,
    unavailable,
)
from .pipeline import pack
from .subscription_table import SubscriptionTable

logger = logging.getLogger("livepush_asgi")


class Listener:
    """Connects for the first mailbox, reconnects until that works, and disconnects after the last mailbox.

    With `sharded` it uses sharded pub/sub, for a node of a cluster. `on_trouble` is called when the
    connection breaks, and when the server refuses or ends a subscription.
    """

    def __init__(
        self,
        redis: Redis | ConnectionPool,
        timeouts: BrokerTimeouts,
        *,
        sharded: bool = False,
        on_trouble: Callable[[], None] = lambda: None,
    ) -> None:
        self._pool = pool_of(redis)
        self._timeouts = timeouts
        self._sharded = sharded
        self._on_trouble = on_trouble
        self._backoff = Backoff()
        self._table = SubscriptionTable(sharded=sharded)
        self._task: asyncio.Task[None] | None = None
        # Made anew with the task, for they belong to an event loop: a command is due; something was received.
        self._changed, self._received = asyncio.Event(), asyncio.Event()
        # Whether the server has once confirmed all channels on the current connection.
        self._is_up = False
        self._skip_pause = False
        self._fault: Exception | None = None
        self._lost_at: float | None = None

    @property
    def healthy(self) -> bool:
        """Whether the server has confirmed every channel and the connection is up; True without channels."""
        return (self._is_up and not self._table.refused) or not self._table.wanted

    @property
    def wanted(self) -> bool:
        """Whether there is a mailbox."""
        return self._table.wanted

    async def listen(self, mailbox: Mailbox) -> None:
        """Subscribe a mailbox. Returns when the server has confirmed it.

        Raises BrokerUnavailableError if it does not. In that case, and when cancelled, the mailbox is not
        subscribed.
        """
        self._start()
        if not self._table.wanted:
            # Connect at once, even if earlier mailboxes left a pause after failures.
            self._backoff.reset()
            self._skip_pause = True
        confirmed = asyncio.get_running_loop().create_future()
        self._table.add(mailbox, confirmed)
        self._changed.set()
        try:
            async with asyncio.timeout(self._timeouts.subscribe):
                await confirmed
        except FAILURES as error:
            self.leave(mailbox)
            cause: BaseException = error
            if isinstance(error, TimeoutError):
                cause = self._fault or no_answer(self._timeouts.subscribe)
            raise unavailable("subscribe", self._pool, cause, mailbox.channel) from cause
        except BaseException:
            self.leave(mailbox)
            raise

    def leave(self, mailbox: Mailbox) -> None:
        """Unsubscribe a mailbox, if it is subscribed."""
        self._table.remove(mailbox)
        # RuntimeError: the event loop is closed, and the connection with it.
        with contextlib.suppress(RuntimeError):
            self._changed.set()

    def _start(self) -> None:
        loop = asyncio_loop()
        if self._task is not None and self._task.get_loop() is not loop:
            if not self._task.get_loop().is_closed():
                raise RuntimeError("a RedisBroker is used on one event loop at a time; make one for each")
            # The earlier loop ended without closing the subscriptions.
            self._table = SubscriptionTable(sharded=self._sharded)
            self._task = None
        if self._task is None:
            self._changed, self._received = asyncio.Event(), asyncio.Event()
            self._task = start_task(self._run(), "livepush redis listener")

    async def _run(self) -> None:
        task = asyncio.current_task()
        try:
            while self._table.wanted:
                try:
                    await self._use_connection()
                except FAILURES as error:
                    self._note_lost(error)
                except Exception as error:
                    # A defect of this package is logged, and the listener goes on.
                    logger.exception("the reader of %s failed, reconnecting", address_of(self._pool))
                    self._note_lost(error)
                else:
                    continue
                await self._pause()
        finally:
            # A task of a closed loop may be finalized here; another one may have replaced it.
            if self._task is task:
                self._table.fail_waiting(RedisConnectionError("the event loop has ended"))
                self._table = SubscriptionTable(sharded=self._sharded)
                self._task = None

    async def _use_connection(self) -> None:
        """Connect, subscribe and read until the connection breaks; return when there are no mailboxes."""
        connection: AbstractConnection = self._pool.make_connection()
        # redis-py's retries would hide an outage.
        connection.retry = Retry(NoBackoff(), 0)
        try:
            async with asyncio.timeout(self._timeouts.ping):
                await connection.connect()
            await _first_to_end(self._read(connection), self._write(connection), self._test(connection))
        finally:
            self._is_up = False
            self._table.disconnect()
            await drop(connection)

    async def _write(self, connection: AbstractConnection) -> None:
        """Send the commands that are due, in batches, until there are no mailboxes."""
        while self._table.wanted:
            self._changed.clear()
            if commands := self._table.next_commands():
                await send(connection, b"".join(map(pack, commands)))
            self._note_settled()
            await self._changed.wait()
        # A mailbox that is added while the connection closes waits for the next connection.
        self._table.disconnect()

    async def _read(self, connection: AbstractConnection) -> None:
        for number in count(1):
            # Reading does not wait while there is something to read. Without a pause a burst of messages
            # would fill every outbox before one stream could send.
            if number % MESSAGES_BETWEEN_PAUSES == 0:
                await asyncio.sleep(0)
            try:
                # No timeout: a timer costs as much as reading a message, and `_test` notices silence.
                reply = await connection.read_response(disable_decoding=True, timeout=inf, push_request=True)
            except ResponseError as error:
                self._table.refuse(error)
                self._on_trouble()
            else:
                self._take(reply)
            self._received.set()

    async def _test(self, connection: AbstractConnection) -> None:
        """Send PING from time to time. Raises TimeoutError if nothing arrives."""
        while True:
            await asyncio.sleep(self._timeouts.ping_interval)
            if self._table.retry_refused():
                self._changed.set()
            self._received.clear()
            async with asyncio.timeout(self._timeouts.ping):
                await send(connection, pack((b"PING",)))
                await self._received.wait()

    def _take(self, reply: Reply) -> None:
        match reply:
            case [b"message" | b"smessage", bytes() as name, bytes() as payload]:
                self._table.deliver(name, payload)
            case [
                b"subscribe" | b"unsubscribe" | b"ssubscribe" | b"sunsubscribe" as verb,
                bytes() as name,
                _,
            ]:
                if not self._table.confirm(verb.upper(), name):
                    self._on_trouble()
                if self._table.due:
                    self._changed.set()
                self._note_settled()
            case _:
                # The reply to PING, or another push message of the server.
                pass

    async def _pause(self) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + self._backoff.next_delay()
        self._skip_pause = False
        while self._table.wanted and not self._skip_pause and loop.time() < until:
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    await self._changed.wait()

    def _note_lost(self, error: Exception) -> None:
        self._fault = error = named_timeout(error, self._timeouts.ping)
        self._on_trouble()
        if self._lost_at is None and self._table.wanted:
            self._lost_at = time.monotonic()
            logger.warning(
                "no listening connection to %s, trying until it works: %s", address_of(self._pool), error
            )

    def _note_settled(self) -> None:
        if self._is_up or not self._table.settled:
            return
        self._is_up = True
        self._fault = None
        self._backoff.reset()
        if self._lost_at is not None:
            away = time.monotonic() - self._lost_at
            self._lost_at = None
            logger.warning(
                "listening to %s again after %.1f s, %d channels",
                address_of(self._pool),
                away,
                len(self._table),
            )


async def _first_to_end(*coroutines: Coroutine[None, None, None]) -> None:
    """Run coroutines until one ends, and cancel the others. Raises the error of the one that ended."""
    tasks = [start_task(coroutine, "livepush redis connection") for coroutine in coroutines]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in tasks:
        if not task.cancelled():
            task.result()
