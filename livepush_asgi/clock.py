"""One clock for all streams of a process: it calls functions when their time has come, from one task."""

import heapq
import logging
import math
from collections.abc import Callable

import anyio

from .loop import time_source

logger = logging.getLogger("livepush_asgi")

# Deadlines are met up to so much late, so that ten thousand streams do not wake the clock ten thousand
# times in every heartbeat interval.
RESOLUTION = 0.05


class Timer:
    """One appointment. `cancel` keeps it from being called."""

    __slots__ = ("_function", "_subject", "when")

    def __init__(self, when: float, function: Callable[..., None], subject: object) -> None:
        self.when = when
        self._function: Callable[..., None] | None = function
        self._subject = subject

    def cancel(self) -> None:
        """Forget the function. Harmless when it was called already."""
        self._function = self._subject = None

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
        self._earlier = anyio.Event()
        self._sleeping_until = math.inf

    def call_later(self, delay: float, function: Callable[..., None], subject: object = None) -> Timer:
        """Have `function` called in `delay` seconds, with `subject` if there is one.

        A method bound to it would be one more object for each of ten thousand streams.
        """
        timer = Timer(self.now() + max(0.0, delay), function, subject)
        heapq.heappush(self._timers, timer)
        if timer.when < self._sleeping_until:
            self._earlier.set()
        return timer

    async def run(self) -> None:
        """Keep the appointments until cancelled."""
        while True:
            self._earlier = anyio.Event()
            self._sleeping_until = self._next_wakeup()
            with anyio.CancelScope(deadline=self._sleeping_until):
                await self._earlier.wait()
            self._call_due()

    def _next_wakeup(self) -> float:
        if not self._timers:
            return math.inf
        # Rounded, the product may be a hair before the time itself, which would then never be due.
        when = self._timers[0].when
        return max(when, math.ceil(when / RESOLUTION) * RESOLUTION)

    def _call_due(self) -> None:
        now = self.now()
        while self._timers and self._timers[0].when <= now:
            heapq.heappop(self._timers).call()
