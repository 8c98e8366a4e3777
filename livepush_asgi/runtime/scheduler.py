"""Scheduler: the timers of all streams of a process, in one heap and one task."""

import heapq
import logging
import math
from collections.abc import Callable

import anyio

from .event_loop import time_source
from .failure_log import FailureLog, fields

# A timer fires up to this much late, in seconds, so that ten thousand streams do not wake the scheduler ten
# thousand times in every heartbeat interval.
RESOLUTION = 0.05
# A longer delay, in seconds, never ends. So no deadline of an event loop overflows.
NEVER = 1e9
# A smaller heap is not compacted: that would cost more time than it saves memory.
COMPACT_FROM = 64


class Timer:
    """A function that the scheduler calls once, unless the timer is cancelled before."""

    __slots__ = ("_function", "_on_cancel", "_subject", "when")

    def __init__(
        self,
        when: float,
        function: Callable[..., None],
        subject: object,
        on_cancel: Callable[[], None] | None,
    ) -> None:
        self.when = when
        self._function: Callable[..., None] | None = function
        self._subject = subject
        self._on_cancel = on_cancel

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._function is None

    def cancel(self) -> None:
        """Cancel the timer. Harmless the second time, and after the function was called."""
        self._function = self._subject = None
        on_cancel, self._on_cancel = self._on_cancel, None
        if on_cancel is not None:
            on_cancel()

    def mark_removed(self) -> None:
        """Called when the scheduler has removed the timer from its heap."""
        self._on_cancel = None

    def call(self) -> None:
        """Call the function unless the timer is cancelled."""
        if self._function is None:
            return
        if self._subject is None:
            self._function()
        else:
            self._function(self._subject)

    def __lt__(self, other: "Timer") -> bool:
        return self.when < other.when


class Scheduler:
    """Calls plain functions at their time, or up to `RESOLUTION` later, while `run` is running."""

    def __init__(self) -> None:
        #: The monotonic clock of the event loop.
        self.now = time_source()
        self._timers: list[Timer] = []
        # How many timers in the heap are cancelled.
        self._cancelled = 0
        # One bound method for all timers.
        self._on_cancel = self._count_cancelled
        self._earlier_timer_set = anyio.Event()
        self._sleeping_until = math.inf
        self._last_call_at = -math.inf
        self._failures = FailureLog()

    def __len__(self) -> int:
        """Return the size of the heap. At most half of its timers, or a few dozen, are cancelled."""
        return len(self._timers)

    def call_later(self, delay: float, function: Callable[..., None], subject: object = None) -> Timer:
        """Call `function` in `delay` seconds, with `subject` unless that is None. Returns at once.

        A delay beyond `NEVER`, infinity and NaN included, never ends. Passing the subject separately saves a
        bound method for each stream.
        """
        if not delay <= NEVER:
            return Timer(math.inf, function, subject, None)
        timer = Timer(self.now() + max(0.0, delay), function, subject, self._on_cancel)
        heapq.heappush(self._timers, timer)
        if timer.when < self._sleeping_until - RESOLUTION:
            self._earlier_timer_set.set()
        return timer

    async def run(self) -> None:
        """Call each timer when it is due, until cancelled."""
        while True:
            self._earlier_timer_set = anyio.Event()
            self._sleeping_until = self._next_wakeup()
            with anyio.CancelScope(deadline=self._sleeping_until):
                await self._earlier_timer_set.wait()
            self._call_due()

    def _next_wakeup(self) -> float:
        if not self._timers:
            return math.inf
        # A function may set a timer that is due at once. Wait all the same, so that the loop moves on even if
        # its clock does not advance between two turns.
        when = max(self._timers[0].when, self._last_call_at + RESOLUTION / 2)
        # Rounding may yield a time just before `when`, at which the timer would not be due.
        return max(when, math.ceil(when / RESOLUTION) * RESOLUTION)

    def _call_due(self) -> None:
        self._last_call_at = now = self.now()
        # Collect first, so that timers which the functions set are not called in this turn.
        due = []
        while self._timers and self._timers[0].when <= now:
            timer = heapq.heappop(self._timers)
            timer.mark_removed()
            if timer.cancelled:
                self._cancelled -= 1
            else:
                due.append(timer)
        for timer in due:
            try:
                timer.call()
            except Exception as error:
                self._failures.log(
                    logging.ERROR,
                    "a timed call raised; the other timers go on",
                    error=error,
                    extra=fields("timer_failed"),
                )

    def _count_cancelled(self) -> None:
        self._cancelled += 1
        # Each compaction removes more than half of the heap, so a cancellation costs O(1) on average.
        if self._cancelled > len(self._timers) // 2 and len(self._timers) >= COMPACT_FROM:
            self._timers = [timer for timer in self._timers if not timer.cancelled]
            heapq.heapify(self._timers)
            self._cancelled = 0
