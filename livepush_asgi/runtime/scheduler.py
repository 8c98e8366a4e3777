"""One clock for all streams of a process: one task that calls functions when they are due."""

import heapq
import logging
import math
from collections.abc import Callable

import anyio

from .event_loop import time_source

logger = logging.getLogger("livepush_asgi")

# A timer is called up to this much late, in seconds, so that ten thousand streams do not wake the clock ten
# thousand times in every heartbeat interval.
RESOLUTION = 0.05
# A longer delay, in seconds, never ends: more than thirty years. So no sum overflows a loop's deadlines.
NEVER = 1e9
# A heap with fewer timers is not compacted: it would cost more than it frees.
WORTH_COMPACTING = 64


class Timer:
    """A function that the clock will call once. `cancel` keeps it from being called."""

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
        """Drop the function. Harmless the second time, and when the function was called already."""
        self._function = self._subject = None
        on_cancel, self._on_cancel = self._on_cancel, None
        if on_cancel is not None:
            on_cancel()

    def leave(self) -> None:
        """Note that the clock does not hold this timer any more."""
        self._on_cancel = None

    def call(self) -> None:
        """Call the function, unless cancelled. Exceptions are logged."""
        try:
            if self._function is None:
                return
            if self._subject is None:
                self._function()
            else:
                self._function(self._subject)
        except Exception:
            logger.exception("a timed call raised; the clock goes on")

    def __lt__(self, other: "Timer") -> bool:
        return self.when < other.when


class Clock:
    """Calls plain functions at or shortly after a time. `run` has to be running."""

    def __init__(self) -> None:
        #: The loop's own monotonic clock.
        self.now = time_source()
        self._timers: list[Timer] = []
        # How many of them are cancelled.
        self._cancelled = 0
        # Made once, and not for each timer.
        self._on_cancel = self._note_cancelled
        self._earlier = anyio.Event()
        self._sleeping_until = math.inf
        self._called_at = -math.inf

    def __len__(self) -> int:
        """Return how many timers are held. Cancelled ones are at most half of them, or a few dozen."""
        return len(self._timers)

    def call_later(self, delay: float, function: Callable[..., None], subject: object = None) -> Timer:
        """Have `function` called in `delay` seconds, with `subject` if there is one.

        A delay beyond `NEVER`, infinity and NaN included, never ends. Passing the subject separately saves
        a bound method for each of ten thousand streams.
        """
        if not delay <= NEVER:
            return Timer(math.inf, function, subject, None)
        timer = Timer(self.now() + max(0.0, delay), function, subject, self._on_cancel)
        heapq.heappush(self._timers, timer)
        if timer.when < self._sleeping_until - RESOLUTION:
            self._earlier.set()
        return timer

    async def run(self) -> None:
        """Call the timers as they become due, until cancelled."""
        while True:
            self._earlier = anyio.Event()
            self._sleeping_until = self._next_wakeup()
            with anyio.CancelScope(deadline=self._sleeping_until):
                await self._earlier.wait()
            self._call_due()

    def _next_wakeup(self) -> float:
        if not self._timers:
            return math.inf
        # A timer that was set again while the clock called it may be due already. It waits all the same, so
        # that the loop moves on where its time stands still between two turns.
        when = max(self._timers[0].when, self._called_at + RESOLUTION / 2)
        # Rounded, the product may be a hair before the time itself, which would then never be due.
        return max(when, math.ceil(when / RESOLUTION) * RESOLUTION)

    def _call_due(self) -> None:
        self._called_at = now = self.now()
        # Collected first: a timer that is set now is not called in this turn, however short its delay.
        due = []
        while self._timers and self._timers[0].when <= now:
            timer = heapq.heappop(self._timers)
            timer.leave()
            if timer.cancelled:
                self._cancelled -= 1
            else:
                due.append(timer)
        for timer in due:
            timer.call()

    def _note_cancelled(self) -> None:
        self._cancelled += 1
        # Each pass over the heap removes more than half of it, so a cancellation costs O(1) on average.
        if self._cancelled > len(self._timers) // 2 and len(self._timers) >= WORTH_COMPACTING:
            self._timers = [timer for timer in self._timers if not timer.cancelled]
            heapq.heapify(self._timers)
            self._cancelled = 0
