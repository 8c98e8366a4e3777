"""Stream: one connection from start to end, whatever carries its bytes. It takes no message of ASGI's;
`carrier.py` and `service.py` do. What it sends is composed in `feed.py`.
"""

import logging
from collections.abc import Awaitable
from contextvars import copy_context
from functools import partial
from typing import Protocol

import anyio

from ..grant import Grant
from ..hub.delivery import Batch
from ..hub.hub import Hub
from ..runtime.event_loop import Alarm, Sleep, spawn
from ..runtime.inline_send import Carrier, DirectSend
from ..runtime.scheduler import Clock, Timer
from ..runtime.tcp_timeout import Connections
from ..settings import Limits, Timing
from ..slots import Lease
from ..wire.control import close_block, opening, retry_line
from ..wire.cursor import Position
from ..wire.event import HEARTBEAT
from ..wire.reasons import EndReason, GapReason, StreamState
from .composer import Feed, Work
from .deadlines import Timekeeper
from .outbox import OutboxFullError

logger = logging.getLogger("livepush_asgi")

# These endings send the outbox first: the client may have what was published before a revocation. After
# `expired` its login is over, and a `slow` client takes nothing.
_FLUSHING = frozenset({EndReason.DRAIN, EndReason.LIFETIME, EndReason.REPLACED, EndReason.REVOKED})


class Owner(Protocol):
    """What a stream needs to know of the process it lives in."""

    hub: Hub
    alarm: Alarm
    clock: Clock
    connections: Connections
    timing: Timing
    limits: Limits
    snapshots_fail: bool
    #: Whether `send` and `receive` may be called outside of the stream's task, where that is known to work.
    inline_send: bool

    def closed(self, stream: "Stream") -> None:
        """Hear that a stream has given everything back."""
        ...


