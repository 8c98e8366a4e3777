"""Channel: one channel in this process, with one subscription for all its listeners.

Its deliveries go through the Coalescer of the process.
"""

import logging
import math
from collections.abc import Callable, Sequence

import anyio
import anyio.lowlevel

from ..brokers import Broker, Sink, Subscription
from ..brokers.backoff import Backoff
from ..errors import InvalidEventError, MessagesLostError
from ..runtime.failure_log import FailureLog, fields
from ..runtime.scheduler import Timer
from ..wire.cursor import Position
from ..wire.event import RESERVED_PREFIX, split_position
from ..wire.reasons import GapReason
from .counts import HubCounts
from .delivery import Delivery, Listener, LogBatch, batch_of, delivery_of

# The timeout of one `get_message` of a subscription without `forward`, in seconds. It only decides how often
# `get_message` is called again.
POLL_TIMEOUT = 60.0
# The first and the longest delay before a retry, in seconds.
RETRY_FIRST, RETRY_MAX = 0.2, 5.0
# How much a task that calls `get_message` delivers before it lets the streams send.
MESSAGES_PER_TURN, BYTES_PER_TURN = 32, 128 * 1024
# With this many pending deliveries the Coalescer does not wait for the end of the turn: a publisher that
# blocks the event loop must not fill the memory.
MAX_PENDING = 256
# How often the delivery lag of an event is measured, in seconds. It costs the broker a request.
SAMPLE_INTERVAL = 1.0
# How long closing a subscription may take, in seconds, if the broker does not answer.
CLOSE_TIMEOUT = 2.0


class Coalescer:
    """Coalesces the deliveries of all channels in one turn of the event loop into one batch per listener.

    So each turn joins blocks once, and each stream queues and sends once. `call_soon` schedules a function in
    the next turn of the loop.
    """

    def __init__(
        self,
        call_soon: Callable[[Callable[[], object]], object],
        now: Callable[[], float],
        counts: HubCounts | None = None,
        sample: Callable[[str, Position, float], object] | None = None,
    ) -> None:
        self.counts = counts or HubCounts()
        #: Logs the failures of all channels.
        self.failures = FailureLog()
        # Called with the position of an event and the time of its delivery, now and then.
        self._sample = sample
        self._sample_at = -math.inf if sample else math.inf
        self._call_soon = call_soon
        self._now = now
        #: The deliveries that wait for the end of the turn, and how many they are.
        self.pending: list[Pending] = []
        self._count = 0
        #: How many turns of the loop have had an end with deliveries, and callbacks of `note_turn`.
        self.turn = 0
        self._end_scheduled = False
        self._flushing = False
        # Whether a message between processes is pending.
        self._has_message = False

    def add(self, channel: "Channel", delivery: Delivery) -> None:
        """Deliver at the end of this turn, after all earlier deliveries."""
        self._add((channel, delivery), 1)

    def add_batch(self, channel: "Channel", batch: LogBatch) -> None:
        """Do what `add` does, with each delivery of a batch that was not delivered yet."""
        self._add((channel, batch), batch.count)

    def _add(self, pending: "Pending", count: int) -> None:
        self.pending.append(pending)
        self._count += count
        if self._count >= MAX_PENDING and not self._flushing:
            self.flush()
        elif not self._end_scheduled:
            self._end_scheduled = True
            self._call_soon(self._end_turn)

    def add_message(self, channel: "Channel", delivery: Delivery) -> None:
        """Deliver a message between processes now, after all earlier deliveries and before any later one.

        So a revocation keeps the events that were published after it from the streams that it ends.
        """
        self._has_message = True
        self.add(channel, delivery)
        self.flush()

    def flush(self) -> None:
        """Deliver all pending deliveries now: before a listener is added or started in a log, for example."""
        # While a batch is being delivered, nothing newer may overtake it.
        if not self.pending or self._flushing:
            return
        self._flushing = True
        try:
            pending, self.pending, self._count = self.pending, [], 0
            if self._has_message:
                self._has_message = False
                self._deliver_parts(pending)
            else:
                self._deliver_batches(pending)
        finally:
            self._flushing = False

    def _end_turn(self) -> None:
        self._end_scheduled = False
        self.turn += 1
        self.flush()

    def _deliver_parts(self, pending: "list[Pending]") -> None:
        """Deliver each message between processes by itself, and what is before and after it."""
        failure: BaseException | None = None
        while pending:
            messages = (at for at, (channel, _) in enumerate(pending) if not channel.counted)
            size = next(messages, len(pending)) or 1
            part, pending = pending[:size], pending[size:]
            try:
                self._deliver_batches(part)
            except BaseException as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def _deliver_batches(self, pending: "list[Pending]") -> None:
        by_channel: dict[Channel, list[Delivery | LogBatch]] = {}
        for channel, item in pending:
            by_channel.setdefault(channel, []).append(item)
        # The listeners that are attached to several channels, each with its channels in this turn.
        by_listener: dict[Listener, set[Channel]] = {}
        # Raised after all listeners have received their batches.
        failure: BaseException | None = None
        now = self._now()
        if now >= self._sample_at:
            self._take_sample(pending, now)
        for channel, items in by_channel.items():
            batch = batch_of(items)
            batch.time = now
            for listener in channel.listeners:
                if listener.multi_channel and len(by_channel) > 1:
                    by_listener.setdefault(listener, set()).add(channel)
                    continue
                try:
                    listener.receive(batch)
                except BaseException as error:
                    failure = failure or error
        for listener, channels in by_listener.items():
            try:
                batch = batch_of([item for channel, item in pending if channel in channels])
                batch.time = now
                listener.receive(batch)
            except BaseException as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def _take_sample(self, pending: "list[Pending]", now: float) -> None:
        # The hub delivers a gap at once, so none waits here.
        channel, item = pending[-1]
        if self._sample is not None and channel.counted and item.position:
            self._sample_at = now + SAMPLE_INTERVAL
            self._sample(channel.name, item.position, now)


