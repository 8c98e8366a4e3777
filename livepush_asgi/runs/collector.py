"""Collector: asks the producers that collect, once in each turn of the event loop, whether they go on."""

from collections.abc import Callable

from ..process.process import Process

# Returns whether it is to be called in the next turn again. It never raises.
StillCollects = Callable[[], bool]


class Collector:
    """One callback of the event loop for all producers of a process: a token costs a turn, not a callback."""

    def __init__(self, process: Process) -> None:
        self._call_soon = process.context.call_soon
        self._hub = process.hub
        self._waiting: list[StillCollects] = []

    def add(self, still_collects: StillCollects) -> None:
        """Call this in the next turn, and in each further one until it returns False."""
        if not self._waiting:
            self._call_soon(self._turn)
        self._waiting.append(still_collects)

    def _turn(self) -> None:
        # The iterators have let this callback run, so their sources need not.
        self._hub.note_turn()
        waiting, self._waiting = iter(self._waiting), []
        try:
            for still_collects in waiting:
                if still_collects():
                    self.add(still_collects)
        finally:
            # If one has raised, the others are called all the same.
            for still_collects in waiting:
                self.add(still_collects)
