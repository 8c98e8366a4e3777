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
    """Calls a function at SIGTERM and SIGINT, and the handler that was there before.

    That one is called at once; with `hold`, and where it is the default, which ends the process on
    the spot, it is called at `release`. A second signal is never held.
    """

    def __init__(self, heard: Callable[[], None], *, hold: bool = False) -> None:
        self._heard = heard
        self._hold = hold
        self._found: dict[signal.Signals, Handler] = {}
        self._held: set[signal.Signals] = set()
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

    def release(self) -> None:
        """Pass on what is held, and from now on whatever comes."""
        held, self._held = self._held, set()
        if held:
            self.remove()
        for number in held:
            signal.raise_signal(number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        found = self._found.get(signal.Signals(number))
        if self._active:
            self._heard()
            if (self._hold or found == signal.SIG_DFL) and not self._held:
                self._held.add(signal.Signals(number))
                return
        self._held.discard(signal.Signals(number))
        if callable(found):
            found(number, frame)
        elif found == signal.SIG_DFL:
            # The default is to end at once, and it cannot be called: put it back and send again.
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
