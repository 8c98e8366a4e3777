"""Topic: one channel in this process. It keeps one subscription for all the local listeners, and keeps
it up.
"""

import logging
import random
from collections.abc import Callable
from typing import Protocol

import anyio

from .broker import Broker, ForwardingSubscription, Subscription
from .errors import InvalidEventError, MessagesLostError
from .event import from_payload
from .outbox import Delivery
from .reasons import GapReason

logger = logging.getLogger("livepush_asgi")

# How long one `get_message` of a subscription without `forward` may wait, in seconds. Nothing depends
# on it but how often such an adapter's wait is renewed.
POLL_TIMEOUT = 60.0
RETRY_FIRST, RETRY_MOST = 0.1, 5.0
# What closing a subscription may cost in time, in seconds, when the broker does not answer.
CLOSE_TIMEOUT = 2.0


class Listener(Protocol):
    """Who hears a channel. Both calls return at once and never raise."""

    def receive(self, delivery: Delivery, /) -> None:
        """Take what was published."""
        ...

    def gap(self, channel: str, reason: GapReason, /) -> None:
        """Hear that events may be missing at this point."""
        ...

    def subscribed(self, channel: str, /) -> None:
        """Hear that the channel is subscribed, for a listener that was attached before it was."""
        ...


class Topic:
    """A channel, its listeners, and the subscription that feeds them. It is that subscription's sink."""

    def __init__(self, channel: str, broker: Broker, watch: Callable[["Topic"], None]) -> None:
        self.channel = channel
        self.delivered = 0
        #: The error of the last attempt to subscribe; None when it succeeded.
        self.error: Exception | None = None
        self._broker = broker
        self._watch = watch
        self._listeners: dict[Listener, None] = {}
        self._snapshot: tuple[Listener, ...] | None = ()
        self._subscription: Subscription | None = None
        self._attempted = anyio.Event()
        self._complained = False

    def __len__(self) -> int:
        return len(self._listeners)

    @property
    def ready(self) -> bool:
        """Whether the subscription is up."""
        return self._subscription is not None

    def add(self, listener: Listener) -> None:
        """Let a listener hear what is delivered from now on."""
        self._listeners[listener] = None
        self._snapshot = None

    def remove(self, listener: Listener) -> None:
        """Let a listener hear no more."""
        self._listeners.pop(listener, None)
        self._snapshot = None

    def deliver(self, payload: bytes, /) -> None:
        """Pass a payload on to every listener. Plain synchronous code: nobody is waited for."""
        try:
            delivery = Delivery(self.channel, from_payload(payload))
        except InvalidEventError as error:
            self._complain(error)
            self.lost()
            return
        listeners = self._listening()
        self.delivered += len(listeners)
        for listener in listeners:
            listener.receive(delivery)

    def lost(self) -> None:
        """Tell every listener that events may be missing."""
        for listener in self._listening():
            listener.gap(self.channel, GapReason.BROKER)

    async def wait_attempted(self) -> None:
        """Wait until the first attempt to subscribe has ended, well or not."""
        await self._attempted.wait()

    async def run(self) -> None:
        """Subscribe, and again whenever that fails or the subscription ends; until cancelled.

        Returns early when the subscription delivers by itself.
        """
        failures = 0
        while True:
            try:
                if await self._subscribe(told=failures > 0):
                    return
                failures = 0
                await self._read()
            except Exception as error:
                self._set_error(error)
            failures += 1
            await self._forget_subscription()
            # Half of the delay is random, so that processes that failed together do not retry together.
            await anyio.sleep(
                min(RETRY_MOST, RETRY_FIRST * 2 ** min(failures, 10)) * random.uniform(0.5, 1.0)
            )

    async def close(self) -> None:
        """Give the subscription back. Bounded in time; never raises but when cancelled."""
        await self._forget_subscription()

    async def _subscribe(self, *, told: bool) -> bool:
        subscription = await self._broker.subscribe(self.channel)
        self._subscription = subscription
        self._set_error(None)
        if told:
            self.lost()
        for listener in self._listening():
            listener.subscribed(self.channel)
        if isinstance(subscription, ForwardingSubscription):
            subscription.forward(self)
            return True
        return False

    async def _read(self) -> None:
        assert self._subscription is not None
        while True:
            try:
                payload = await self._subscription.get_message(timeout=POLL_TIMEOUT)
            except MessagesLostError:
                self.lost()
                continue
            if payload is not None:
                self.deliver(payload)

    async def _forget_subscription(self) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription is None:
            return
        with anyio.move_on_after(CLOSE_TIMEOUT, shield=True):
            try:
                await subscription.close()
            except Exception:
                logger.warning("closing the subscription to %r failed", self.channel, exc_info=True)

    def _listening(self) -> tuple[Listener, ...]:
        # A snapshot, because a listener may go while it is being served (a finalizer, for one).
        if self._snapshot is None:
            self._snapshot = tuple(self._listeners)
        return self._snapshot

    def _set_error(self, error: Exception | None) -> None:
        self.error = error
        self._watch(self)
        self._attempted.set()

    def _complain(self, error: InvalidEventError) -> None:
        if not self._complained:
            self._complained = True
            logger.warning("a payload on %r cannot be delivered: %s (told once)", self.channel, error)
