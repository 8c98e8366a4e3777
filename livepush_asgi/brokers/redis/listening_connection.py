"""ListeningConnection: the one connection on which a server sends the payloads of its channels.

Each command names one channel, so that the refusal of one channel affects no other. The server answers in
order, so each answer belongs to the oldest command. That matters for a refusal, which names no channel.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine
from itertools import count
from math import inf

from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AskError, ClusterDownError, ResponseError

from ...runtime.event_loop import start_task
from ...runtime.failure_log import FailureLog, fields
from ..backoff import Backoff
from ..mailbox import MESSAGES_BETWEEN_PAUSES, Mailbox
from ..timeouts import BrokerTimeouts
from .connection import (
    FAILURES,
    Arrived,
    Reply,
    address_of,
    drop,
    named_timeout,
    raise_if_cancelled,
    send,
)
from .pipeline import pack

logger = logging.getLogger("livepush_asgi")

# A cluster's node answers so if another node has the channel: no refusal. MovedError is an AskError.
_ELSEWHERE = (AskError, ClusterDownError)
# A verb and the name of a channel.
Command = tuple[bytes, bytes]


class Channel:
    """Payloads go to `mailboxes`. The mailboxes in `waiting` join them when the server confirms.

    `connection` is that of the server which has the channel. `pending` is the subscription under way, and
    with `is_live` the server has confirmed it. `refusal` is the last answer on this connection, if it was an
    error. `is_own`: it carries the messages between the processes.
    """

    __slots__ = (
        "connection",
        "is_live",
        "is_own",
        "lost_at",
        "mailboxes",
        "name",
        "pending",
        "refusal",
        "waiting",
    )

    def __init__(self, name: bytes, *, is_own: bool = False) -> None:
        self.name = name
        self.is_own = is_own
        #: Since when it has not been live, by `time.monotonic`.
        self.lost_at = time.monotonic()
        # A list takes less memory than a dict.
        self.mailboxes: list[Mailbox] = []
        self.waiting: dict[Mailbox, asyncio.Future[None]] = {}
        self.connection: ListeningConnection | None = None
        self.pending: Command | None = None
        self.is_live = False
        self.refusal: Exception | None = None

    @property
    def is_well(self) -> bool:
        """Whether the channel is live, or its first confirmation is under way."""
        return self.is_live or (self.pending is not None and not self.mailboxes)

    def lose(self, refusal: Exception | None = None) -> None:
        """Note that the server sends no payloads any more."""
        if self.is_live:
            self.lost_at = time.monotonic()
        self.is_live, self.refusal, self.pending = False, refusal, None

    def go_live(self) -> None:
        """Report a loss to the mailboxes of an earlier subscription, and admit the mailboxes that wait."""
        self.is_live, self.refusal, self.pending = True, None, None
        self.each(Mailbox.lost)
        for mailbox, confirmed in self.waiting.items():
            self.mailboxes.append(mailbox)
            if not confirmed.done():
                confirmed.set_result(None)
        self.waiting.clear()

    def fail_waiting(self, error: Exception) -> None:
        """Raise an error in the callers that wait for the confirmation."""
        for confirmed in self.waiting.values():
            if not confirmed.done():
                confirmed.set_exception(error)

    def deliver(self, payload: bytes) -> None:
        """Deliver a message to each mailbox. The error of one sink does not affect the others."""
        if len(self.mailboxes) != 1:
            self.each(lambda mailbox: mailbox.deliver(payload))
            return
        try:
            self.mailboxes[0].deliver(payload)
        except Exception:
            self._log_raised()

    def each(self, call: Callable[[Mailbox], None]) -> None:
        """Call a function with each mailbox. The error of one sink does not affect the others."""
        for mailbox in tuple(self.mailboxes):
            try:
                call(mailbox)
            except Exception:
                self._log_raised()

    def _log_raised(self) -> None:
        name = self.name.decode()
        logger.exception("the sink of channel %r raised", name, extra=fields("sink_failed", channel=name))


class ListeningConnection:
    """Connects at once, and again after each failure, until it is closed.

    With `sharded` it uses sharded pub/sub, for a node of a cluster. `on_change` is called with True when the
    server confirms a channel, with False when the connection breaks or the server ends or refuses a
    subscription.
    """

    def __init__(
        self,
        pool: ConnectionPool,
        timeouts: BrokerTimeouts,
        on_change: Callable[["ListeningConnection", bool], None],
        *,
        sharded: bool,
    ) -> None:
        self.pool = pool
        self.channels: dict[bytes, Channel] = {}
        self.is_connected = False
        #: Why channels are not confirmed, as far as known.
        self.fault: Exception | None = None
        self._timeouts = timeouts
        self._on_change = on_change
        prefix = b"S" if sharded else b""
        self._subscribe, self._unsubscribe = prefix + b"SUBSCRIBE", prefix + b"UNSUBSCRIBE"
        self._backoff = Backoff()
        self._failures = FailureLog()
        self._unsent: list[Command] = []
        self._unanswered: deque[Command] = deque()
        self._changed, self._received = asyncio.Event(), asyncio.Event()
        self._task = start_task(self._run(), "livepush redis listener")

    @property
    def is_closed(self) -> bool:
        """Whether the last channel was unsubscribed, or the task was cancelled from outside."""
        return self._task.done()

    def subscribe(self, channel: Channel) -> None:
        """Subscribe a channel, unless it is live or a subscription is under way."""
        self.channels[channel.name] = channel
        if self.is_connected and channel.pending is None and not channel.is_live:
            channel.pending = self._queue(self._subscribe, channel.name)

    def unsubscribe(self, channel: Channel) -> None:
        """Unsubscribe a channel. The connection closes with the last one."""
        del self.channels[channel.name]
        channel.lose()
        if not self.channels:
            self._task.cancel()
        elif self.is_connected:
            self._queue(self._unsubscribe, channel.name)

    def _queue(self, verb: bytes, name: bytes) -> Command:
        command = (verb, name)
        self._unsent.append(command)
        self._unanswered.append(command)
        self._changed.set()
        return command

    async def _run(self) -> None:
        while self.channels:
            try:
                await self._use_connection()
            except Exception as error:
                if not isinstance(error, FAILURES):
                    # A defect of this package is logged, and the listener goes on.
                    where = address_of(self.pool)
                    logger.exception(
                        "the reader of %s failed, reconnecting",
                        where,
                        extra=fields("listener_failed", server=where),
                    )
                self._note_lost(error)
            await asyncio.sleep(self._backoff.next_delay())

    async def _use_connection(self) -> None:
        """Connect, subscribe and read until the connection breaks, or there are no channels."""
        connection: AbstractConnection = self.pool.make_connection()
        # redis-py's retries would hide an outage.
        connection.retry = Retry(NoBackoff(), 0)
        try:
            async with asyncio.timeout(self._timeouts.ping):
                await connection.connect()
            raise_if_cancelled()
            self.is_connected = True
            for channel in self.channels.values():
                self.subscribe(channel)
            await _first_to_end(self._read(connection), self._write(connection), self._test(connection))
        finally:
            self.is_connected = False
            await drop(connection)

    def _note_lost(self, error: Exception) -> None:
        self.fault = named_timeout(error, self._timeouts.ping)
        self._unsent.clear()
        self._unanswered.clear()
        for channel in self.channels.values():
            channel.lose()
        self._on_change(self, False)

    async def _write(self, connection: AbstractConnection) -> None:
        """Send the commands that are due, in batches, until there are no channels."""
        while self.channels:
            self._changed.clear()
            if self._unsent:
                data = b"".join(map(pack, self._unsent))
                self._unsent.clear()
                await send(connection, data)
            await self._changed.wait()

    async def _read(self, connection: AbstractConnection) -> None:
        arrived = Arrived(connection)
        for number in count(1):
            # Reading does not wait while there is something to read. Without a pause a burst of messages
            # would fill every outbox before one stream could send.
            if number % MESSAGES_BETWEEN_PAUSES == 0:
                await asyncio.sleep(0)
            if (message := await arrived.message()) is not None:
                self._deliver(*message)
                self._received.set()
                continue
            try:
                # No timeout: a timer costs as much as reading a message, and `_test` notices silence.
                reply = await connection.read_response(disable_decoding=True, timeout=inf, push_request=True)
            except ResponseError as error:
                self._take_refusal(error)
            else:
                self._take(reply)
            self._received.set()

    async def _test(self, connection: AbstractConnection) -> None:
        """Send PING from time to time. Raises TimeoutError if nothing arrives."""
        while True:
            await asyncio.sleep(self._timeouts.ping_interval)
            for channel in self.channels.values():
                # Permissions change.
                self.subscribe(channel)
            self._received.clear()
            async with asyncio.timeout(self._timeouts.ping):
                await send(connection, pack((b"PING",)))
                await self._received.wait()

    def _take(self, reply: Reply) -> None:
        match reply:
            case [b"message" | b"smessage", bytes() as name, bytes() as payload]:
                self._deliver(name, payload)
            case [
                b"subscribe" | b"unsubscribe" | b"ssubscribe" | b"sunsubscribe" as verb,
                bytes() as name,
                _,
            ]:
                self._take_confirmation((verb.upper(), name))
            case _:
                # The reply to PING, or another push message of the server.
                pass

    def _deliver(self, name: bytes, payload: bytes) -> None:
        if channel := self.channels.get(name):
            channel.deliver(payload)

    def _take_confirmation(self, confirmed: Command) -> None:
        channel = self.channels.get(confirmed[1])
        if not self._unanswered or self._unanswered[0] != confirmed:
            # A node ends a subscription by itself when the channel moves to another node.
            if channel is not None:
                channel.lose()
                self.subscribe(channel)
            self._on_change(self, False)
            return
        command = self._unanswered.popleft()
        if channel is not None and channel.pending is command:
            channel.go_live()
            self.fault = None
            self._backoff.reset()
            self._on_change(self, True)

    def _take_refusal(self, error: ResponseError) -> None:
        """Take the server's refusal of the oldest command. Raises the error if no command is under way."""
        if not self._unanswered:
            raise error
        command = self._unanswered.popleft()
        channel = self.channels.get(command[1])
        if channel is None or channel.pending is not command:
            return
        was_refused = channel.refusal is not None
        channel.lose(error)
        if channel.mailboxes and not was_refused:
            if not isinstance(error, _ELSEWHERE):
                name = channel.name.decode()
                # After a change of permissions that may be each channel.
                self._failures.log(
                    logging.ERROR,
                    "the server refuses channel %r, messages are lost: %s",
                    name,
                    error,
                    about=name,
                    extra=fields("channel_refused", channel=name, error=str(error)),
                )
            channel.each(Mailbox.lost)
        if isinstance(error, _ELSEWHERE):
            self.fault = error
        else:
            channel.fail_waiting(error)
        self._on_change(self, False)


async def _first_to_end(*coroutines: Coroutine[None, None, None]) -> None:
    """Run coroutines until one ends, and cancel the others. Raises the error of the one that ended."""
    tasks = [start_task(coroutine, "livepush redis connection") for coroutine in coroutines]
    try:
        ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in ended:
        task.result()