# A channel, and what it delivers at the end of the turn.
Pending = tuple["Channel", Delivery | LogBatch]


class Channel:
    """A channel, its listeners, and its subscription. The channel is the sink of the subscription.

    `on_attempt` is called after each attempt to subscribe or to read.
    """

    __slots__ = (
        "_attempted",
        "_broker",
        "_coalescer",
        "_listeners",
        "_on_attempt",
        "_snapshot",
        "_subscription",
        "check_at",
        "closed",
        "counted",
        "doubtful",
        "error",
        "linger_timer",
        "name",
        "position",
        "ready",
        "scope",
    )

    def __init__(
        self, name: str, broker: Broker, coalescer: Coalescer, on_attempt: Callable[["Channel"], None]
    ) -> None:
        self.name = name
        #: Whether the statistics count it: its events are not messages between processes.
        self.counted = not name.startswith(RESERVED_PREFIX)
        #: The position up to which its log has been delivered, including pending deliveries; None without a
        #: log.
        self.position: Position | None = None
        #: Whether its log has an epoch at whose end acknowledged events may be missing: see `Page.doubtful`.
        self.doubtful = False
        #: Whether the channel was ever subscribed. Later losses are reported as gaps.
        self.ready = False
        self.closed = False
        #: The error of the last attempt to subscribe or to read; None if it succeeded.
        self.error: Exception | None = None
        #: The time of the next `check`, by the loop's clock.
        self.check_at = math.inf
        #: The timer that closes the channel; None while there are listeners.
        self.linger_timer: Timer | None = None
        #: The cancel scope of its task; None after the task has ended, at once if the subscription forwards.
        self.scope: anyio.CancelScope | None = None
        self._broker = broker
        self._coalescer = coalescer
        self._on_attempt = on_attempt
        self._listeners: dict[Listener, None] = {}
        self._snapshot: tuple[Listener, ...] | None = ()
        self._subscription: Subscription | None = None
        # Created for the first task that waits; most channels never need it.
        self._attempted: anyio.Event | None = None

    def add(self, listener: Listener) -> None:
        """Add a listener. It receives later deliveries only."""
        if self._coalescer.pending:
            self._coalescer.flush()
        self._listeners[listener] = None
        self._snapshot = None

    def remove(self, listener: Listener) -> bool:
        """Remove a listener. Return whether the channel still has listeners."""
        self._listeners.pop(listener, None)
        self._snapshot = None
        return bool(self._listeners)

    @property
    def listeners(self) -> tuple[Listener, ...]:
        """A snapshot of the listeners: a delivery or a finalizer may remove a listener meanwhile."""
        if self._snapshot is None:
            self._snapshot = tuple(self._listeners)
        return self._snapshot

    def deliver(self, payload: bytes, /) -> None:
        """Deliver a payload to every listener. Never waits for a listener."""
        try:
            position, proper = split_position(payload)
        except InvalidEventError as error:
            self._log_unreadable(error)
            self.lost()
        else:
            self.deliver_at(position, proper)

    def deliver_at(self, position: Position | None, payload: bytes, /) -> None:
        """Deliver a payload with a position. A channel without a log ignores the position."""
        self._dispatch(payload, None)

    def deliver_after(self, position: Position, payloads: Sequence[bytes], /) -> None:
        """Deliver the payloads that follow a position, as `deliver_at` does each of them."""
        for at, payload in zip(position.following(len(payloads)), payloads, strict=True):
            self.deliver_at(at, payload)

    def lost(self) -> None:
        """Send every listener a gap: events may be missing."""
        self._deliver_gap(GapReason.BROKER, None)

    def check(self) -> None:
        """Check the log for missed events. A channel without a log does nothing."""

    async def wait_read(self) -> None:
        """Wait until every known event is delivered, or a read of the log has failed."""

    async def wait_attempted(self) -> None:
        """Wait until the first attempt to subscribe has succeeded or failed."""
        if not (self.ready or self.error or self.closed):
            self._attempted = self._attempted or anyio.Event()
            await self._attempted.wait()

    async def run(self) -> None:
        """Subscribe, and again after each failure, until cancelled.

        Returns when subscribed if the subscription forwards its messages.
        """
        backoff = Backoff(RETRY_FIRST, RETRY_MAX)
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
        """Close the subscription. Bounded in time; raises only when cancelled."""
        self.closed = True
        if self._attempted is not None:
            self._attempted.set()
        await self._close_subscription()

    async def _subscribe(self) -> bool:
        """Subscribe, and return whether the subscription forwards its messages."""
        subscription = self._subscription = await self._broker.subscribe(self.name)
        # `isinstance` of a protocol costs as much as the rest of a subscription in memory.
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
        """Called after each subscription: report or read what may have been missed before it."""
        if self.ready:
            self.lost()

    async def _read(self) -> None:
        assert self._subscription is not None
        messages = size = 0
        while True:
            # A subscription that always has a message may never wait by itself.
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
            except Exception as error:
                self._coalescer.failures.log(
                    logging.WARNING,
                    "closing the subscription to %r failed",
                    self.name,
                    error=error,
                    extra=fields("close_failed", channel=self.name),
                )

    def _dispatch(self, payload: bytes, position: Position | None) -> None:
        """Deliver a payload to every listener, or send them a gap if it is no event."""
        try:
            delivery = delivery_of(self.name, payload, position)
        except InvalidEventError as error:
            self._log_unreadable(error)
            self._deliver_gap(GapReason.BROKER, position)
            return
        if self.counted:
            self._coalescer.counts.delivered += len(self._listeners)
            self._coalescer.add(self, delivery)
        else:
            self._coalescer.add_message(self, delivery)

    def _deliver_gap(self, reason: GapReason, position: Position | None) -> None:
        """Send every listener a gap: events are missing, in a log those up to `position`."""
        self._coalescer.flush()
        for listener in self.listeners:
            listener.gap(self.name, reason, position)

    def _attempt_ended(self, error: Exception | None) -> None:
        """Record the result of an attempt to subscribe or to read."""
        self.error = error
        self._on_attempt(self)
        if self._attempted is not None:
            self._attempted.set()

    def _log_unreadable(self, error: InvalidEventError) -> None:
        self._coalescer.failures.log(
            logging.WARNING,
            "a payload on %r cannot be delivered: %s",
            self.name,
            error,
            about=self.name,
            extra=fields("payload_unreadable", channel=self.name, error=str(error)),
        )
