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


async def end_if_silent(log: RunLog, run: LogState, known_end: Callable[[], Position | None]) -> None:
    """Whenever the log of a run has had nothing new for its lease, and no end, append that the run is lost.

    Goes on until it is cancelled: while there are readers, the log may still be lost with the end. Time in
    which the broker is away, or this process stands still, does not count. `known_end` returns the end of the
    log as far as this process was told: while that changes, the log need not be asked.
    """
    followed = run
    # Not what this process was told: that may have more than `run` was read from.
    seen: Position | None = run.end
    told_before = known_end()
    quiet = 0
    while True:
        looks = max(LOOKS, ceil(run.lease / MOST_PAUSE))
        pause, began = run.lease / looks, now()
        await anyio.sleep(pause)
        if now() - began > 2 * pause:
            # This process stood still, and what the producer did meanwhile is still to come.
            quiet = 0
            continue
        told = known_end()
        # This process may have been told of events that the log has lost since.
        is_new, told_before = told is not None and told != told_before, told
        if is_new and run.state is RunState.RUNNING:
            seen, quiet = told, 0
            continue
        try:
            page = await log.bounds()
            end = Position(page.epoch, page.last)
            is_new = is_new or end != seen
            seen, quiet = end, 0 if is_new else quiet + 1
            if quiet > looks:
                quiet, found = 0, await _end(log, run, end)
            elif is_new and run.state is RunState.QUEUED:
                # A producer has another lease.
                found, _ = await log.state()
            else:
                continue
            if found is not None and _is_lost(followed, found):
                # Nothing else would end the readers of the attempt.
                await log.append(followed.make("end", RunState.LOST), found.end)
                followed = found
        except (BrokerUnavailableError, PositionConflictError):
            # A producer may have begun, with a shorter lease, unseen by this look: the next one reads again.
            quiet, seen = 0, None
            continue
        # It went on, or has ended and is still read: its log may yet be lost with the end.
        run = found or run


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
