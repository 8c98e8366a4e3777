"""Timekeeper: what becomes of a stream as time passes. Heartbeats, the send timeout, lifetime and expiry."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Protocol

from .clock import Clock, Timer
from .reasons import EndReason
from .request import Grant
from .settings import Timing


class Timed(Protocol):
    """What it needs of the process."""

    clock: Clock
    timing: Timing


class Timekeeper(ABC):
    """The appointments of one stream, from its making until `_stop_time`."""

    __slots__ = ("_busy_since", "_last_chunk_at", "_look", "_now", "_timers", "owner")

    owner: Timed

    def _start_time(self, grant: Grant) -> None:
        self._now = self.owner.clock.now
        #: Since when its client is being sent something; None while it sleeps.
        self._busy_since: float | None = self._now()
        self._last_chunk_at = self._busy_since
        self._timers: tuple[Timer, ...] = ()
        timing = self.owner.timing
        first = min(timing.send_timeout, timing.heartbeat_interval or timing.send_timeout)
        self._look: Timer = self.owner.clock.call_later(first, Timekeeper._check, self)
        lifetime = timing.own_lifetime()
        if lifetime is not None:
            self._at(lifetime, partial(self.end, EndReason.LIFETIME))
        if grant.expiry is not None:
            self._at(grant.expiry - time.time(), partial(self.end, EndReason.EXPIRED))

    def _stop_time(self) -> None:
        for timer in (self._look, *self._timers):
            timer.cancel()

    @property
    def stalled(self) -> bool:
        """Whether a send has been waiting for its client for most of that time."""
        busy_since, most = self._busy_since, self.owner.timing.send_timeout
        return busy_since is not None and self._now() - busy_since > 0.5 * most

    @abstractmethod
    def end(self, reason: EndReason) -> None:
        """Have the stream end for this reason."""

    @abstractmethod
    def abort(self, reason: EndReason) -> None:
        """End the stream without a last word."""

    @abstractmethod
    def _beat(self) -> None:
        """Send a heartbeat."""

    def _check(self) -> None:
        """Look after the heartbeat and the send in progress, and appoint the next look."""
        timing, now = self.owner.timing, self._now()
        busy = 0.0 if self._busy_since is None else now - self._busy_since
        if busy >= timing.send_timeout:
            self.abort(EndReason.SLOW)
            return
        due = timing.send_timeout - busy
        if timing.heartbeat_interval is not None:
            idle = now - self._last_chunk_at
            if idle >= timing.heartbeat_interval:
                idle = 0.0
                self._beat()
            due = min(due, timing.heartbeat_interval - idle)
        self._look = self.owner.clock.call_later(due, Timekeeper._check, self)

    def _at(self, delay: float, function: Callable[[], None]) -> None:
        self._timers += (self.owner.clock.call_later(delay, function),)
