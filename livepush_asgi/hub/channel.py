"""Channel: one channel in this process. It keeps one subscription up, for all the local listeners; what it
delivers goes through the process's Coalescer.
"""

import logging
import math
from collections.abc import Callable

import anyio
import anyio.lowlevel

from ..brokers import Broker, Sink, Subscription
from ..brokers.backoff import Backoff
from ..errors import InvalidEventError, MessagesLostError
from ..runtime.scheduler import Timer
from ..wire.cursor import Position
from ..wire.event import RESERVED_PREFIX, split_position
from ..wire.reasons import GapReason
from .delivery import Batch, Delivery, Listener, delivery_of

logger = logging.getLogger("livepush_asgi")

# How long one `get_message` of a subscription without `forward` may wait, in seconds. Nothing depends
# on it but how often such an adapter's wait is renewed.
POLL_TIMEOUT = 60.0
# The first and the longest delay before the broker is tried again, in seconds.
RETRY_FIRST, RETRY_MOST = 0.2, 5.0
# How much a task that asks for messages delivers before it gives the streams their turn to send it.
MESSAGES_PER_TURN, BYTES_PER_TURN = 32, 128 * 1024
# At so many deliveries the end of the turn is not waited for: a publisher that never lets go of the loop
# must not fill the memory.
MOST_PENDING = 256
# What closing a subscription may cost in time, in seconds, when the broker does not answer.
CLOSE_TIMEOUT = 2.0


class Coalescer:
    """Gathers what channels deliver in one turn of the event loop: each listener gets it as one batch.

    So the cost of an event is paid once for all of the turn: joined once, put once, sent once. `call_soon`
    has the loop call a function in its next turn.
    """

    def __init__(self, call_soon: Callable[[Callable[[], object]], object], now: Callable[[], float]) -> None:
        self._delivered = 0
        self._call_soon = call_soon
        self._now = now
        self._pending: list[tuple[Channel, Delivery]] = []
        self._end_scheduled = False
        self._flushing = False

    @property
    def delivered(self) -> int:
        """How many events of the application listeners were given, or are about to be given in this turn."""
        return self._delivered + sum(
            [len(channel.listeners) for channel, _ in self._pending if channel.counts]
        )

    def add(self, channel: "Channel", delivery: Delivery) -> None:
        """Deliver something at the end of this turn, behind all that was added before."""
        self._pending.append((channel, delivery))
        if len(self._pending) >= MOST_PENDING:
            self.flush()
        elif not self._end_scheduled:
            self._end_scheduled = True
            self._call_soon(self._end_turn)

    def flush(self) -> None:
        """Deliver now what is pending: before a listener is added or placed in a log, for instance."""
        # While a batch is given out nothing newer may overtake it.
        if not self._pending or self._flushing:
            return
        self._flushing = True
        try:
            pending, self._pending = self._pending, []
            self._deliver_batches(pending)
        finally:
            self._flushing = False

    def _end_turn(self) -> None:
        self._end_scheduled = False
        self.flush()

    def _deliver_batches(self, pending: "list[tuple[Channel, Delivery]]") -> None:
        by_channel: dict[Channel, list[Delivery]] = {}
        for channel, delivery in pending:
            by_channel.setdefault(channel, []).append(delivery)
        # The listeners to several channels, each with those of these channels that it hears.
        several: dict[Listener, set[Channel]] = {}
        # Raised when all listeners have their batches.
        failure: BaseException | None = None
        now = self._now()
        for channel, deliveries in by_channel.items():
            batch, listeners = Batch(deliveries, now), channel.listeners
            if channel.counts:
                self._delivered += len(deliveries) * len(listeners)
            for listener in listeners:
                if listener.several and len(by_channel) > 1:
                    several.setdefault(listener, set()).add(channel)
                    continue
                try:
                    listener.receive(batch)
                except BaseException as error:
                    failure = failure or error
        for listener, channels in several.items():
            try:
                listener.receive(Batch([item for channel, item in pending if channel in channels], now))
            except BaseException as error:
                failure = failure or error
        if failure is not None:
            raise failure


