"""Stream: one connection from start to end, with its deadlines, independent of ASGI.

`composer.py` composes its chunks; `http/driver.py` and `app/service.py` send them.
"""

import logging
import math
import random
import time
from collections.abc import Callable
from contextvars import copy_context
from functools import partial

import anyio

from ..grant import Grant
from ..hub.delivery import Batch
from ..runtime.event_loop import Sleep, sleep_at_most, spawn, wake
from ..runtime.failure_log import fields
from ..runtime.inline_send import InlineSend
from ..runtime.scheduler import Timer
from ..settings import Timing
from ..slots import Lease
from ..wire.control import close_block, count_events, open_block, retry_line
from ..wire.cursor import Position
from ..wire.event import HEARTBEAT
from ..wire.reasons import EndReason, GapReason, OpenOutcome, StreamState
from .composer import Composer, Work
from .context import StreamContext
from .counts import Sent
from .outbox import OutboxFullError

# A stream that ends for one of these reasons sends its outbox first: the client may receive the events that
# were published before a revocation. After `expired` its login has ended, and a `slow` client accepts no
# data.
_FLUSHING = frozenset({EndReason.DRAIN, EndReason.LIFETIME, EndReason.REPLACED, EndReason.REVOKED})

# How long after the end of a `send` that waited for too long the client's departure is still due to that, in
# seconds.
_STALLED_LATELY = 0.5


def draw_retry(timing: Timing) -> int:
    """Return a random reconnection time for one client, in milliseconds: 50 to 150 % of `timing.retry`."""
    return max(1, round(1000 * timing.retry * (0.5 + random.random())))


def draw_lifetime(timing: Timing) -> float | None:
    """Return a random lifetime for one stream, in seconds: 80 to 100 % of the maximum."""
    return None if timing.max_lifetime is None else timing.max_lifetime * random.uniform(0.8, 1.0)


