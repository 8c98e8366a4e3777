"""The one connection of a broker: opened when it is first used, watched, and closed when nobody needs it.

nats-py makes it again when it breaks. Here the subscribers are told what that means for them.
"""

import asyncio
import contextlib
import itertools
import logging
import re
import time
from collections.abc import Callable, Iterator
from weakref import WeakValueDictionary

from nats.aio.msg import Msg
from nats.errors import MaxPayloadError, OutboundBufferLimitError

from ...loop import start_task
from ..mailbox import Mailbox
from .client import Client, Receiver
from .failures import FAILURES, PayloadTooLargeError, no_answer, unavailable
from .settings import Settings
from .subscriptions import Subscription, SubscriptionTable

logger = logging.getLogger("livepush_asgi")

#: Returns what mailboxes get for a message, None if it is not for them. It must not raise.
Decode = Callable[[Msg], bytes | None]

# So many bytes are sent before the server has to confirm them. It answers a PING, by which it is known to be
# alive, after what was sent before.
_MOST_UNCONFIRMED = 1_000_000
_REFUSAL = re.compile(r'permissions violation for (publish|subscription) to "([^"]*)"')
_generations = itertools.count(1)


class _Call:
    """A message on its way. `outcome` is the answer to a request, or why there will be none."""

    __slots__ = ("_many", "_parts", "outcome", "subject")

    def __init__(self, subject: str, many: bool) -> None:
        # In lower case, as nats-py reports a refusal.
        self.subject = subject.lower()
        # A result and no exception: asyncio would log one that nobody retrieves.
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
            self.outcome.set_result(outcome)

    def result(self) -> list[Msg]:
        """Return the answer, empty as long as there is none. Raises the error if that is the outcome."""
        outcome = self.outcome.result() if self.outcome.done() else []
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