class Channel:
    """A channel, its listeners, and the subscription that feeds them. It is that subscription's sink.

    `on_attempt` is called after each attempt at the broker.
    """

    __slots__ = (
        "_attempted",
        "_broker",
        "_coalescer",
        "_listeners",
        "_on_attempt",
        "_snapshot",
        "_subscription",
        "_unreadable_logged",
        "check_at",
        "closed",
        "counts",
        "error",
        "lingering",
        "name",
        "position",
        "ready",
        "scope",
    )

    def __init__(
        self, name: str, broker: Broker, coalescer: Coalescer, on_attempt: Callable[["Channel"], None]
    ) -> None:
        self.name = name
        #: Whether its events are the application's, and not messages between processes.
        self.counts = not name.startswith(RESERVED_PREFIX)
        #: Up to where its log has been delivered, pending deliveries included; None without a log.
        self.position: Position | None = None
        #: Whether the channel was ever subscribed; what happens to it afterwards is told.
        self.ready = False
        self.closed = False
        #: The error of the last attempt at the broker; None when it succeeded.
        self.error: Exception | None = None
        #: When to `check` it next, by the loop's clock.
        self.check_at = math.inf
        #: The timer that ends it; None while there are listeners.
        self.lingering: Timer | None = None
        #: What cancels its task; None when that has ended, as it soon does where the subscription forwards.
        self.scope: anyio.CancelScope | None = None
        self._broker = broker
        self._coalescer = coalescer
        self._on_attempt = on_attempt
        self._listeners: dict[Listener, None] = {}
        self._snapshot: tuple[Listener, ...] | None = ()
        self._subscription: Subscription | None = None
        # Made for the first task that waits; most channels never have one.
        self._attempted: anyio.Event | None = None
        self._unreadable_logged = False

    def add(self, listener: Listener) -> None:
        """Let a listener hear what is delivered from now on."""
        self._coalescer.flush()
        self._listeners[listener] = None
        self._snapshot = None

    def remove(self, listener: Listener) -> bool:
        """Let a listener hear no more; return whether any is left."""
        self._listeners.pop(listener, None)
        self._snapshot = None
        return bool(self._listeners)

    @property
    def listeners(self) -> tuple[Listener, ...]:
        """The listeners of this moment."""
        # A snapshot, because a listener may go while it is being served (a finalizer, for one).
        if self._snapshot is None:
            self._snapshot = tuple(self._listeners)
        return self._snapshot

    def deliver(self, payload: bytes, /) -> None:
        """Pass a payload on to every listener. Plain synchronous code: no listener is waited for."""
        try:
            position, proper = split_position(payload)
        except InvalidEventError as error:
            self._log_unreadable(error)
            self.lost()
        else:
            self.deliver_at(position, proper)

    def deliver_at(self, position: Position | None, payload: bytes, /) -> None:
        """Pass on a payload whose position is known. Without a log to read, it is of no use."""
        self._dispatch(payload, None)

    def lost(self) -> None:
        """Tell every listener that events may be missing."""
        self._deliver_gap(GapReason.BROKER, None)

    def check(self) -> None:
        """Look whether something has been missed. Without a log there is nothing to look at."""

    async def wait_attempted(self) -> None:
        """Wait until the first attempt to subscribe has ended, well or not."""
        if not (self.ready or self.error or self.closed):
            self._attempted = self._attempted or anyio.Event()
            await self._attempted.wait()

    async def run(self) -> None:
        """Subscribe, and again whenever that fails or the subscription ends; until cancelled.

        Returns early when the subscription delivers by itself.
        """
        backoff = Backoff(RETRY_FIRST, RETRY_MOST)
        while True:
            try:
                if await self._subscribe():
                    return
                backoff.reset()
                await self._read()
            except Exception as error:
                self._attempt_ended(error)
            await self._close_subscription()
            await anyio.sleep(backoff.next_delay())

    async def close(self) -> None:
        """Give the subscription back. Bounded in time; never raises but when cancelled."""
        self.closed = True
        if self._attempted is not None:
            self._attempted.set()
        await self._close_subscription()

    async def _subscribe(self) -> bool:
        """Subscribe, and return whether the subscription delivers by itself."""
        subscription = self._subscription = await self._broker.subscribe(self.name)
        # Asking a protocol costs as much as all the rest of a subscription in memory.
        forward: Callable[[Sink], None] | None = getattr(subscription, "forward", None)
        if forward is not None:
            forward(self)
        await self._catch_up()
        is_first, self.ready = not self.ready, True
        self._attempt_ended(None)
        if is_first:
            for listener in self.listeners:
                listener.subscribed(self.name)
        return forward is not None

    async def _catch_up(self) -> None:
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

    async def _close_subscription(self) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription is None:
            return
        with anyio.move_on_after(CLOSE_TIMEOUT, shield=True):
            try:
                await subscription.close()
            except Exception:
                logger.warning("closing the subscription to %r failed", self.name, exc_info=True)

    def _dispatch(self, payload: bytes, position: Position | None) -> None:
        """Give what was published to every listener, or tell them that it cannot be given."""
        try:
            delivery = delivery_of(self.name, payload, position)
        except InvalidEventError as error:
            self._log_unreadable(error)
            self._deliver_gap(GapReason.BROKER, position)
            return
        self._coalescer.add(self, delivery)

    def _deliver_gap(self, reason: GapReason, position: Position | None) -> None:
        """Tell every listener that events are missing, in a log those up to `position`."""
        self._coalescer.flush()
        for listener in self.listeners:
            listener.gap(self.name, reason, position)

    def _attempt_ended(self, error: Exception | None) -> None:
        """Take note of how an attempt at the broker has ended."""
        self.error = error
        self._on_attempt(self)
        if self._attempted is not None:
            self._attempted.set()

    def _log_unreadable(self, error: InvalidEventError) -> None:
        if not self._unreadable_logged:
            self._unreadable_logged = True
            logger.warning("a payload on %r cannot be delivered: %s (told once)", self.name, error)
