"""Listener: the one listening connection to Redis, kept up for as long as anybody listens."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from ...loop import asyncio_loop, start_task
from ..backoff import Backoff
from ..mailbox import Mailbox
from .connection import (
    FAILURES,
    Connection,
    Pool,
    Reply,
    address_of,
    drop,
    no_answer,
    pool_of,
    unavailable,
)
from .subscription_table import Roster

# As many as fill no outbox, and enough that giving others their turn costs nothing.
MESSAGES_BETWEEN_YIELDS = 32

logger = logging.getLogger("livepush_asgi")


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long to wait for the server, in seconds.

    A connection on which nothing came for `ping_interval` is asked for a sign of life, and given up
    when none comes within `ping_timeout`; so much has a new connection to become ready, too.
    """

    subscribe_timeout: float
    ping_interval: float
    ping_timeout: float

    def __post_init__(self) -> None:
        for name in ("subscribe_timeout", "ping_interval", "ping_timeout"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is in seconds and more than 0, not {getattr(self, name)!r}")


class Listener:
    """Opened by the first mailbox and closed with the last. Reconnects for ever in between.

    `sharded` is for a node of a cluster. `on_trouble` hears that the connection broke, or that the
    server refused or withdrew a channel.
    """

    def __init__(
        self,
        redis: Redis | Pool,
        patience: Patience,
        *,
        sharded: bool = False,
        on_trouble: Callable[[], None] | None = None,
    ) -> None:
        self._pool = pool_of(redis)
        self._sharded = sharded
        self._on_trouble = on_trouble or _ignore
        self._patience = patience
        self._backoff = Backoff()
        self._roster = Roster(sharded=self._sharded)
        self._task: asyncio.Task[None] | None = None
        # The event is made anew with the task: it belongs to the event loop.
        self._changed = asyncio.Event()
        self._up = False
        self._hurry = False
        self._fault: BaseException | None = None
        self._lost_at: float | None = None

    @property
    def healthy(self) -> bool:
        """Whether the server has confirmed all channels on a connection that is up, or there are none."""
        return (self._up and not self._roster.refused) or not self._roster.wanted

    @property
    def wanted(self) -> bool:
        """Whether anybody listens."""
        return self._roster.wanted

    async def listen(self, mailbox: Mailbox) -> None:
        """Let a mailbox listen. Returns when the server has confirmed it.

        Raises BrokerUnavailableError if it does not; then, and when cancelled, nothing stays behind.
        """
        self._start()
        if not self._roster.wanted:
            # Whoever was refused before has left. This one gets a try of its own, at once.
            self._backoff.reset()
            self._hurry = True
        confirmed = asyncio.get_running_loop().create_future()
        self._roster.add(mailbox, confirmed)
        self._changed.set()
        try:
            async with asyncio.timeout(self._patience.subscribe_timeout):
                await confirmed
        except FAILURES as error:
            self.leave(mailbox)
            raise self._unavailable(error, mailbox.channel) from error
        except BaseException:
            self.leave(mailbox)
            raise

    def leave(self, mailbox: Mailbox) -> None:
        """Let a mailbox listen no more. Leaving twice is harmless."""
        self._roster.remove(mailbox)
        # A RuntimeError says that the event loop is closed, and the connection with it.
        with contextlib.suppress(RuntimeError):
            self._changed.set()

    def _unavailable(self, error: BaseException, channel: str) -> Exception:
        if isinstance(error, TimeoutError):
            error = self._fault or no_answer(self._patience.subscribe_timeout)
        return unavailable("subscribe", self._pool, error, channel)

    def _start(self) -> None:
        loop = asyncio_loop()
        if self._task is not None and self._task.get_loop() is not loop:
            if not self._task.get_loop().is_closed():
                raise RuntimeError("a RedisBroker is used on one event loop at a time; make one for each")
            # That loop has gone without a word, and those who listened with it.
            self._roster = Roster(sharded=self._sharded)
            self._task = None
        if self._task is None:
            self._changed = asyncio.Event()
            self._task = start_task(self._run(), "livepush redis listener")

    async def _run(self) -> None:
        task = asyncio.current_task()
        try:
            while self._roster.wanted:
                try:
                    await self._hold_connection()
                except FAILURES as error:
                    self._note_lost(error)
                except Exception as error:
                    # A fault of this package. It must be heard of, and it must not end the listening.
                    logger.exception("the reader of %s failed, reconnecting", address_of(self._pool))
                    self._note_lost(error)
                else:
                    continue
                await self._pause()
        finally:
            # The finalizer of a task that an earlier loop left behind comes here too, and is not meant.
            if self._task is task:
                self._roster.fail_waiting(RedisConnectionError("the event loop has ended"))
                self._roster = Roster(sharded=self._sharded)
                self._task = None

    async def _hold_connection(self) -> None:
        """Connect, subscribe and read until the connection breaks, or returns when nobody listens."""
        connection = self._pool.make_connection()
        # This loop has a backoff of its own. The connection's would hide from it that the server is away.
        connection.retry = Retry(NoBackoff(), 0)
        try:
            async with asyncio.timeout(self._patience.ping_timeout):
                await connection.connect()
            await self._converse(connection)
        finally:
            self._up = False
            self._roster.disconnect()
            await drop(connection)

    async def _converse(self, connection: Connection) -> None:
        tasks = [
            start_task(self._read(connection), "livepush redis reader"),
            start_task(self._tell(connection), "livepush redis subscriber"),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in tasks:
            if not task.cancelled():
                task.result()

    async def _tell(self, connection: Connection) -> None:
        """Tell the server what changes, all that has gathered in one go, until nobody listens."""
        clock = asyncio.get_running_loop().time
        ask_again_at = clock() + self._patience.ping_interval
        while self._roster.wanted:
            self._changed.clear()
            if self._roster.refused and clock() >= ask_again_at:
                self._roster.ask_again()
                ask_again_at = clock() + self._patience.ping_interval
            commands = self._roster.next_commands()
            if commands:
                await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
            self._note_settled()
            await self._wait_for_change(ask_again_at - clock() if self._roster.refused else None)
        # Closing takes a moment. Whoever comes in it has to wait for the next connection, and must not
        # find the channel confirmed on this one.
        self._roster.disconnect()

    async def _wait_for_change(self, timeout: float | None) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._changed.wait()

    async def _read(self, connection: Connection) -> None:
        # What has arrived is read without waiting, so others must be given their turn: a burst of messages
        # would fill every outbox before one stream could send.
        for number in count(1):
            if number % MESSAGES_BETWEEN_YIELDS == 0:
                await asyncio.sleep(0)
            try:
                reply = await connection.read_response(
                    disable_decoding=True, timeout=self._patience.ping_interval, push_request=True
                )
                if reply is None:
                    reply = await self._ping(connection)
            except ResponseError as error:
                self._roster.refuse(error)
                self._changed.set()
                self._on_trouble()
            else:
                self._take(reply)

    async def _ping(self, connection: Connection) -> Reply:
        timeout = self._patience.ping_timeout
        async with asyncio.timeout(timeout):
            await connection.send_packed_command(connection.pack_commands([(b"PING",)]), check_health=False)
        reply = await connection.read_response(disable_decoding=True, timeout=timeout, push_request=True)
        if reply is None:
            raise no_answer(timeout)
        return reply

    def _take(self, reply: Reply) -> None:
        match reply:
            case [b"message" | b"smessage", bytes() as name, bytes() as payload]:
                self._roster.deliver(name, payload)
            case [
                b"subscribe" | b"unsubscribe" | b"ssubscribe" | b"sunsubscribe" as verb,
                bytes() as name,
                _,
            ]:
                if not self._roster.confirm(verb.upper(), name):
                    self._changed.set()
                    self._on_trouble()
                self._note_settled()
            case _:
                # A pong, or a notice of the server's own. It is alive, and that is all there is to know.
                pass

    async def _pause(self) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + self._backoff.next_delay()
        self._hurry = False
        while self._roster.wanted and not self._hurry and loop.time() < until:
            self._changed.clear()
            await self._wait_for_change(until - loop.time())

    def _note_lost(self, error: BaseException) -> None:
        if isinstance(error, TimeoutError) and not str(error):
            error = no_answer(self._patience.ping_timeout)
        self._fault = error
        self._on_trouble()
        if self._lost_at is None and self._roster.wanted:
            self._lost_at = time.monotonic()
            logger.warning(
                "no listening connection to %s, trying until it works: %s", address_of(self._pool), error
            )

    def _note_settled(self) -> None:
        if self._up or not self._roster.settled:
            return
        self._up = True
        self._fault = None
        self._backoff.reset()
        if self._lost_at is not None:
            away = time.monotonic() - self._lost_at
            self._lost_at = None
            logger.warning(
                "listening to %s again after %.1f s, %d channels",
                address_of(self._pool),
                away,
                len(self._roster),
            )


def _ignore() -> None:
    pass