class Stream:
    """One client's stream. It is attached to its channels from the start; `close` releases everything.

    The driver sends what `take_chunk` returns, and awaits `sleeping` when there is nothing, until the stream
    is `finished`; then it calls `close`. While it does not sleep, it counts as busy sending.
    """

    __slots__ = (
        "_busy_since",
        "_check_timer",
        "_chunk",
        "_composer",
        "_control_events",
        "_end_at",
        "_end_reason",
        "_last_chunk_at",
        "_now",
        "_on_closed",
        "_parked",
        "_retry",
        "_stalled_at",
        "_subscribe_timer",
        "_unsubscribed",
        "_work",
        "context",
        "driver",
        "finished",
        "grant",
        "inline",
        "lease",
        "multi_channel",
        "opened_at",
        "reason",
        "requested_at",
        "sent_bytes",
        "sleeping",
        "state",
    )

    def __init__(
        self,
        context: StreamContext,
        grant: Grant,
        on_closed: Callable[["Stream"], None],
        *,
        control_events: bool = True,
        last_event_id: str | None = None,
    ) -> None:
        self.grant = grant
        names = grant.channel_names
        self.multi_channel = len(names) > 1
        self.state = StreamState.OPENING
        self.reason: EndReason | None = None
        #: Whether `take_chunk` has returned the last chunk.
        self.finished = False
        #: The driver, if it can be interrupted.
        self.driver: InlineSend | None = None
        #: Whether the driver can begin a `send` while its task sleeps.
        self.inline = False
        self.lease: Lease | None = None
        #: When its request came, by the loop's clock; None if that is unknown, and after it has opened.
        self.requested_at: float | None = None
        self.context = context
        #: How many bytes the server was given to send.
        self.sent_bytes = 0
        # Called when the stream has closed.
        self._on_closed = on_closed
        self._control_events = control_events
        #: What the driver awaits when there is no chunk.
        self.sleeping: Sleep | None = None
        # Since when the driver has been sending a chunk; None while the stream waits for the next one.
        self._busy_since: float | None
        # The cancel scope of the running work: reading history, or a snapshot.
        self._work: anyio.CancelScope | None = None
        # Whether the driver's task sleeps and a `send` may begin meanwhile.
        self._parked = False
        #: The reconnection time of this client, in milliseconds.
        self._retry = draw_retry(context.timing)
        self._set_deadlines()
        # A chunk that the driver's task was woken for. It precedes what the composer has.
        self._chunk = b""
        self._unsubscribed: tuple[str, ...] = ()
        # The end of each log when its channel is attached: a new client starts there.
        ends: dict[str, Position] = {}
        # Composed before it is attached: attaching delivers what other streams wait for, and a middleware of
        # theirs may publish to this stream's channels.
        self._composer = self._make_composer(ends, last_event_id)
        for name in names:
            channel = context.hub.attach(name, self)
            if not channel.ready:
                self._unsubscribed += (name,)
            elif channel.position is not None:
                ends[name] = channel.position
        self._subscribe_timer: Timer | None = None
        if self._unsubscribed:
            wait = context.timing.subscribe_timeout
            self._subscribe_timer = context.scheduler.call_later(wait, Stream._open_without_broker, self)

    def _make_composer(self, ends: dict[str, Position], last_event_id: str | None) -> Composer:
        return Composer(
            self.context,
            self.grant,
            ends,
            control_events=self._control_events,
            last_event_id=last_event_id,
        )

    # The hub calls these methods.

    def receive(self, batch: Batch, /) -> None:
        """Receive the deliveries of one turn of the loop. End as `slow` if the outbox is full."""
        if self.reason is not None:
            return
        if self._parked:
            if chunk := self._composer.pass_through(batch):
                self._send_inline(chunk, batch.time)
                return
        elif self._sleeps and (chunk := self._composer.pass_through(batch)):
            self._chunk = chunk
            assert self.sleeping is not None
            self.sleeping.set_result(True)
            return
        try:
            self._composer.put(batch)
        except OutboxFullError:
            self.end(EndReason.SLOW)
        else:
            wake(self.sleeping)

    def gap(self, channel: str, reason: GapReason, position: Position | None = None, /) -> None:
        """Send the client a gap, or end the stream if the client does not accept control events."""
        if self.reason is not None:
            return
        if not self._control_events:
            self.end(EndReason.BROKER)
            return
        try:
            self._composer.put_gap(channel, reason, position)
        except OutboxFullError:
            self.end(EndReason.SLOW)
        else:
            wake(self.sleeping)

    def reads_log(self, channel: str, /) -> bool:
        """Return whether it reads this channel from its log, and so drops what it receives of it now."""
        return self._composer.reads_log(channel)

    def subscribed(self, channel: str, /) -> None:
        """Called when a channel is subscribed. The stream opens after the last, or starts a late channel."""
        if channel not in self._unsubscribed:
            return
        self._unsubscribed = tuple(name for name in self._unsubscribed if name != channel)
        if self.state is StreamState.OPENING:
            self._composer.channel_subscribed(channel)
            wake(self.sleeping)
        elif not self._composer.channel_subscribed_late(channel):
            self.end(EndReason.BROKER)
        else:
            wake(self.sleeping)

    # The process and the driver call these methods.

    def end(self, reason: EndReason) -> None:
        """End the stream for this reason, unless it is ending already. Returns at once."""
        if reason in _FLUSHING:
            self.context.hub.flush()
        if self.reason is not None:
            return
        self.reason = reason
        self.state = StreamState.ENDING
        if self._work is not None:
            self._work.cancel()
        if reason not in _FLUSHING:
            self._composer.discard()
        wake(self.sleeping)

    def replaced(self) -> None:
        """End the stream because a newer one has taken its slot."""
        self.end(EndReason.REPLACED)

    def abort(self, reason: EndReason) -> None:
        """End and close the stream without a last chunk, and interrupt the driver."""
        if self.state is StreamState.CLOSED:
            return
        self.end(reason)
        self.close()
        if self.driver is not None:
            self.driver.interrupt()

    def close(self) -> None:
        """Give back the slot, detach from the channels, and cancel the timers. Harmless the second time."""
        if self.state is StreamState.CLOSED:
            return
        self.end(EndReason.ERROR)
        self.state = StreamState.CLOSED
        self.finished = True
        for channel in self.grant.channel_names:
            self.context.hub.detach(channel, self)
        self._check_timer.cancel()
        self._cancel_subscribe_timer()
        lease, self.lease = self.lease, None
        if lease is not None:
            lease.release()
        self._composer.discard()
        wake(self.sleeping)
        self._on_closed(self)

    async def next_chunk(self, timeout: float | None = None) -> bytes:
        """Return the next chunk, or b"" if there is none within `timeout` seconds.

        After the last chunk `finished` is True. Cancelling a call loses nothing: the next call returns the
        chunk.
        """
        while not (chunk := self.take_chunk()) and not self.finished:
            sleep = self.sleeping
            assert sleep is not None
            try:
                if not await (sleep if timeout is None else sleep_at_most(sleep, timeout)):
                    break
            finally:
                self.awake()
        return chunk

    def take_chunk(self) -> bytes:
        """Return the chunk to send now. After the last one `finished` is True.

        If there is none, return b"". Then await `sleeping`, and call `awake` in any case. This is not a
        coroutine, since each takes 500 bytes for as long as its stream is idle.
        """
        chunk = self._ready() if self.reason is None else b""
        if not chunk and self.reason is not None:
            chunk = self._last_chunk()
        if chunk:
            self.sent_bytes += len(chunk)
            now = self._now()
            if self._busy_since is not None and now - self._busy_since > self.context.stall_after:
                self._stalled_at = now
            self._busy_since = self._last_chunk_at = now
        elif not self.finished:
            self._busy_since = None
            self._parked = self.inline and self.state is StreamState.LIVE
            self.sleeping = self.context.make_sleep()
        return chunk

    def awake(self) -> None:
        """Called when the sleep has ended, also by a cancellation: then the send timeout has to run."""
        self._busy_since = self._now()
        self._parked = False

    def _ready(self) -> bytes:
        """Open the stream if possible, return what can be sent now, and start the work for the rest."""
        if self._chunk:
            chunk, self._chunk = self._chunk, b""
            return chunk
        composer = self._composer
        if self.state is StreamState.OPENING:
            if self._unsubscribed and not composer.without_broker:
                return b""
            if not composer.open(self._retry):
                self._start_work()
                return b""
            if self._subscribe_timer is not None:
                self._cancel_subscribe_timer()
            self.state = StreamState.LIVE
            if self.requested_at is not None:
                self._note_response(self.requested_at)
        chunk = composer.ready()
        if composer.end_reason is not None:
            # A gap cannot be sent because control events are off, or the snapshot failed.
            self.end(composer.end_reason)
        elif composer.work is not None:
            # Start before this chunk is sent, so that a busy channel does not delay reading history.
            self._start_work()
        return chunk

    def _note_response(self, requested_at: float) -> None:
        """Count how long the response took to start. This is the task of the request."""
        context = self.context
        seconds, self.requested_at = self._now() - requested_at, None
        context.counts.open_duration.add(seconds)
        if context.on_response is not None:
            context.on_response(self, seconds)

    @property
    def outcome(self) -> OpenOutcome | None:
        """How it has opened, None if it has not."""
        return self._composer.outcome

    @property
    def sent(self) -> Sent:
        """What it has sent."""
        # The driver's task was woken for a chunk that it has not taken yet: this is not sent.
        return Sent(self._composer.sent_events - count_events(self._chunk), self.sent_bytes)

    @property
    def waiting_bytes(self) -> int:
        """How many bytes wait in its outbox."""
        return self._composer.waiting_bytes

    def _start_work(self) -> None:
        """Start a task for the composer's work, with the context of this task, unless one is running."""
        work = self._composer.work
        if work is not None and self._work is None:
            self._work = anyio.CancelScope()
            spawn(partial(self._run_work, work, self._work), "livepush history", copy_context())

    async def _run_work(self, work: Work, scope: anyio.CancelScope) -> None:
        try:
            with scope:
                await work()
        except Exception as error:
            self.context.failures.log(
                logging.ERROR,
                "reading history or a snapshot for a stream failed: this is a defect of livepush_asgi",
                error=error,
                extra=fields("stream_failed"),
            )
            self.end(EndReason.ERROR)
        except BaseException:
            # Cancelled from outside. A retry might be cancelled again and again.
            self.end(EndReason.ERROR)
            raise
        finally:
            self._work = None
            wake(self.sleeping)

    @property
    def _sleeps(self) -> bool:
        """Whether the driver's task waits for a chunk and was not woken yet."""
        sleep = self.sleeping
        return sleep is not None and not sleep.done()

    def _send_inline(self, chunk: bytes, now: float) -> None:
        self.sent_bytes += len(chunk)
        self._last_chunk_at = now
        assert self.driver is not None
        # A middleware's `send` may publish, and nothing else may be sent before it has returned.
        self._parked = False
        if self.driver.begin(chunk):
            self._parked = self.sleeping is not None and not self.sleeping.done()
        else:
            # The driver's task has to finish the `send`.
            self._busy_since = now
            wake(self.sleeping)

    def _last_chunk(self) -> bytes:
        if self.finished:
            return b""
        # An end that discards sends nothing more: an id composed now could be beyond what was discarded.
        chunk = b""
        if self.reason in _FLUSHING:
            chunk, self._chunk = self._chunk + self._composer.flush(), b""
        self.finished = True
        assert self.reason is not None
        return b"" if self.reason is EndReason.DISCONNECT else chunk + self._closing(self.reason)

    def _closing(self, reason: EndReason) -> bytes:
        """Return the close event, or what replaces it without control events."""
        retry = self._retry
        if self._control_events:
            opened = self._composer.outcome is not None
            opening = b"" if opened else open_block(retry, None, resumed=False)
            return opening + close_block(reason, retry)
        # A generator that has returned may have set another reconnection time.
        return b"" if reason is EndReason.FINISHED else retry_line(retry)

    def _cancel_subscribe_timer(self) -> None:
        # Drop the timer, to save memory while the stream is open.
        timer, self._subscribe_timer = self._subscribe_timer, None
        if timer is not None:
            timer.cancel()

    def _open_without_broker(self) -> None:
        self._composer.without_broker = True
        wake(self.sleeping)

    # Deadlines: one timer for the heartbeat, the send timeout, the lifetime and the expiry.

    def _set_deadlines(self) -> None:
        timing, self._now = self.context.timing, self.context.scheduler.now
        now = self._now()
        #: When it was attached to its channels, by the loop's clock.
        self.opened_at = now
        self._busy_since = now
        self._last_chunk_at = now
        # When a `send` has ended that waited for too long.
        self._stalled_at = -math.inf
        #: When the stream has to end, by the loop's clock, and why.
        self._end_at, self._end_reason = math.inf, EndReason.LIFETIME
        lifetime = draw_lifetime(timing)
        if lifetime is not None:
            self._end_at = now + lifetime
        if self.grant.expiry is not None:
            expires_at = now + self.grant.expiry - time.time()
            if expires_at <= self._end_at:
                self._end_at, self._end_reason = expires_at, EndReason.EXPIRED
        first = min(timing.send_timeout, timing.heartbeat_interval or timing.send_timeout)
        delay = min(first, self._end_at - now)
        self._check_timer: Timer = self.context.scheduler.call_later(delay, Stream._check_deadlines, self)

    @property
    def departure(self) -> EndReason:
        """Why the stream ends if its client has gone: SLOW after a send that has waited for too long.

        If the client accepts no data, the kernel may close the connection before the send timeout. Some
        servers then let `send` return, or raise, before they tell of the disconnect.
        """
        now, busy_since = self._now(), self._busy_since
        stalls = busy_since is not None and now - busy_since > self.context.stall_after
        return EndReason.SLOW if stalls or now - self._stalled_at < _STALLED_LATELY else EndReason.DISCONNECT

    def _check_deadlines(self) -> None:
        """End the stream, abort it, or send a heartbeat, if that is due. Then set the timer again."""
        timing, now = self.context.timing, self._now()
        if now >= self._end_at:
            self._end_at = math.inf
            self.end(self._end_reason)
        busy = 0.0 if self._busy_since is None else now - self._busy_since
        if busy >= timing.send_timeout:
            self.abort(EndReason.SLOW)
            return
        due = min(timing.send_timeout - busy, self._end_at - now)
        if timing.heartbeat_interval is not None:
            idle = now - self._last_chunk_at
            if idle >= timing.heartbeat_interval:
                idle = 0.0
                self._send_heartbeat()
            due = min(due, timing.heartbeat_interval - idle)
        self._check_timer = self.context.scheduler.call_later(due, Stream._check_deadlines, self)

    def _send_heartbeat(self) -> None:
        if self._parked:
            self._send_inline(HEARTBEAT, self._now())
        else:
            self._composer.heartbeat_due = True
            wake(self.sleeping)
