"""Arrivals: lets the requests of a wave proceed together.

After a restart thousands of clients reconnect at once. Opening a stream runs thousands of lines of Python,
and the server accepts and parses another request before the next one. Opened directly one after the other,
streams cost a sixth less processor time, because code and data are still in the processor's caches.
"""

import math
from collections.abc import Callable

import anyio

from ..runtime.event_loop import Sleep, sleep_maker, wake

# In seconds: how long a request of a wave waits at most.
WINDOW = 0.004
# How many requests of a window proceed at once. The later ones are a wave.
AT_ONCE = 8


class Arrivals:
    """Lets requests proceed at once, and those of a wave at the end of a window, in their order.

    `now` is the clock of the running loop.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._make_sleep = sleep_maker()
        self._window_ends = -math.inf
        # How many requests have arrived in this window.
        self._count = 0
        # The requests that wait behind the one that waits for the end of the window. None if none does.
        self._waiting: list[Sleep] | None = None

    def proceeds(self) -> bool:
        """Return whether the request that arrives now proceeds at once; else await `wait`."""
        if self._waiting is not None:
            return False
        now = self._now()
        if now >= self._window_ends:
            self._window_ends, self._count = now + WINDOW, 0
        self._count += 1
        return self._count <= AT_ONCE

    async def wait(self) -> None:
        """Wait for the end of the window."""
        if self._waiting is not None:
            sleep = self._make_sleep()
            self._waiting.append(sleep)
            await sleep
            return
        self._waiting = []
        try:
            await anyio.sleep(WINDOW)
        finally:
            # If this request is cancelled, the others proceed a little earlier.
            waiting, self._waiting = self._waiting, None
            # Requests of the next window continue the wave.
            self._window_ends, self._count = self._now() + WINDOW, AT_ONCE
            for sleep in waiting:
                wake(sleep)