class Stream(Timekeeper):
    """One client's stream. Made, it listens to its channels already; `close` gives everything back.

    The carrier asks `next_chunk` for bytes until `finished`, and closes. While it is not asking, it
    is taken to be busy sending.
    """

    __slots__ = (
        "_control_events",
        "_feed",
        "_parked",
        "_patience",
        "_sleep",
        "_unsubscribed",
        "_work",
        "carrier",
        "direct",
        "finished",
        "grant",
        "lease",
        "reason",
        "several",
        "state",
    )

    def __init__(
        self, owner: Owner, grant: Grant, *, control_events: bool = True, last_event_id: str | None = None
    ) -> None:
        self.grant = grant
        names = grant.channel_names
        self.several = len(names) > 1
        self.state = StreamState.OPENING
        self.reason: EndReason | None = None
        #: Whether the last chunk has been handed out.
        self.finished = False
        #: Who carries its bytes, if that can be interrupted.
        self.carrier: Carrier | None = None
        #: Set by a carrier whose `send` can be used while its task sleeps.
        self.direct: DirectSend | None = None
        self.lease: Lease | None = None
        self.owner: Owner = owner
        self._control_events = control_events
        self._sleep: Sleep | None = None
        # The scope of what is being waited for beside the stream: history or a snapshot.
        self._work: anyio.CancelScope | None = None
        # Whether the carrier's task sleeps and `direct` may take its place.
        self._parked = False
        self._feed = Feed(owner, grant, control_events=control_events, last_event_id=last_event_id)
        self._unsubscribed = tuple([name for name in names if not owner.hub.attach(name, self)])
        for channel in names:
            if channel not in self._unsubscribed:
                self._feed.begin(channel)
        self._start_time(grant)
        self._patience: Timer | None = None
        if self._unsubscribed:
            wait = owner.timing.subscribe_timeout
            self._patience = owner.clock.call_later(wait, Stream._open_anyway, self)

    # What the hub calls.

    def receive(self, batch: Batch, /) -> None:
        """Take what a turn has brought, or end as slow when there is no room."""
        if self.reason is not None:
            return
        direct = self.direct
        if self._parked and direct is not None and (chunk := self._feed.pass_through(batch)):
            self._last_chunk_at = batch.time
            if not direct.begin(chunk):
                self._leave_to_the_carrier()
            return
        try:
            self._feed.put(batch)
        except OutboxFullError:
            self.end(EndReason.SLOW)
        else:
            self._wake()

    def gap(self, channel: str, reason: GapReason, position: Position | None = None, /) -> None:
        """Tell the client that events are missing here; end the stream if it cannot be told."""
        if self.reason is not None:
            return
        if not self._control_events:
            self.end(EndReason.BROKER)
            return
        try:
            self._feed.put_gap(channel, reason, position)
        except OutboxFullError:
            self.end(EndReason.SLOW)
        else:
            self._wake()

    def subscribed(self, channel: str, /) -> None:
        """Open, when this was the last channel to wait for, or begin in a channel that came late."""
        if channel not in self._unsubscribed:
            return
        self._unsubscribed = tuple(name for name in self._unsubscribed if name != channel)
        if self.state is StreamState.OPENING:
            self._feed.begin(channel)
            self._wake()
        elif not self._feed.begin_late(channel):
            self.end(EndReason.BROKER)
        else:
            self._wake()

    # What its owner and its carrier call.

    def end(self, reason: EndReason) -> None:
        """Have the stream end for this reason, unless it is ending already. Returns at once."""
        if reason in _FLUSHING:
            self.owner.hub.flush()
        if self.reason is not None:
            return
        self.reason = reason
        self.state = StreamState.ENDING
        if self._work is not None:
            self._work.cancel()
        if reason not in _FLUSHING:
            self._feed.discard()
        self._wake()

    def replaced(self) -> None:
        """Have the stream end because a newer one has taken its slot."""
        self.end(EndReason.REPLACED)

    def abort(self, reason: EndReason) -> None:
        """End the stream without a last word: its client is gone or takes nothing."""
        if self.state is StreamState.CLOSED:
            return
        self.end(reason)
        self.close()
        if self.carrier is not None:
            self.carrier.interrupt()

    def close(self) -> None:
        """Give back the slot, the channels and the timers. Returns at once; harmless the second time."""
        if self.state is StreamState.CLOSED:
            return
        self.end(EndReason.ERROR)
        self.state = StreamState.CLOSED
        self.finished = True
        for channel in self.grant.channel_names:
            self.owner.hub.detach(channel, self)
        self._stop_time()
        self._wait_no_more()
        lease, self.lease = self.lease, None
        if lease is not None:
            lease.give_back()
        self._feed.discard()
        self._wake()
        self.owner.closed(self)

    async def next_chunk(self, patience: float | None = None) -> bytes:
        """Wait for what is to be sent next, or return b"" after `patience` seconds without anything.

        It may be b"" without that, when what was sent directly has to be finished. After the last chunk
        `finished` is true. Cancelling a call loses nothing: what it would have returned is returned by
        the next one.
        """
        self._busy_since = None
        try:
            while self.reason is None:
                chunk = self._ready()
                if self.reason is None:
                    # Before this chunk is sent, so that a busy channel does not keep history waiting.
                    self._start_work()
                if chunk:
                    self._last_chunk_at = self._now()
                    return chunk
                if self.reason is not None:
                    break
                self._parked = parked = self.direct is not None and self.state is StreamState.LIVE
                woken = await self._fall_asleep(patience)
                if self._parked is not parked or not (woken or patience is None):
                    return b""
                self._parked = False
            return self._last_chunk()
        finally:
            # Also when cancelled: a caller that gives up asking must not keep the stream for ever.
            self._busy_since = self._now()
            self._parked = False

    def _ready(self) -> bytes:
        """Open if that is possible now, and return what can be sent."""
        feed = self._feed
        if self.state is StreamState.OPENING:
            if self._waits_for_broker or feed.work():
                return b""
            feed.open()
            self._wait_no_more()
            self.state = StreamState.LIVE
        chunk = b"" if feed.unanswerable else feed.ready()
        if feed.unanswerable:
            # A gap must be told and control events are off, or the snapshot failed.
            chunk += feed.take_head()
            self.end(feed.unanswerable)
        return chunk

    @property
    def _waits_for_broker(self) -> bool:
        return bool(self._unsubscribed) and not self._feed.hurried

    def _start_work(self) -> None:
        """Start a task for what the feed waits for, in the context of this one, unless one runs already."""
        if self._work is not None or (self.state is StreamState.OPENING and self._waits_for_broker):
            return
        work = self._feed.work()
        if work is not None:
            self._work = anyio.CancelScope()
            spawn(partial(self._do, work, self._work), "livepush history", copy_context())

    async def _do(self, work: Work, scope: anyio.CancelScope) -> None:
        try:
            with scope:
                await work()
        except Exception:
            logger.exception("reading for a stream failed: this is a defect of livepush_asgi")
            self.end(EndReason.ERROR)
        except BaseException:
            # Cancelled, and not by this stream: begun again, it might be cancelled again without an end.
            self.end(EndReason.ERROR)
            raise
        finally:
            self._work = None
            self._wake()

    def _fall_asleep(self, patience: float | None) -> Awaitable[bool]:
        alarm = self.owner.alarm
        self._sleep = sleep = alarm.set()
        return alarm.wait(sleep, patience)

    def _wake(self) -> None:
        # Being woken while awake is forgotten.
        if self._sleep is not None:
            self.owner.alarm.wake(self._sleep)

    def _leave_to_the_carrier(self) -> None:
        self._parked = False
        self._busy_since = self._now()
        self._wake()

    def _last_chunk(self) -> bytes:
        if self.finished:
            return b""
        chunk, opened = self._feed.flush(), self._feed.opened
        self.finished = True
        assert self.reason is not None
        if self.reason is EndReason.DISCONNECT:
            return b""
        retry = self.owner.timing.own_retry()
        if self._control_events and not opened:
            chunk = opening(retry, None, resumed=False)
        return chunk + (close_block(self.reason, retry) if self._control_events else retry_line(retry))

    def _wait_no_more(self) -> None:
        # Kept, it would be one more object of a stream that has long been open.
        patience, self._patience = self._patience, None
        if patience is not None:
            patience.cancel()

    def _open_anyway(self) -> None:
        self._feed.hurried = True
        self._wake()

    def _beat(self) -> None:
        direct = self.direct
        if not self._parked or direct is None:
            self._feed.heartbeat_due = True
            self._wake()
            return
        self._last_chunk_at = self._now()
        if not direct.begin(HEARTBEAT):
            self._leave_to_the_carrier()
