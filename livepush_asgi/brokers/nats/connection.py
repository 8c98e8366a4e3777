"""The one connection of a broker: opened on first use, tested, and closed when it is idle.

nats-py reconnects when it breaks. This file reports the losses to the subscribers.
"""

import asyncio
import logging
import re
import time
from collections.abc import Callable, Sequence
from functools import partial
from weakref import WeakValueDictionary

from nats.aio.msg import Msg

from ...runtime.event_loop import start_task
from ..mailbox import Mailbox
from ..timeouts import no_answer
from .client import Client, Receiver
from .outgoing import Call, OutgoingQueue
from .settings import Settings
from .subscriptions import Subscription, SubscriptionTable

logger = logging.getLogger("livepush_asgi")

#: Returns the payload that mailboxes get for a message, None if they get none. It must not raise.
Decode = Callable[[Msg], bytes | None]

_REFUSAL = re.compile(r'permissions violation for (publish|subscription) to "([^"]*)"')


class Connection:
    """Subscribes, publishes and requests, on the event loop on which it was made."""

    def __init__(self, settings: Settings, decode: Decode) -> None:
        self.loop = asyncio.get_running_loop()
        #: Whether it is closed or about to be, so that the broker needs another one.
        self.has_ended = False
        self._settings = settings
        self._timeouts = settings.timeouts
        self._decode = decode
        self._client = Client(self._timeouts.ping)
        self._subscriptions = SubscriptionTable()
        self._outgoing = OutgoingQueue(self._client, self._timeouts.publish)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._is_up = False
        self._fault: Exception | None = None
        self._lost_at: float | None = None
        self._used_at = self.loop.time()
        self._task = start_task(self._run(), "livepush nats connection")

    @property
    def healthy(self) -> bool:
        """Whether the server has confirmed every subscription and the connection is up; True without any."""
        return not len(self._subscriptions) or (self._is_up and self._subscriptions.all_in_force)

    @property
    def server_version(self) -> tuple[int, int]:
        """The version of the server, (0, 0) before the first connection."""
        version = self._client.connected_server_version
        return version.major, version.minor

    def lock(self, key: str) -> asyncio.Lock:
        """Return the lock of a key, the same one for all callers. It belongs to this event loop."""
        return self._locks.setdefault(key, asyncio.Lock())

    async def subscribe(self, channel: str, subject: str) -> Mailbox:
        """Return the mailbox of a subscription that the server has confirmed.

        Raises one of FAILURES if it does not. In that case, and when cancelled, there is no subscription.
        """
        subscriber = self.loop.create_future()
        subscription = Subscription(channel, subject, subscriber, self._leave)
        self._subscriptions.add(subscription)
        timeout = self._timeouts.subscribe
        try:
            async with asyncio.timeout(timeout):
                if self._is_up:
                    await self._ask([subscription])
                await subscriber
        except BaseException as error:
            self._leave(subscription)
            if isinstance(error, TimeoutError) and not str(error):
                raise self._fault or no_answer(timeout) from error
            raise
        return subscription.mailbox

    async def exchange(self, call: Call) -> list[Msg]:
        """Send a message and return its answer. Raises one of FAILURES; the server may have got it then."""
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
            # One of the options is wrong: nats-py does not raise for a server that is away.
            logger.exception("cannot connect to %s", self._settings.address)
            self._client.fault = ConnectionError(f"{type(error).__name__}: {error}")
        finally:
            self.has_ended = True
            self._is_up = False
            self._subscriptions.fail_waiting(self._client.fault)
            self._outgoing.close(self._client.fault)
            await self._client.aclose()

    async def _watch(self) -> None:
        """Test the connection from time to time, until it was idle for `linger` seconds."""
        linger = self._settings.linger
        pinged_at = self.loop.time()
        while self._is_needed or self.loop.time() - self._used_at < linger:
            next_ping = pinged_at + self._timeouts.ping_interval - self.loop.time()
            if next_ping > 0:
                await asyncio.sleep(min(next_ping, linger))
                continue
            pinged_at = self.loop.time()
            if self._is_up:
                # Refused subscriptions are tried again, since permissions change.
                await self._ask(self._subscriptions.unasked)

    async def _ask(self, subscriptions: Sequence[Subscription]) -> None:
        """Ask the server for subscriptions, and for a PONG. Does not suspend."""
        for subscription in subscriptions:
            receiver = Receiver(partial(self._receive, subscription))
            subscription.on_server = await self._client.subscribe(subscription.subject, future=receiver)
        self._client.ping().add_done_callback(partial(self._note_confirmed, subscriptions))

    def _note_confirmed(self, subscriptions: Sequence[Subscription], pong: asyncio.Future[object]) -> None:
        # If the connection is lost, nats-py subscribes again.
        if pong.result() is True and self._is_up:
            for subscription in subscriptions:
                if subscription.on_server is not None:
                    self._subscriptions.confirm(subscription)
            self._note_back()

    def _receive(self, subscription: Subscription, message: Msg) -> None:
        payload = self._decode(message)
        if payload is not None:
            self._subscriptions.confirm(subscription)
            subscription.deliver(payload)

    @property
    def _is_needed(self) -> bool:
        return bool(len(self._subscriptions) or len(self._outgoing))

    def _leave(self, subscription: Subscription) -> None:
        self._subscriptions.remove(subscription)
        self._unsubscribe(subscription)
        self._note_use()

    def _unsubscribe(self, subscription: Subscription) -> None:
        on_server, subscription.on_server = subscription.on_server, None
        if on_server is not None and not self.has_ended and not self.loop.is_closed():
            start_task(on_server.unsubscribe(), "livepush nats unsubscribe")

    def _note_use(self) -> None:
        self._used_at = self.loop.time()
        if not (self._is_up or self._is_needed or self.has_ended or self.loop.is_closed()):
            # No caller waits for the server any more.
            self.has_ended = True
            self._task.cancel()

    # --- what nats-py reports ---

    async def _note_up(self) -> None:
        self._is_up = True
        self._subscriptions.confirm_all()
        await self._ask(self._subscriptions.unasked)
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
            # nats-py leaves the socket of a failed attempt open.
            self._client.abort()
            fault = error if str(error) else no_answer(self._timeouts.ping)
            if isinstance(error, ConnectionResetError) and self._fault is not None:
                # A server that refuses the login may close the connection before its reason is read. An
                # earlier attempt has read it.
                fault = self._fault
            self._note_away(fault)
            self._outgoing.close(fault)

    def _note_refusal(self, kind: str, subject: str, error: Exception) -> None:
        if kind == "subscription":
            for subscription in self._subscriptions.refuse(subject, error):
                self._unsubscribe(subscription)
        else:
            self._outgoing.refuse(subject, error)

    def _note_away(self, error: Exception) -> None:
        self._fault = error
        if self._lost_at is None and len(self._subscriptions):
            self._lost_at = time.monotonic()
            address = self._settings.address
            logger.warning("no connection to %s, trying until it works: %s", address, error)

    def _note_back(self) -> None:
        self._fault = None
        if self._lost_at is not None:
            away = time.monotonic() - self._lost_at
            self._lost_at = None
            address, count = self._settings.address, len(self._subscriptions)
            logger.warning("connected to %s again after %.1f s, %d channels", address, away, count)
