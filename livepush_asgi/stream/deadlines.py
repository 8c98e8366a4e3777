"""Timekeeper: heartbeats, the send timeout, the maximum lifetime and the expiry of one stream."""

import math
import time
from abc import ABC, abstractmethod
from typing import Protocol

from ..grant import Grant
from ..runtime.scheduler import Clock, Timer
from ..settings import Timing
from ..wire.reasons import EndReason


class Timed(Protocol):
    """What it needs of the process."""

    clock: Clock
    timing: Timing


class Timekeeper(ABC):
    """The deadlines of one stream, from its making until `_stop_time`. They share one timer."""

    __slots__ = ("_busy_since", "_end_at", "_end_reason", "_last_chunk_at", "_look", "_now", "owner")

    owner: Timed

    def _start_time(self, grant: Grant) -> None:
        self._now = self.owner.clock.now
        #: Since when its client is being sent something; None while it sleeps.
        self._busy_since: float | None = self._now()
        self._last_chunk_at = self._busy_since
        #: When the stream has to end, by the loop's clock.
        self._end_at = math.inf
        self._end_reason = EndReason.LIFETIME
        timing = self.owner.timing
        lifetime = timing.own_lifetime()
        if lifetime is not None:
            self._end_at = self._busy_since + lifetime
        if grant.expiry is not None:
            expires_at = self._busy_since + grant.expiry - time.time()
            if expires_at <= self._end_at:
                self._end_at, self._end_reason = expires_at, EndReason.EXPIRED
        first = min(timing.send_timeout, timing.heartbeat_interval or timing.send_timeout)
        self._look_in(min(first, self._end_at - self._busy_since))

    def _stop_time(self) -> None:
        self._look.cancel()

    @property
    def stalled(self) -> bool:
        """Whether a send has been waiting for its client for most of the send timeout."""
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
        """Do what is due: end the stream, give up a send, send a heartbeat. Then set the timer again."""
        timing, now = self.owner.timing, self._now()
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
                self._beat()
            due = min(due, timing.heartbeat_interval - idle)
        self._look_in(due)

    def _look_in(self, delay: float) -> None:
        self._look: Timer = self.owner.clock.call_later(delay, Timekeeper._check, self)
