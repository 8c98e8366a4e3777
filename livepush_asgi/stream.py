"""Stream: one connection from start to end, whatever carries its bytes. It takes no message of ASGI's;
`carrier.py` and `service.py` do. What it sends is composed in `feed.py`.
"""

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Protocol

from .clock import Clock, Timer
from .connection import Connections
from .control import close_block, retry_line
from .cursor import Position
from .direct import Carrier, DirectSend
from .feed import Feed
from .hub import Hub
from .loop import make_waker
from .outbox import OutboxFullError
from .reasons import EndReason, GapReason, StreamState
from .request import Grant
from .settings import Limits, Timing
from .slots import Lease
from .turn import Batch

logger = logging.getLogger("livepush_asgi")

# What waits is still sent before these endings. Not so where the client has lost its right to it
# (expired, revoked) or does not take it (slow).
_FLUSHING = frozenset({EndReason.DRAIN, EndReason.LIFETIME, EndReason.REPLACED})


class Owner(Protocol):
    """What a stream needs to know of the process it lives in."""

    hub: Hub
    clock: Clock
    connections: Connections
    timing: Timing
    limits: Limits

    def closed(self, stream: "Stream") -> None:
        """Hear that a stream has given everything back."""
        ...


class Stream:
    """One client's stream. Made, it listens to its channels already; `close` gives everything back.

    The carrier asks `next_chunk` for bytes until `finished`, and closes. While it is not asking, it
    is taken to be busy sending.
    """

    __slots__ = (
        "_busy_since",
        "_control_events",
        "_feed",
        "_last_chunk_at",
        "_look",
        "_now",
        "_parked",
        "_timers",
        "_unsubscribed",
        "_waker",
        "carrier",
        "direct",
        "finished",
        "grant",
        "lease",
        "owner",
        "reason",
        "several",
        "state",
    )

    def __init__(
        self, owner: Owner, grant: Grant, *, control_events: bool = True, last_event_id: str | None = None
    ) -> None:
        self.grant = grant
        self.several = len(grant.channel_names) > 1
        self.state = StreamState.OPENING
        self.reason: EndReason | None = None
        #: Whether the last chunk has been handed out.
        self.finished = False
        #: Who carries its bytes, if that can be interrupted.
        self.carrier: Carrier | None = None
        #: Set by a carrier whose `send` can be used while its task sleeps.
        self.direct: DirectSend | None = None
        self.lease: Lease | None = None
        self.owner = owner
        self._control_events = control_events
        self._waker = make_waker()
        # Whether the carrier's task sleeps and `direct` may take its place.
        self._parked = False
        self._feed = Feed(owner, grant, control_events=control_events, last_event_id=last_event_id)
        self._now = owner.clock.now
        self._busy_since: float | None = self._now()
        self._last_chunk_at = self._busy_since
        self._timers: tuple[Timer, ...] = ()
        self._look: Timer
        self._unsubscribed = tuple([name for name in grant.channel_names if not owner.hub.attach(name, self)])
        for channel in grant.channel_names:
            if channel not in self._unsubscribed:
                self._feed.begin(channel)
        self._start_timers()

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
            self._waker.wake()

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
            self._waker.wake()

    def subscribed(self, channel: str, /) -> None:
        """Open, when this was the last channel to wait for, or begin in a channel that came late."""
        if channel not in self._unsubscribed:
            return
        self._unsubscribed = tuple(name for name in self._unsubscribed if name != channel)
        if self.state is StreamState.OPENING:
            self._feed.begin(channel)
            self._waker.wake()
        elif not self._feed.begin_late(channel):
            self.end(EndReason.BROKER)
        else:
            self._waker.wake()

    # What its owner and its carrier call.

    @property
    def stalled(self) -> bool:
        """Whether a send has been waiting for its client for most of that time."""
        return (
            self._busy_since is not None
            and self._now() - self._busy_since > 0.5 * self.owner.timing.send_timeout
        )

    def end(self, reason: EndReason) -> None:
        """Have the stream end for this reason, unless it is ending already. Returns at once."""
        if reason in _FLUSHING:
            self.owner.hub.flush()
        if self.reason is not None:
            return
        self.reason = reason
        self.state = StreamState.ENDING
        if reason not in _FLUSHING:
            self._feed.discard()
        self._waker.wake()

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
        for timer in (self._look, *self._timers):
            timer.cancel()
        if self.lease is not None:
            self.lease.give_back()
        self._feed.discard()
        self._waker.wake()
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
                if chunk := await self._work():
                    self._last_chunk_at = self._now()
                    return chunk
                again_in = None if self.state is StreamState.OPENING else self._feed.again_in
                # It may have ended meanwhile, and whoever wakes one that is awake is not heard.
                if self.reason is not None or again_in == 0.0:
                    continue
                self._parked = parked = self.direct is not None and self.state is StreamState.LIVE
                limits = [limit for limit in (again_in, patience) if limit is not None]
                woken = await self._waker.wait(min(limits, default=None))
                if self._parked is not parked or not (woken or patience is None):
                    return b""
                self._parked = False
            return self._last_chunk()
        finally:
            # Also when cancelled: whoever gives up asking must not keep the stream for ever.
            self._busy_since = self._now()
            self._parked = False

    async def _work(self) -> bytes:
        """Do what there is to do, and return what can be sent."""
        if self.state is StreamState.OPENING:
            if self._unsubscribed and not self._feed.hurried:
                return b""
            await self._feed.open()
            # It may have ended while history was looked at.
            if self.reason is not None:
                return b""
            self.state = StreamState.LIVE
        chunk = b"" if self._feed.unanswerable else self._feed.ready() or await self._feed.next()
        if not chunk and self._feed.unanswerable:
            # What its client would have to be told it cannot be told.
            self.end(self._feed.unanswerable)
        return chunk

    def _leave_to_the_carrier(self) -> None:
        self._parked = False
        self._busy_since = self._now()
        self._waker.wake()

    def _last_chunk(self) -> bytes:
        if self.finished:
            return b""
        chunk = self._feed.flush()
        self.finished = True
        assert self.reason is not None
        if self.reason is EndReason.DISCONNECT:
            return b""
        retry = self.owner.timing.own_retry()
        return chunk + (close_block(self.reason, retry) if self._control_events else retry_line(retry))

    # Time.

    def _start_timers(self) -> None:
        self._check()
        if self._unsubscribed:
            self._at(self.owner.timing.subscribe_timeout, self._open_anyway)
        lifetime = self.owner.timing.own_lifetime()
        if lifetime is not None:
            self._at(lifetime, partial(self.end, EndReason.LIFETIME))
        if self.grant.expiry is not None:
            self._at(self.grant.expiry - time.time(), partial(self.end, EndReason.EXPIRED))

    def _open_anyway(self) -> None:
        self._feed.hurried = True
        self._waker.wake()

    def _check(self) -> None:
        """Look after the heartbeat and the send in progress, and appoint the next look."""
        timing, now = self.owner.timing, self._now()
        if self._busy_since is not None and now - self._busy_since >= timing.send_timeout:
            self.abort(EndReason.SLOW)
            return
        due = (
            timing.send_timeout if self._busy_since is None else self._busy_since + timing.send_timeout - now
        )
        if timing.heartbeat_interval is not None:
            idle = now - self._last_chunk_at
            if idle >= timing.heartbeat_interval:
                self._feed.heartbeat_due, idle = True, 0.0
                self._waker.wake()
            due = min(due, timing.heartbeat_interval - idle)
        self._look = self.owner.clock.call_later(due, self._check)

    def _at(self, delay: float, function: Callable[[], None]) -> None:
        self._timers += (self.owner.clock.call_later(delay, function),)
