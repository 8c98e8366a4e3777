"""Connection: the one connection of a broker. nats-py keeps it; here it is opened, used, watched and closed."""

import asyncio
import contextlib
import inspect
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from nats.aio.client import Client as NatsClient
from nats.aio.msg import Msg
from nats.errors import MaxPayloadError, OutboundBufferLimitError

from ...loop import asyncio_loop, start_task
from ..mailbox import Mailbox
from .client import Client, Receiver
from .failures import FAILURES, PayloadTooLargeError, address_of, no_answer, unavailable
from .subscriptions import Subscription, SubscriptionTable

logger = logging.getLogger("livepush_asgi")

#: Returns what mailboxes get for a message, None if it is not for them. It must not raise.
Decode = Callable[[Msg], bytes | None]

# Bytes that are sent before the server has to confirm them, so that its answer to a PING, by which it is known to
# be alive, is never behind much more.
_MOST_UNCONFIRMED = 1_000_000
# Seconds between two attempts to reach the same server.
_RECONNECT_WAIT = 0.5
_FOR_EVER = 10**6
_REFUSAL = re.compile(r'permissions violation for (publish|subscription) to "([^"]*)"')
# What this package sets itself, and what would change what it relies on.
_MANAGED = {
    "self", "servers", "error_cb", "disconnected_cb", "closed_cb", "reconnected_cb", "discovered_server_cb",
    "lame_duck_mode_cb", "reconnect_to_server_handler", "allow_reconnect", "max_reconnect_attempts",
    "reconnect_time_wait", "pending_size", "flusher_queue_size", "ping_interval", "connect_timeout", "no_echo",
    "verbose", "flush_timeout", "skip_subject_validation",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """How long to wait for the server, in seconds.

    The connection is tested every `ping_interval`, and given up after `ping_timeout` without an answer; each step
    of opening one may take as long. A connection that nobody needs is kept for `linger`, so that a program that
    only publishes does not connect each time.
    """

    subscribe_timeout: float = 2.0
    publish_timeout: float = 5.0
    ping_interval: float = 10.0
    ping_timeout: float = 5.0
    linger: float = 10.0

    def __post_init__(self) -> None:
        for name in ("subscribe_timeout", "publish_timeout", "ping_interval", "ping_timeout", "linger"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is in seconds and more than 0, not {getattr(self, name)!r}")


class Outgoing(NamedTuple):
    """A message to publish."""

    subject: str
    payload: bytes
    headers: dict[str, str] | None = None


class _Call:
    """A message that is on its way. `outcome` is the answer to a request, or why there will be none."""

    __slots__ = ("_many", "_parts", "outcome", "subject")

    def __init__(self, subject: str, many: bool) -> None:
        self.subject = subject.lower()
        self.outcome: asyncio.Future[list[Msg] | Exception] = asyncio.get_running_loop().create_future()
        self._many = many
        self._parts: list[Msg] = []

    def take(self, part: Msg) -> None:
        """Take one part of the answer. The last one of many has a status."""
        self._parts.append(part)
        if not self._many or "Status" in (part.headers or {}):
            self.settle(self._parts)

    def settle(self, outcome: list[Msg] | Exception) -> None:
        """Set the outcome, once."""
        if not self.outcome.done():
            # An error too: asyncio would log an exception that nobody retrieves.
            self.outcome.set_result(outcome)

    def result(self) -> list[Msg]:
        """Return the answer, empty as long as there is none. Raises the error if that is the outcome."""
        outcome = self.outcome.result() if self.outcome.done() else []
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


class Connection:
    """Subscribes, publishes and requests over one connection, which is there while somebody needs it."""

    def __init__(
        self, servers: str | Sequence[str], options: Mapping[str, Any], timeouts: Timeouts, decode: Decode
    ) -> None:
        self._servers = [servers] if isinstance(servers, str) else list(servers)
        if not self._servers or not all(isinstance(url, str) and url for url in self._servers):
            raise ValueError(f"servers are a URL or several, not {servers!r}")
        self._options = {**_login_of(self._servers), **_check_options(options)}
        self._timeouts = timeouts
        self._decode = decode
        self._address = address_of(self._servers)
        self._lost_at: float | None = None
        self._fault: Exception | None = None
        #: How many connections there have been, for callers that remember something about the server.
        self.generation = 0
        self._reset()

    def _reset(self) -> None:
        self._subscriptions = SubscriptionTable()
        self._calls: dict[str, _Call] = {}
        self._number = 0
        self._used = 0.0
        self._waiting: set[asyncio.Future[Exception | None]] = set()
        self._changed = asyncio.Event()
        # A lock, so that messages go out in the order of the calls also when one has to wait.
        self._sending = asyncio.Lock()
        self._unconfirmed = 0
        self._inbox = ""
        self._is_up = False
        self._client = Client(self._timeouts.ping_timeout)
        self._task: asyncio.Task[None] | None = None

    @property
    def healthy(self) -> bool:
        """Whether the connection is up and every subscription confirmed, or there is none."""
        return not len(self._subscriptions) or (self._is_up and self._subscriptions.all_in_force)

    @property
    def version(self) -> tuple[int, int]:
        """The version of the server, (0, 0) if there is no connection."""
        version = self._client.connected_server_version
        return version.major, version.minor

    async def subscribe(self, channel: str, subject: str) -> Mailbox:
        """Return the mailbox of a subscription that the server has confirmed.

        Raises BrokerUnavailableError if it does not; then, and when cancelled, nothing stays behind.
        """
        self._start()
        subscription = Subscription(channel, subject, self._leave)
        self._subscriptions.add(subscription)
        self._changed.set()
        timeout = self._timeouts.subscribe_timeout
        try:
            async with asyncio.timeout(timeout):
                await subscription.confirmed
        except FAILURES as error:
            self._leave(subscription)
            cause = error if str(error) else self._fault or no_answer(timeout)
            raise self.unavailable("subscribe", cause) from error
        except BaseException:
            self._leave(subscription)
            raise
        return subscription.mailbox

    async def publish(self, message: Outgoing) -> None:
        """Send a message and return when the server has it. Raises one of FAILURES; it may have it then too."""
        with self._call(message) as (_, call):
            await self._send(message, call)
            await self._client.confirm(self._timeouts.publish_timeout)
            call.result()

    async def request(self, message: Outgoing, *, many: bool = False) -> list[Msg]:
        """Send a message and return the answer: one message, or `many` up to one with a status.

        Raises one of FAILURES. The server may have acted on the message then too.
        """
        timeout = self._timeouts.publish_timeout
        with self._call(message, many) as (token, call):
            await self._send(message, call, token)
            await asyncio.wait({call.outcome}, timeout=timeout)
            if not call.outcome.done():
                raise no_answer(timeout)
            return call.result()

    def unavailable(self, attempt: str, cause: BaseException) -> Exception:
        """Return the error to raise when an attempt has failed."""
        return unavailable(attempt, self._address, cause)

    @contextlib.contextmanager
    def _call(self, message: Outgoing, many: bool = False) -> Iterator[tuple[str, _Call]]:
        self._start()
        self._number += 1
        token = f"{self._number:x}"
        call = self._calls[token] = _Call(message.subject, many)
        try:
            yield token, call
        finally:
            del self._calls[token]
            self._used = asyncio.get_running_loop().time()
            if not self._is_up:
                self._changed.set()

    async def _send(self, message: Outgoing, call: _Call, token: str = "") -> None:
        """Write a message in its turn, unless its call is settled already."""
        await self._wait_until_up()
        async with self._sending:
            if self._unconfirmed > _MOST_UNCONFIRMED:
                await self._client.confirm(self._timeouts.publish_timeout)
                self._unconfirmed = 0
            reply = f"{await self._own_inbox()}.{token}" if token else ""
            call.result()
            try:
                await self._client.publish(message.subject, message.payload, reply, message.headers)
            except OutboundBufferLimitError:
                # With pending_size=0 nats-py raises this while the connection is away.
                raise self._client.fault from None
            except MaxPayloadError:
                size = len(message.payload)
                reason = f"its {size} bytes are more than the server takes (max_payload)"
                raise PayloadTooLargeError(reason) from None
            self._unconfirmed += len(message.payload)

    async def _own_inbox(self) -> str:
        if not self._inbox:
            inbox = self._client.new_inbox()
            await self._client.subscribe(f"{inbox}.*", future=Receiver(self._take_answer))
            self._inbox = inbox
        return self._inbox

    def _take_answer(self, message: Msg) -> None:
        call = self._calls.get(message.subject.rpartition(".")[2])
        if call is not None:
            call.take(message)

    async def _wait_until_up(self) -> None:
        """Wait for the connection; raise what its next attempt raises, for everybody waits for the same one."""
        if self._is_up:
            return
        up: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self._waiting.add(up)
        try:
            await asyncio.wait({up}, timeout=self._timeouts.publish_timeout)
        finally:
            self._waiting.discard(up)
        failure = up.result() if up.done() else self._fault or no_answer(self._timeouts.publish_timeout)
        if failure is not None:
            raise failure

    def _end_waiting(self, failure: Exception | None) -> None:
        for up in self._waiting:
            if not up.done():
                up.set_result(failure)

    def _leave(self, subscription: Subscription) -> None:
        self._subscriptions.remove(subscription)
        # RuntimeError: the event loop is closed, and the connection with it.
        with contextlib.suppress(RuntimeError):
            self._changed.set()

    # --- from its opening to its end ---

    @property
    def _is_needed(self) -> bool:
        return bool(len(self._subscriptions) or self._calls)

    def _start(self) -> None:
        loop = asyncio_loop()
        if self._task is not None and self._task.get_loop() is not loop:
            if not self._task.get_loop().is_closed():
                raise RuntimeError("a NATS broker is used on one event loop at a time; make one for each")
            # That loop was closed without cancelling its tasks, and its subscribers have gone with it.
            self._reset()
        if self._task is None:
            self._task = start_task(self._run(), "livepush nats connection")

    async def _run(self) -> None:
        task = asyncio.current_task()
        try:
            while self._is_needed:
                self._client = Client(self._timeouts.ping_timeout)
                try:
                    await self._serve(self._client)
                except Exception as error:
                    if not isinstance(error, FAILURES):
                        logger.exception("the connection to %s failed, reconnecting", self._address)
                    await self._note_error(error)
                    await asyncio.sleep(_RECONNECT_WAIT)
        finally:
            # The task of a closed loop may be finalized here; ignore it.
            if self._task is task:
                ended = ConnectionAbortedError("the event loop has ended")
                self._subscriptions.fail_waiting(ended)
                self._end_waiting(ended)
                self._settle_calls(ended)
                self._fault = self._lost_at = None
                self._reset()

    async def _serve(self, client: Client) -> None:
        """Open the connection, and return when nobody has needed it for `linger`."""
        opening = start_task(self._open(client), "livepush nats connect")
        opening.add_done_callback(lambda done: self._changed.set())
        try:
            await self._watch(client, opening)
        finally:
            self._is_up = False
            self._inbox = ""
            await _cancel(opening)
            await client.aclose()
            self._subscriptions.interrupt()
            self._subscriptions.forget_server()
            self._settle_calls(client.fault)

    async def _open(self, client: Client) -> None:
        await client.connect(
            self._servers,
            error_cb=self._note_error,
            disconnected_cb=self._note_lost,
            reconnected_cb=self._note_up,
            allow_reconnect=True,
            max_reconnect_attempts=-1,
            reconnect_time_wait=_RECONNECT_WAIT,
            connect_timeout=self._timeouts.ping_timeout,
            ping_interval=_FOR_EVER,
            # Publishing raises while the connection is away, and waits for nothing while it is up.
            pending_size=0,
            flusher_queue_size=0,
            **self._options,
        )
        await self._note_up()

    async def _watch(self, client: Client, opening: asyncio.Task[None]) -> None:
        clock = asyncio.get_running_loop().time
        pinged = clock()
        while True:
            self._changed.clear()
            if self._is_needed:
                self._used = clock()
            elif not self._is_up or clock() - self._used >= self._timeouts.linger:
                return
            if opening.done():
                opening.result()
                is_due = clock() - pinged >= self._timeouts.ping_interval
                if is_due:
                    pinged = clock()
                    self._subscriptions.ask_again()
                with contextlib.suppress(*FAILURES):
                    await self._subscribe(client, is_due)
                if client.is_closed:
                    raise client.fault
            with contextlib.suppress(TimeoutError):
                next_ping = max(0.0, pinged + self._timeouts.ping_interval - clock())
                async with asyncio.timeout(min(next_ping, self._timeouts.linger)):
                    await self._changed.wait()

    async def _subscribe(self, client: Client, is_ping_due: bool) -> None:
        """Bring the server up to date on what is subscribed, and test the connection if that is due."""
        for given_up in self._subscriptions.take_given_up():
            await given_up.unsubscribe()
        if not self._is_up:
            return
        generation = self.generation
        unasked = self._subscriptions.take_unasked()
        for subscription in unasked:
            take = self._taker_of(subscription)
            subscription.on_server = await client.subscribe(subscription.subject, future=Receiver(take))
        if unasked or is_ping_due:
            await client.flush()
        if self._is_up and generation == self.generation:
            for subscription in unasked:
                if subscription.on_server is not None:
                    self._subscriptions.confirm(subscription)
            self._note_settled()

    def _taker_of(self, subscription: Subscription) -> Callable[[Msg], None]:
        def take(message: Msg) -> None:
            payload = self._decode(message)
            if payload is not None:
                self._subscriptions.confirm(subscription)
                subscription.deliver(payload)

        return take

    # --- what nats-py reports ---

    async def _note_up(self) -> None:
        self.generation += 1
        self._is_up = True
        self._unconfirmed = 0
        self._subscriptions.confirm_all()
        self._end_waiting(None)
        self._changed.set()

    async def _note_lost(self) -> None:
        if self._client.is_closed:
            return
        self._is_up = False
        self._subscriptions.interrupt()
        self._settle_calls(self._client.fault)
        self._note_away(self._client.fault)
        self._changed.set()

    async def _note_error(self, error: Exception) -> None:
        refusal = _REFUSAL.search(str(error))
        if refusal is not None:
            self._note_refusal(refusal[1], refusal[2], error)
        elif not self._is_up:
            # nats-py forgets the socket of an attempt that failed, and leaves it open.
            self._client.abort()
            cause = error if str(error) else no_answer(self._timeouts.ping_timeout)
            self._end_waiting(cause)
            self._note_away(cause)

    def _note_refusal(self, kind: str, subject: str, error: Exception) -> None:
        if kind == "subscription":
            self._subscriptions.refuse(subject, error)
            self._changed.set()
            return
        for call in self._calls.values():
            if call.subject == subject:
                call.settle(error)

    def _settle_calls(self, error: Exception) -> None:
        for call in self._calls.values():
            call.settle(error)

    def _note_away(self, error: Exception) -> None:
        self._fault = error
        if self._lost_at is None and len(self._subscriptions):
            self._lost_at = time.monotonic()
            logger.warning("no connection to %s, trying until it works: %s", self._address, error)

    def _note_settled(self) -> None:
        self._fault = None
        if self._lost_at is not None:
            away = time.monotonic() - self._lost_at
            self._lost_at = None
            count = len(self._subscriptions)
            logger.warning("connected to %s again after %.1f s, %d channels", self._address, away, count)


async def _cancel(task: asyncio.Task[None]) -> None:
    """End a task that may swallow a cancellation, as nats-py's connecting and `asyncio.wait_for` of 3.11 do."""
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=0.1)
    if not task.cancelled():
        # asyncio would log an exception that nobody retrieves.
        task.exception()


def _check_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options for nats-py. Raises TypeError for what it does not know or what is managed here."""
    known = inspect.signature(NatsClient.connect).parameters.keys()
    for name in options:
        if name in _MANAGED:
            raise TypeError(f"{name!r} is managed by the broker and cannot be set")
        if name not in known:
            raise TypeError(f"nats.connect has no option {name!r}")
    return dict(options)


def _login_of(servers: Sequence[str]) -> dict[str, str]:
    """Return the user of the URLs as options, so that it is known to the servers too that the cluster announces."""
    logins = {(urlsplit(url).username, urlsplit(url).password) for url in servers}
    user, password = logins.pop() if len(logins) == 1 else (None, None)
    if user is None:
        return {}
    return {"token": user} if password is None else {"user": user, "password": password}