class Connection:
    """Subscribes, publishes and requests, on the event loop on which it was made."""

    def __init__(self, settings: Settings, decode: Decode) -> None:
        self.loop = asyncio.get_running_loop()
        #: Whether it is closed or about to be. Then another one is needed.
        self.has_ended = False
        #: A number that no other connection has had, and that changes with each reconnect.
        self.generation = 0
        self._settings = settings
        self._timeouts = settings.timeouts
        self._decode = decode
        self._client = Client(self._timeouts.ping_timeout)
        self._subscriptions = SubscriptionTable()
        self._calls: dict[str, _Call] = {}
        self._tokens = itertools.count()
        self._inbox = ""
        # A lock, so that messages leave in the order of the calls also when one has to wait.
        self._sending = asyncio.Lock()
        self._unconfirmed = 0
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._is_up = False
        #: The outcome of the next attempt to connect: None, or why it has failed.
        self._next_attempt: asyncio.Future[Exception | None] = self.loop.create_future()
        self._fault: Exception | None = None
        self._lost_at: float | None = None
        self._used_at = self.loop.time()
        self._changed = asyncio.Event()
        self._task = start_task(self._run(), "livepush nats connection")

    @property
    def healthy(self) -> bool:
        """Whether the connection is up and every subscription confirmed, or there is none."""
        return not len(self._subscriptions) or (self._is_up and self._subscriptions.all_in_force)

    @property
    def server_version(self) -> tuple[int, int]:
        """The version of the server, (0, 0) if there was no connection yet."""
        version = self._client.connected_server_version
        return version.major, version.minor

    def lock(self, key: str) -> asyncio.Lock:
        """Return the lock of a key. It is shared, and belongs to this event loop as the connection does."""
        return self._locks.setdefault(key, asyncio.Lock())

    async def subscribe(self, channel: str, subject: str) -> Mailbox:
        """Return the mailbox of a subscription that the server has confirmed.

        Raises BrokerUnavailableError if it does not; then, and when cancelled, nothing stays behind.
        """
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
            raise unavailable("subscribe", self._settings.address, cause) from error
        except BaseException:
            self._leave(subscription)
            raise
        return subscription.mailbox

    async def publish(self, subject: str, payload: bytes) -> None:
        """Send a message and return when the server has it. Raises one of FAILURES."""
        timeout = self._timeouts.publish_timeout
        with self._call(subject) as (_, call):
            await self._send(call, subject, payload)
            try:
                async with asyncio.timeout(timeout):
                    await self._client.confirm()
            except TimeoutError as error:
                raise error if str(error) else no_answer(timeout) from error
            call.result()

    async def request(
        self, subject: str, payload: bytes, headers: dict[str, str] | None = None, *, many: bool = False
    ) -> list[Msg]:
        """Send a message and return the answer: one message, or `many` up to one with a status.

        Raises one of FAILURES; the server may have acted on the message even then.
        """
        timeout = self._timeouts.publish_timeout
        with self._call(subject, many) as (token, call):
            await self._send(call, subject, payload, token, headers)
            await asyncio.wait({call.outcome}, timeout=timeout)
            if not call.outcome.done():
                raise no_answer(timeout)
            return call.result()

    @contextlib.contextmanager
    def _call(self, subject: str, many: bool = False) -> Iterator[tuple[str, _Call]]:
        token = f"{next(self._tokens):x}"
        call = self._calls[token] = _Call(subject, many)
        try:
            yield token, call
        finally:
            del self._calls[token]
            self._note_use()

    async def _send(
        self,
        call: _Call,
        subject: str,
        payload: bytes,
        token: str = "",
        headers: dict[str, str] | None = None,
    ) -> None:
        """Write a message in its turn, unless its call has failed meanwhile."""
        await self._wait_until_up()
        async with self._sending:
            if self._unconfirmed > _MOST_UNCONFIRMED:
                await self._client.confirm()
                self._unconfirmed = 0
            reply = f"{await self._own_inbox()}.{token}" if token else ""
            call.result()
            try:
                await self._client.publish(subject, payload, reply, headers)
            except OutboundBufferLimitError:
                # With pending_size=0 nats-py raises this while the connection is away.
                raise self._client.fault from None
            except MaxPayloadError:
                reason = f"its {len(payload)} bytes are more than the server takes (max_payload)"
                raise PayloadTooLargeError(reason) from None
            self._unconfirmed += len(payload)

    async def _own_inbox(self) -> str:
        if not self._inbox:
            self._inbox = self._client.new_inbox()
            await self._client.subscribe(f"{self._inbox}.*", future=Receiver(self._take_answer))
        return self._inbox

    def _take_answer(self, message: Msg) -> None:
        call = self._calls.get(message.subject.rpartition(".")[2])
        if call is not None:
            call.take(message)

    async def _wait_until_up(self) -> None:
        """Wait for the connection. Raises what the next attempt to connect raises."""
        if self._is_up:
            return
        attempt = self._next_attempt
        await asyncio.wait({attempt}, timeout=self._timeouts.publish_timeout)
        if not attempt.done():
            raise self._fault or no_answer(self._timeouts.publish_timeout)
        failure = attempt.result()
        if failure is not None:
            raise failure

    # --- the connection's life ---

    async def _run(self) -> None:
        try:
            await self._client.connect(
                self._settings.servers,
                error_cb=self._note_error,
                disconnected_cb=self._note_lost,
                reconnected_cb=self._note_up,
                **self._settings.options,
            )
            await self._note_up()
            await self._watch()
        except Exception as error:
            # An option that nats-py cannot use. There is no subscriber yet, only who waits to become one.
            self._client.fault = error
            if not isinstance(error, FAILURES):
                logger.exception("cannot connect to %s", self._settings.address)
        finally:
            self.has_ended = True
            self._is_up = False
            self._fail_all(self._client.fault)
            await self._client.aclose()

    async def _watch(self) -> None:
        """Keep the server up to date and test the connection, until it is idle for `linger`."""
        timeouts = self._timeouts
        pinged_at = self.loop.time()
        while self._is_needed or self.loop.time() - self._used_at < timeouts.linger:
            self._changed.clear()
            is_ping_due = self.loop.time() - pinged_at >= timeouts.ping_interval
            if is_ping_due:
                pinged_at = self.loop.time()
                self._subscriptions.ask_again()
            try:
                await self._update_server(is_ping_due)
            except FAILURES:
                # nats-py reconnects, and subscribes again.
                pass
            except Exception:
                logger.exception("cannot subscribe at %s, trying again", self._settings.address)
            next_ping = max(0.0, pinged_at + timeouts.ping_interval - self.loop.time())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(next_ping, timeouts.linger)):
                    await self._changed.wait()

    async def _update_server(self, is_ping_due: bool) -> None:
        for given_up in self._subscriptions.take_given_up():
            await given_up.unsubscribe()
        if not self._is_up:
            return
        generation = self.generation
        asked = self._subscriptions.take_unasked()
        for subscription in asked:
            receiver = Receiver(self._receiver_of(subscription))
            subscription.on_server = await self._client.subscribe(subscription.subject, future=receiver)
        if asked or is_ping_due:
            await self._client.confirm()
        if self._is_up and self.generation == generation:
            self._subscriptions.confirm_all()
            self._note_settled()

    def _receiver_of(self, subscription: Subscription) -> Callable[[Msg], None]:
        def take(message: Msg) -> None:
            payload = self._decode(message)
            if payload is not None:
                self._subscriptions.confirm(subscription)
                subscription.deliver(payload)

        return take

    @property
    def _is_needed(self) -> bool:
        return bool(len(self._subscriptions) or self._calls)

    def _leave(self, subscription: Subscription) -> None:
        self._subscriptions.remove(subscription)
        # RuntimeError: the event loop is closed, and the connection with it.
        with contextlib.suppress(RuntimeError):
            self._changed.set()
            self._note_use()

    def _note_use(self) -> None:
        self._used_at = self.loop.time()
        if not self._is_up and not self._is_needed and not self.has_ended:
            # Nobody waits for the server any more.
            self.has_ended = True
            self._task.cancel()

    def _fail_all(self, error: Exception) -> None:
        self._subscriptions.fail_waiting(error)
        self._end_attempt(error)
        for call in self._calls.values():
            call.settle(error)

    # --- what nats-py reports ---

    async def _note_up(self) -> None:
        self.generation = next(_generations)
        self._is_up = True
        self._unconfirmed = 0
        self._subscriptions.confirm_all()
        self._end_attempt(None)
        self._changed.set()

    async def _note_lost(self) -> None:
        if self.has_ended:
            return
        self._is_up = False
        self._subscriptions.interrupt()
        for call in self._calls.values():
            call.settle(self._client.fault)
        self._note_away(self._client.fault)
        self._note_use()

    async def _note_error(self, error: Exception) -> None:
        refusal = _REFUSAL.search(str(error))
        if refusal is not None:
            self._note_refusal(refusal[1], refusal[2], error)
        elif not self._is_up:
            # nats-py leaves the socket of an attempt that failed open.
            self._client.abort()
            fault = error if str(error) else no_answer(self._timeouts.ping_timeout)
            self._note_away(fault)
            self._end_attempt(fault)

    def _note_refusal(self, kind: str, subject: str, error: Exception) -> None:
        if kind == "subscription":
            self._subscriptions.refuse(subject, error)
            self._changed.set()
            return
        for call in self._calls.values():
            if call.subject == subject:
                call.settle(error)

    def _end_attempt(self, failure: Exception | None) -> None:
        attempt, self._next_attempt = self._next_attempt, self.loop.create_future()
        attempt.set_result(failure)

    def _note_away(self, error: Exception) -> None:
        self._fault = error
        if self._lost_at is None and len(self._subscriptions):
            self._lost_at = time.monotonic()
            address = self._settings.address
            logger.warning("no connection to %s, trying until it works: %s", address, error)

    def _note_settled(self) -> None:
        self._fault = None
        if self._lost_at is not None:
            away = time.monotonic() - self._lost_at
            self._lost_at = None
            address, count = self._settings.address, len(self._subscriptions)
            logger.warning("connected to %s again after %.1f s, %d channels", address, away, count)
