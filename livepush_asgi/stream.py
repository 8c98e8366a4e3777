"""Stream: one connection from start to end, whatever carries its bytes. It takes no message of ASGI's;
`carrier.py` and `service.py` do.
"""

import logging
import time
from collections.abc import Callable
from enum import Enum
from typing import Protocol

from .clock import Clock, Timer
from .control import close_block, gap_block, open_block, retry_line
from .event import HEARTBEAT
from .hub import Hub
from .loop import make_waker
from .outbox import Delivery, Outbox, OutboxFullError
from .reasons import EndReason, GapReason
from .request import Grant
from .settings import Limits, Timing
from .slots import Lease

logger = logging.getLogger("livepush_asgi")

# What waits is still sent before these endings. Not so where the client has lost its right to it
# (expired, revoked) or does not take it (slow).
_FLUSHING = frozenset({EndReason.DRAIN, EndReason.LIFETIME, EndReason.REPLACED})


class StreamState(Enum):
    """Where a stream is in its life. (`refused` never becomes a stream; replaying has no use yet.)"""

    OPENING = "opening"
    LIVE = "live"
    ENDING = "ending"
    CLOSED = "closed"


class Owner(Protocol):
    """What a stream needs to know of the process it lives in."""

    hub: Hub
    clock: Clock
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

    def __init__(
        self, owner: Owner, grant: Grant, *, control_events: bool = True, resuming: bool = False
    ) -> None:
        self.grant = grant
        self.state = StreamState.OPENING
        self.reason: EndReason | None = None
        #: Whether the last chunk has been handed out.
        self.finished = False
        #: Called when the stream has to stop at once, in the middle of a send too.
        self.on_abort: Callable[[], None] | None = None
        self.lease: Lease | None = None
        self._owner = owner
        self._control_events = control_events
        self._resuming = resuming
        self._outbox = Outbox(owner.limits)
        self._waker = make_waker()
        self._now = owner.clock.now
        self._heartbeat_due = False
        self._busy_since: float | None = self._now()
        self._last_chunk_at = self._busy_since
        self._timers: dict[str, Timer] = {}
        self._unsubscribed = {name for name in grant.channel_names if not owner.hub.attach(name, self)}
        self._start_timers()

    # What the hub calls.

    def receive(self, delivery: Delivery, /) -> None:
        """Take a delivery, or end as slow when there is no room."""
        if self.reason is not None:
            return
        try:
            self._outbox.put(delivery)
        except OutboxFullError:
            self.end(EndReason.SLOW)
        else:
            self._waker.wake()

    def gap(self, channel: str, reason: GapReason, /) -> None:
        """Tell the client that events are missing here; end the stream if it cannot be told."""
        if self._control_events:
            self.receive(Delivery(channel, gap_block(channel, reason)))
        else:
            self.end(EndReason.SLOW if reason is GapReason.OVERFLOW else EndReason.BROKER)

    def subscribed(self, channel: str, /) -> None:
        """Open, when this was the last channel to wait for."""
        self._unsubscribed.discard(channel)
        if not self._unsubscribed:
            self._waker.wake()

    # What its owner and its carrier call.

    def end(self, reason: EndReason) -> None:
        """Have the stream end for this reason, unless it is ending already. Returns at once."""
        if self.reason is not None:
            return
        self.reason = reason
        self.state = StreamState.ENDING
        if reason not in _FLUSHING:
            self._outbox.clear()
        self._waker.wake()

    def abort(self, reason: EndReason) -> None:
        """End the stream without a last word: its client is gone or takes nothing."""
        if self.state is StreamState.CLOSED:
            return
        self.end(reason)
        self.close()
        if self.on_abort is not None:
            self.on_abort()

    def close(self) -> None:
        """Give back the slot, the channels and the timers. Returns at once; harmless the second time."""
        if self.state is StreamState.CLOSED:
            return
        self.end(EndReason.ERROR)
        self.state = StreamState.CLOSED
        self.finished = True
        for channel in self.grant.channel_names:
            self._owner.hub.detach(channel, self)
        for timer in self._timers.values():
            timer.cancel()
        if self.lease is not None:
            self.lease.give_back()
        self._outbox.clear()
        self._waker.wake()
        self._owner.closed(self)

    async def next_chunk(self) -> bytes:
        """Wait for what is to be sent next. After the last one, `finished` is true; then b"" comes.

        Cancelling a call loses nothing: what it would have returned is returned by the next one.
        """
        self._busy_since = None
        try:
            chunk = await (self._open() if self.state is StreamState.OPENING else self._wait_for_chunk())
        finally:
            # Also when cancelled: whoever gives up asking must not keep the stream for ever.
            self._busy_since = self._now()
        self._last_chunk_at = self._busy_since
        return chunk

    async def _open(self) -> bytes:
        # The client may take `livepush.open` to mean that from here on nothing is missed, so it waits
        # for the broker. When that takes too long the stream opens, and a gap is told afterwards.
        # (Woken for many reasons, whoever sleeps looks again at what it was waiting for.)
        while self._unsubscribed and self.reason is None:
            await self._waker.wait()
        if self.reason is not None:
            return self._last_chunk()
        self.state = StreamState.LIVE
        retry = self._owner.timing.own_retry()
        if not self._control_events:
            return retry_line(retry) + self._joined()
        gaps = self.grant.channel_names if self._resuming else ()
        return (
            open_block(retry) + b"".join(gap_block(name, GapReason.UNKNOWN) for name in gaps) + self._joined()
        )

    async def _wait_for_chunk(self) -> bytes:
        while True:
            if self.reason is not None:
                return self._last_chunk()
            if self._outbox:
                self._heartbeat_due = False
                if chunk := self._joined():
                    return chunk
            elif self._heartbeat_due:
                self._heartbeat_due = False
                return HEARTBEAT
            else:
                await self._waker.wait()

    def _joined(self) -> bytes:
        dropped = self._outbox.take_dropped()
        if dropped and not self._control_events:
            self.end(EndReason.SLOW)
            return b""
        gaps = b"".join(gap_block(channel, GapReason.OVERFLOW) for channel in dropped)
        return gaps + self._outbox.take()

    def _last_chunk(self) -> bytes:
        if self.finished:
            return b""
        chunk = b""
        while self._outbox:
            chunk += self._joined()
        self.finished = True
        if self.reason in (EndReason.DISCONNECT, None):
            return b""
        assert self.reason is not None
        retry = self._owner.timing.own_retry()
        return chunk + (close_block(self.reason, retry) if self._control_events else retry_line(retry))

    # Time.

    def _start_timers(self) -> None:
        self._check()
        if self._unsubscribed:
            self._at("open", self._owner.timing.subscribe_timeout, self._open_anyway)
        lifetime = self._owner.timing.own_lifetime()
        if lifetime is not None:
            self._at("lifetime", lifetime, lambda: self.end(EndReason.LIFETIME))
        if self.grant.expiry is not None:
            self._at("expiry", self.grant.expiry - time.time(), lambda: self.end(EndReason.EXPIRED))

    def _open_anyway(self) -> None:
        self._unsubscribed.clear()
        self._waker.wake()

    def _check(self) -> None:
        """Look after the heartbeat and the send in progress, and appoint the next look."""
        timing, now = self._owner.timing, self._now()
        if self._busy_since is not None and now - self._busy_since >= timing.send_timeout:
            self.abort(EndReason.SLOW)
            return
        due = (
            timing.send_timeout if self._busy_since is None else self._busy_since + timing.send_timeout - now
        )
        if timing.heartbeat_interval is not None:
            idle = now - self._last_chunk_at
            if idle >= timing.heartbeat_interval:
                self._heartbeat_due, idle = True, 0.0
                self._waker.wake()
            due = min(due, timing.heartbeat_interval - idle)
        self._at("check", due, self._check)

    def _at(self, name: str, delay: float, function: Callable[[], None]) -> None:
        self._timers[name] = self._owner.clock.call_later(delay, function)
