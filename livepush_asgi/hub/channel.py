"""Topic: one channel in this process. It keeps one subscription for all the local listeners, and keeps
it up.
"""

import logging
import math
import random
from collections.abc import Callable
from typing import Protocol

import anyio
import anyio.lowlevel

from ..brokers import Broker, Sink, Subscription
from ..errors import InvalidEventError, MessagesLostError
from ..wire.cursor import Position, event_id
from ..wire.event import from_payload, split_position, with_id
from ..wire.reasons import GapReason
from .coalescing import Batch, Delivery, Turn

logger = logging.getLogger("livepush_asgi")

# How long one `get_message` of a subscription without `forward` may wait, in seconds. Nothing depends
# on it but how often such an adapter's wait is renewed.
POLL_TIMEOUT = 60.0
RETRY_FIRST, RETRY_MOST = 0.1, 5.0
# How much such an adapter's task delivers before it gives the streams their turn to send it.
MESSAGES_PER_TURN, BYTES_PER_TURN = 32, 128 * 1024
# What closing a subscription may cost in time, in seconds, when the broker does not answer.
CLOSE_TIMEOUT = 2.0


class Listener(Protocol):
    """Who hears a channel. The calls return at once and never raise."""

    #: Whether it hears several channels.
    several: bool

    def receive(self, batch: Batch, /) -> None:
        """Take what was published, all that one turn of the loop has brought."""
        ...

    def gap(self, channel: str, reason: GapReason, position: Position | None = None, /) -> None:
        """Hear that events may be missing at this point; in a log, up to this position."""
        ...

    def subscribed(self, channel: str, /) -> None:
        """Hear that the channel is subscribed, for a listener that was attached before it was."""
        ...


def delivery_of(channel: str, payload: bytes, position: Position | None) -> Delivery:
    """Return a payload as streams send it. Raises InvalidEventError for one that is no event."""
    block = from_payload(payload)
    if position is None:
        return Delivery(channel, block)
    return Delivery(channel, with_id(block, event_id(channel, position)), position, block)


