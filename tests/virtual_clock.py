"""An asyncio event loop whose clock skips to the next timer when nothing is ready.

For tests in memory only: time that a socket, a thread or another process needs does not pass here.
"""

import asyncio
import gc
import math
import selectors

import anyio

from livepush_asgi.runtime.scheduler import Timer

from .event_loops import prepare

# Real seconds after which a loop that has no timer and hears nothing is taken for stuck.
PATIENCE = 20.0


class SkippingSelector(selectors.DefaultSelector):
    """Moves the clock forward instead of waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        #: After how many more turns of the loop a test counts as one that spins for ever.
        self.turns_left: float = math.inf

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return what is ready; the loop gives as `timeout` how far away its next timer is."""
        self.turns_left -= 1
        if not self.turns_left:
            raise RuntimeError(f"the event loop spins: it is {self.now} s, and no end in sight")
        if timeout is None:
            return self._next_wakeup()
        ready = super().select(0)
        if not ready:
            self.now += max(timeout, 0.0)
        return ready

    def _next_wakeup(self) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(PATIENCE)
        if not ready:
            raise RuntimeError("every task waits for something that no timer and no other task will bring")
        return ready


class VirtualClockLoop(asyncio.SelectorEventLoop):
    """A selector event loop that starts at time 0 and never waits for a timer."""

    def __init__(self) -> None:
        self._clock = SkippingSelector()
        super().__init__(self._clock)
        prepare(self)

    def time(self) -> float:
        """Return the virtual time in seconds."""
        return self._clock.now

    def bound(self, turns: int) -> None:
        """Raise RuntimeError, once, out of the loop when it has run so many more turns."""
        self._clock.turns_left = turns


async def let_pass(seconds: float) -> None:
    """Move the virtual clock on. Nothing is waited for: what is due by then has happened."""
    await anyio.sleep(seconds)


def live_timers() -> int:
    """Return how many timers of the component are held anywhere in this process."""
    gc.collect()
    return sum(type(each) is Timer for each in gc.get_objects())
