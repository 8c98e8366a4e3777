"""Watch: finds that the producer of a run is silent, and ends the run as lost for all its readers."""

from collections.abc import Callable
from dataclasses import replace
from math import ceil

import anyio

from ..errors import BrokerUnavailableError, PositionConflictError
from ..runtime.event_loop import now
from ..wire.cursor import Position
from ..wire.reasons import RunState
from .log import LogState, RunLog

# How often the log is looked at in a lease, and the longest time between two looks, in seconds. The run is
# lost when it had nothing new at all these times, and the next.
LOOKS, MOST_PAUSE = 4, 15.0


class Watch:
    """Appends that a run is lost, whenever its log has had nothing new for the lease, and no end.

    Time in which the broker is away, or this process stands still, does not count. `known_end` returns the
    end of the log as far as this process was told: while that changes, the log need not be asked.
    """

    def __init__(self, log: RunLog, run: LogState, known_end: Callable[[], Position | None]) -> None:
        self._log = log
        # The attempt that the readers follow, and the state that was read last.
        self._followed = self._latest = run
        self._known_end = known_end
        self._told = known_end()
        # Not what this process was told: that may have more than `run` was read from.
        self._seen: Position | None = run.end
        # At how many looks in a row there was nothing new.
        self._quiet = 0
        # When the pause before the next look began.
        self._began = now()

    @property
    def pause(self) -> float:
        """The time from one look to the next, in seconds. The first pause begins when the watch is made."""
        return self._latest.lease / self._looks

    @property
    def _looks(self) -> int:
        return max(LOOKS, ceil(self._latest.lease / MOST_PAUSE))

    async def run(self) -> None:
        """Look at the log after each pause, until cancelled.

        This goes on after the run has ended: while there are readers, the log may be lost with the end.
        """
        while True:
            await anyio.sleep(max(0.0, self._began + self.pause - now()))
            # Otherwise this process stood still, and what the producer did meanwhile is still to come.
            if now() - self._began <= 2 * self.pause:
                await self._look_if_quiet()
            else:
                self._quiet = 0
            self._began = now()

    async def _look_if_quiet(self) -> None:
        # This process may have been told of events that the log has lost since.
        before, self._told = self._told, self._known_end()
        is_told = self._told is not None and self._told not in (before, self._seen)
        if is_told and self._latest.state is RunState.RUNNING:
            self._seen, self._quiet = self._told, 0
            return
        try:
            await self._look(is_new=is_told)
        except (BrokerUnavailableError, PositionConflictError):
            # A producer may have begun, with a shorter lease, and this look has not seen it: read again.
            self._quiet, self._seen = 0, None

    async def _look(self, *, is_new: bool) -> None:
        """Look whether the log has anything new, and end a run that has had nothing so many times."""
        page = await self._log.bounds()
        end = Position(page.epoch, page.last)
        is_new = is_new or end != self._seen
        self._seen, self._quiet = end, 0 if is_new else self._quiet + 1
        if self._quiet > self._looks:
            self._quiet, found = 0, await _end(self._log, self._latest, end)
        elif is_new and self._latest.state is RunState.QUEUED:
            # A producer has another lease.
            found, _ = await self._log.state()
        else:
            return
        if found is not None and _is_lost(self._followed, found):
            # Nothing else would end the readers of the attempt.
            await self._log.append(self._followed.make("end", RunState.LOST), found.end)
            self._followed = found
        # It went on, or has ended and is still read: its log may yet be lost with the end.
        self._latest = found or self._latest


async def wait_for_sign(log: RunLog, run: LogState) -> LogState | None:
    """Wait until the log of a run goes on, or its producer was silent for a lease, and return the state.

    In the second case the run is lost, and its log says so. Raises BrokerUnavailableError.
    """
    pause = run.lease / LOOKS
    seen = run.end
    quiet = 0
    while quiet <= LOOKS:
        began = now()
        await anyio.sleep(pause)
        page = await log.bounds()
        if Position(page.epoch, page.last) != seen:
            return (await log.state())[0]
        quiet = 0 if now() - began > 2 * pause else quiet + 1
    try:
        return await _end(log, run, seen)
    except PositionConflictError:
        return (await log.state())[0]


def _is_lost(attempt: LogState, found: LogState) -> bool:
    """Return whether a server may have lost an attempt with its start: another one has ended after a loss."""
    return found.ended and found.attempt != attempt.attempt and found.end.epoch != attempt.end.epoch


async def _end(log: RunLog, run: LogState, end: Position) -> LogState | None:
    """End a run as lost, if its log still ends there, and return its state."""
    found, current = await log.state()
    if current != end:
        return found
    if found is not None and (found.ended or found.attempt != run.attempt):
        return found
    if found is None and run.ended and end.epoch == run.end.epoch:
        # Another program has published so much that the history has dropped the end.
        return run
    # Without a record, the log was lost with the server, and nobody has begun it again.
    lost = found or (run if end.epoch == run.end.epoch else replace(run, begin=end.offset + 1))
    await log.append(lost.make("end", RunState.LOST), end)
    return (await log.state())[0]