class Topic:
    """A channel, its listeners, and the subscription that feeds them. It is that subscription's sink."""

    __slots__ = (
        "_attempted",
        "_broker",
        "_complained",
        "_listeners",
        "_snapshot",
        "_subscription",
        "_turn",
        "_was_attempted",
        "_watch",
        "channel",
        "check_at",
        "closed",
        "delivered",
        "error",
        "ready",
    )

    def __init__(self, channel: str, broker: Broker, turn: Turn, watch: Callable[["Topic"], None]) -> None:
        self.channel = channel
        self.delivered = 0
        #: Whether the channel was ever subscribed; what happens to it afterwards is told.
        self.ready = False
        self.closed = False
        #: The error of the last attempt to subscribe; None when it succeeded.
        self.error: Exception | None = None
        #: When to `check` it next, by the loop's clock.
        self.check_at = math.inf
        self._broker = broker
        self._turn = turn
        self._watch = watch
        self._listeners: dict[Listener, None] = {}
        self._snapshot: tuple[Listener, ...] | None = ()
        self._subscription: Subscription | None = None
        # Made for the first task that waits; most topics never have one.
        self._attempted: anyio.Event | None = None
        self._was_attempted = False
        self._complained = False

    def __len__(self) -> int:
        return len(self._listeners)

    def add(self, listener: Listener) -> None:
        """Let a listener hear what is delivered from now on."""
        self._turn.flush()
        self._listeners[listener] = None
        self._snapshot = None

    def remove(self, listener: Listener) -> None:
        """Let a listener hear no more."""
        self._listeners.pop(listener, None)
        self._snapshot = None

    @property
    def position(self) -> Position | None:
        """Up to where the listeners have been delivered the channel's log, None if it has none."""
        return None

    def deliver(self, payload: bytes, /) -> None:
        """Pass a payload on to every listener. Plain synchronous code: nobody is waited for."""
        try:
            # Without a log to read, a position is of no use.
            _, proper = split_position(payload)
        except InvalidEventError as error:
            self._complain(error)
            self.lost()
        else:
            self.dispatch(proper, None)

    def deliver_at(self, position: Position, payload: bytes, /) -> None:
        """Pass on a payload whose position is known. Without a log to read, it is of no use."""
        self.dispatch(payload, None)

    def lost(self) -> None:
        """Tell every listener that events may be missing."""
        self.tell_gap(GapReason.BROKER, None)

    def dispatch(self, payload: bytes, position: Position | None) -> None:
        """Give what was published to every listener, or tell them that it cannot be given."""
        try:
            delivery = delivery_of(self.channel, payload, position)
        except InvalidEventError as error:
            self._complain(error)
            self.tell_gap(GapReason.BROKER, position)
            return
        self.delivered += len(self._listeners)
        self._turn.add(self, delivery)

    def tell_gap(self, reason: GapReason, position: Position | None) -> None:
        """Tell every listener that events are missing, in a log those up to `position`."""
        self._turn.flush()
        for listener in self.hearers():
            listener.gap(self.channel, reason, position)

    async def wait_attempted(self) -> None:
        """Wait until the first attempt to subscribe has ended, well or not."""
        if not self._was_attempted:
            self._attempted = self._attempted or anyio.Event()
            await self._attempted.wait()

    async def run(self) -> None:
        """Subscribe, and again whenever that fails or the subscription ends; until cancelled.

        Returns early when the subscription delivers by itself.
        """
        failures = 0
        while True:
            try:
                if await self._subscribe():
                    return
                failures = 0
                await self._read()
            except Exception as error:
                self.set_error(error)
            failures += 1
            await self._forget_subscription()
            # Half of the delay is random, so that processes that failed together do not retry together.
            await anyio.sleep(
                min(RETRY_MOST, RETRY_FIRST * 2 ** min(failures, 10)) * random.uniform(0.5, 1.0)
            )

    async def close(self) -> None:
        """Give the subscription back. Bounded in time; never raises but when cancelled."""
        self.closed = self._was_attempted = True
        if self._attempted is not None:
            self._attempted.set()
        await self._forget_subscription()

    async def _subscribe(self) -> bool:
        subscription = await self._broker.subscribe(self.channel)
        self._subscription = subscription
        # Asking a protocol costs as much as all the rest of a subscription in memory.
        forward: Callable[[Sink], None] | None = getattr(subscription, "forward", None)
        if forward is not None:
            forward(self)
        await self.settle()
        self.set_error(None)
        if not self.ready:
            self.ready = True
            for listener in self.hearers():
                listener.subscribed(self.channel)
        return forward is not None

    def check(self) -> None:
        """Look whether something has been missed. Without a log there is nothing to look at."""

    async def settle(self) -> None:
        """Put right what a new subscription may have missed. Called each time that there is one."""
        if self.ready:
            self.lost()

    async def _read(self) -> None:
        assert self._subscription is not None
        messages = size = 0
        while True:
            # A subscription that always has something may never wait by itself.
            if messages >= MESSAGES_PER_TURN or size >= BYTES_PER_TURN:
                messages = size = 0
                await anyio.lowlevel.checkpoint()
            messages += 1
            try:
                payload = await self._subscription.get_message(timeout=POLL_TIMEOUT)
            except MessagesLostError:
                self.lost()
                continue
            if payload is not None:
                size += len(payload)
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

    def hearers(self) -> tuple[Listener, ...]:
        """Return the listeners of this moment."""
        # A snapshot, because a listener may go while it is being served (a finalizer, for one).
        if self._snapshot is None:
            self._snapshot = tuple(self._listeners)
        return self._snapshot

    def set_error(self, error: Exception | None) -> None:
        """Take note of how the last attempt at the broker went."""
        self.error = error
        self._watch(self)
        self._was_attempted = True
        if self._attempted is not None:
            self._attempted.set()

    def _complain(self, error: InvalidEventError) -> None:
        if not self._complained:
            self._complained = True
            logger.warning("a payload on %r cannot be delivered: %s (told once)", self.channel, error)
