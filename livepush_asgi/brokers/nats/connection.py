"""The one connection of a broker: opened when it is first used, watched, and closed when nobody needs it.

nats-py makes it again when it breaks. Here the subscribers are told what that means for them.
"""

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import Callable
from weakref import WeakValueDictionary

from nats.aio.msg import Msg

from ...loop import start_task
from ..mailbox import Mailbox
from .client import Client, Receiver
from .failures import FAILURES, no_answer
from .outgoing import Call, OutgoingQueue
from .settings import Settings
from .subscriptions import Subscription, SubscriptionTable

logger = logging.getLogger("livepush_asgi")

#: Returns what mailboxes get for a message, None if it is not for them. It must not raise.
Decode = Callable[[Msg], bytes | None]

_REFUSAL = re.compile(r'permissions violation for (publish|subscription) to "([^"]*)"')


class Connection:
    """Subscribes, publishes and requests, on the event loop on which it was made."""

    def __init__(self, settings: Settings, decode: Decode) -> None:
        self.loop = asyncio.get_running_loop()
        #: Whether it is closed or about to be. Then another one is needed.
        self.has_ended = False
        self._settings = settings
        self._timeouts = settings.timeouts
        self._decode = decode
        self._client = Client(self._timeouts.ping_timeout)
        self._subscriptions = SubscriptionTable()
        self._outgoing = OutgoingQueue(self._client, self._timeouts.publish_timeout)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._is_up = False
        self._reconnects = 0
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

        Raises one of FAILURES if it does not; then, and when cancelled, nothing stays behind.
        """
        subscriber = self.loop.create_future()
        subscription = Subscription(channel, subject, subscriber, self._leave)
        self._subscriptions.add(subscription)
        self._changed.set()
        timeout = self._timeouts.subscribe_timeout
        try:
            async with asyncio.timeout(timeout):
                await subscriber
        except BaseException as error:
            self._leave(subscription)
            if isinstance(error, TimeoutError) and not str(error):
                raise self._fault or no_answer(timeout) from error
            raise
        return subscription.mailbox

    async def exchange(self, call: Call) -> list[Msg]:
        """Send a message and return its answer. Raises one of FAILURES; the server may have it even then."""
        try:
            return await self._outgoing.exchange(call, self._fault)
        finally:
            self._note_use()

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
            self._subscriptions.fail_waiting(self._client.fault)
            self._outgoing.close(self._client.fault)
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
        reconnects = self._reconnects
        asked = self._subscriptions.take_unasked()
        for subscription in asked:
            receiver = Receiver(self._receiver_of(subscription))
            subscription.on_server = await self._client.subscribe(subscription.subject, future=receiver)
        if asked or is_ping_due:
            await self._client.confirm()
        if self._is_up and self._reconnects == reconnects:
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
        return bool(len(self._subscriptions) or len(self._outgoing))

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

    # --- what nats-py reports ---

    async def _note_up(self) -> None:
        self._reconnects += 1
        self._is_up = True
        self._subscriptions.confirm_all()
        self._changed.set()
        await self._outgoing.open()

    async def _note_lost(self) -> None:
        if self.has_ended:
            return
        self._is_up = False
        self._subscriptions.interrupt()
        self._outgoing.close(self._client.fault)
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
            self._outgoing.close(fault)

    def _note_refusal(self, kind: str, subject: str, error: Exception) -> None:
        if kind == "subscription":
            self._subscriptions.refuse(subject, error)
            self._changed.set()
        else:
            self._outgoing.refuse(subject, error)

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
