"""Signals: begin to drain when the process is told to end. The only file that touches the process.

Servers tell a streaming application nothing until its streams have ended: uvicorn sends
`lifespan.shutdown` after all connections have closed. So the signal itself has to be heard.
"""

import signal
import threading
from collections.abc import Callable
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)

# What signal.signal() takes and signal.getsignal() gives.
Handler = Callable[[int, FrameType | None], object] | int | None


class SignalWatch:
    """Calls a function at SIGTERM and SIGINT, and then the handler that was there before."""

    def __init__(self, heard: Callable[[], None]) -> None:
        self._heard = heard
        self._found: dict[signal.Signals, Handler] = {}
        self._active = False

    def install(self) -> bool:
        """Begin to listen; False where that is impossible, since only the main thread may."""
        if threading.current_thread() is not threading.main_thread():
            return False
        self._active = True
        for number in SIGNALS:
            found = signal.getsignal(number)
            # None: a handler that was not installed from Python cannot be called from here. An ignored
            # signal stays ignored.
            if found is not None and found != signal.SIG_IGN:
                self._found[number] = found
                signal.signal(number, self._handle)
        return True

    def remove(self) -> None:
        """Put back the handlers that were found, where nobody has installed another one since.

        Where somebody has, theirs may call ours, which from now on only passes the signal on.
        """
        self._active = False
        if threading.current_thread() is not threading.main_thread():
            return
        for number, found in self._found.items():
            if signal.getsignal(number) == self._handle:
                signal.signal(number, found)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._active:
            self._heard()
        found = self._found.get(signal.Signals(number))
        if callable(found):
            found(number, frame)
        elif found == signal.SIG_DFL:
            # The default is to end at once, and it cannot be called: put it back and send again.
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
