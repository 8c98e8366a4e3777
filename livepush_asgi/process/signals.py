"""SignalWatch: starts a drain at SIGTERM and SIGINT.

Servers send `lifespan.shutdown` too late for a streaming application: uvicorn sends it after all connections
have closed, which streams never do. So the component has to handle the signals itself.
"""

import logging
import math
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import cache
from types import FrameType

from ..runtime.event_loop import on_asyncio
from ..runtime.failure_log import fields

logger = logging.getLogger("livepush_asgi")

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# A signal that comes so soon after a held one is the same, in seconds: systemd and a terminal send it to
# every process of a server, and the parent of the workers passes it on, uvicorn's up to half a second later.
REPEAT_TIME = 1.0

# The argument of `signal.signal` and the result of `signal.getsignal`.
Handler = Callable[[int, FrameType | None], object] | int | None


class SignalWatch:
    """Calls a function at SIGTERM and SIGINT, and then the handler that was installed before.

    It calls the earlier handler at once, or, with `hold`, at `release`. At a second signal, more than
    REPEAT_TIME later, it calls the earlier handler at once. If the earlier handler is the default, which
    kills the process immediately, it holds signals for `window` seconds even without `hold`, because some
    servers send them twice.
    """

    def __init__(self, on_signal: Callable[[], None], *, hold: bool = False, window: float = 0.0) -> None:
        self._on_signal = on_signal
        self._hold = hold
        self._window = window
        self._earlier: dict[signal.Signals, Handler] = {}
        # The held signals, each with the time when it first came.
        self._held: dict[signal.Signals, float] = {}
        self._active = False
        self._on_asyncio = True

    def install(self) -> None:
        """Install the handlers. Only the main thread can; elsewhere a warning is logged once."""
        self._active = True
        self._on_asyncio = on_asyncio()
        try:
            for number in SIGNALS:
                self._install(number)
        except ValueError:
            self._active = False
            self._earlier.clear()
            _warn_undrained()

    def _install(self, number: signal.Signals) -> None:
        found = signal.getsignal(number)
        # None stands for a handler that was not installed from Python and cannot be called here. An ignored
        # signal stays ignored.
        if found is not None and found != signal.SIG_IGN:
            self._earlier[number] = found
            signal.signal(number, self._handle)

    def remove(self) -> None:
        """Restore the earlier handlers, unless another handler was installed since.

        That handler may call ours, which from now on only calls the earlier handler.
        """
        self._active = False
        if threading.current_thread() is not threading.main_thread():
            return
        for number, found in self._earlier.items():
            if signal.getsignal(number) == self._handle:
                signal.signal(number, found)

    @property
    def holding(self) -> bool:
        """Whether a signal is held."""
        return bool(self._held)

    @property
    def fatal(self) -> bool:
        """Whether a held signal will kill the process at its release."""
        return any(self._earlier[number] == signal.SIG_DFL for number in self._held)

    def release(self, *, ending: bool = False) -> None:
        """Send the held signals to the earlier handlers, and hold no signal from now on.

        With `ending`, drop a held signal whose default action kills the process: the process is ending
        anyway.
        """
        held, self._held = self._held, {}
        if held:
            self.remove()
        for number in held:
            found = self._earlier[number]
            if callable(found):
                self._call(found, number, sys._getframe())
            elif not ending:
                signal.raise_signal(number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number)
        found = self._earlier.get(name)
        if self._active:
            if time.monotonic() < min(self._held.values(), default=-math.inf) + REPEAT_TIME:
                return
            self._on_signal()
            if self._hold_signal(name):
                return
        self._held.pop(name, None)
        if callable(found):
            self._call(found, number, frame)
        elif found == signal.SIG_DFL:
            # The default action cannot be called: restore it and send the signal again.
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def _call(
        self, handler: Callable[[int, FrameType | None], object], number: int, frame: FrameType | None
    ) -> None:
        # The SIGINT handler of trio raises KeyboardInterrupt in the task of the frame. That may be a stream
        # during a send, and the server would not stop. Without a frame trio interrupts the main task.
        handler(number, frame if self._on_asyncio else None)

    def _hold_signal(self, name: signal.Signals) -> bool:
        now = time.monotonic()
        if self._earlier[name] == signal.SIG_DFL:
            return now - self._held.setdefault(name, now) < self._window
        if self._hold and not self._held:
            self._held[name] = now
            return True
        return False


# Once per process: in tests each one may run its event loop in a thread of its own.
@cache
def _warn_undrained() -> None:
    logger.warning(
        "streams are not drained at SIGTERM and SIGINT, since the event loop runs in %r, and signals are "
        "heard in the main thread. Run the server there; or, if something else calls drain() or stop() "
        "before the process ends, say so with DrainPolicy(signals=False)",
        threading.current_thread().name,
        extra=fields("signals_unheard"),
    )
