"""Claim: the start of an attempt, by a record that follows in the log of its run."""

import time
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass, replace
from secrets import token_urlsafe

import anyio

from ..errors import BrokerUnavailableError, PositionConflictError, RunExistsError
from ..wire.cursor import Position
from ..wire.reasons import RunState
from .log import LogState, RunLog
from .watch import wait_for_sign

# How long a cancelled start takes at most to end what it has begun, in seconds.
WITHDRAW_TIMEOUT = 2.0


@dataclass(frozen=True, slots=True)
class Conditions:
    """What an attempt may follow: nothing, a run in a state that it continues, or one that it restarts."""

    #: The states of a run whose output goes on.
    continued: AbstractSet[RunState]
    #: Whether a run that has ended begins anew.
    restart: bool = False
    #: Whether any other run is joined. Otherwise `Claim.make` raises RunExistsError.
    join: bool = True


class Claim:
    """Begins an attempt at a run, which is RUNNING or QUEUED then. Its output is written in `dialect`.

    The `lease` is in seconds: how long the producer may be silent, or how soon a queued run has to begin.
    """

    def __init__(
        self, log: RunLog, run_id: str, conditions: Conditions, state: RunState, lease: float, dialect: str
    ) -> None:
        self._log = log
        self._run_id = run_id
        self._conditions = conditions
        self._state = state
        self._lease = lease
        self._dialect = dialect
        # The names under which it has tried, the one for the next try last.
        self._names = [_new_name()]

    async def make(self) -> LogState | None:
        """Append the start record and return the state after it, or None if there is a run to join.

        Waits for the lease of a producer that seems to be silent. Raises RunExistsError, and
        BrokerUnavailableError: then the record may be there, and another call finds it.
        """
        while True:
            found, end = await self._log.state()
            if found is not None and self._is_own(found):
                return found
            if found is not None and found.state is RunState.RUNNING and found.seems_silent:
                earlier, found = found, await wait_for_sign(self._log, found)
                if found is None or found.ended or found.end == earlier.end:
                    continue
                # It is alive, whatever the clocks say.
            if found is not None and not self._may_follow(found):
                if self._conditions.join:
                    return None
                raise RunExistsError(self._run_id, found.state)
            start = self._start_after(found, end)
            with suppress(PositionConflictError):
                position = await self._log.append(start.make("start", start.state, start.count), end)
                return replace(start, end=position)

    def _is_own(self, found: LogState) -> bool:
        """Return whether an earlier try has begun this attempt, and its answer was lost."""
        if found.attempt == self._names[-1] and found.ended:
            # Somebody has ended that try. An attempt ends once, so the next try has another name.
            self._names.append(_new_name())
        return found.attempt in self._names and not found.ended

    def _may_follow(self, found: LogState) -> bool:
        if found.state in self._conditions.continued:
            return True
        # Without readers, nobody has found that a queued run was not begun in time.
        is_late = self._state is RunState.QUEUED is found.state and found.seems_silent
        return self._conditions.restart and (found.ended or is_late)

    def _start_after(self, found: LogState | None, end: Position) -> LogState:
        begin, count = end.offset + 1, 0
        # A log that was lost has the end alone: then another output begins, and its readers are told.
        if found is not None and found.state in self._conditions.continued and found.has_output:
            begin, count = found.begin, found.count
        return LogState(
            self._names[-1],
            self._state,
            begin,
            count,
            self._lease,
            time.time(),
            end.next(),
            dialect=self._dialect,
        )

    async def withdraw(self) -> None:
        """End what a cancelled call has begun, whose answer was on its way. Bounded in time."""
        with anyio.move_on_after(WITHDRAW_TIMEOUT, shield=True), suppress(BrokerUnavailableError):
            found, _ = await self._log.state()
            if found is not None and self._is_own(found):
                await self.give_up(found)

    async def give_up(self, start: LogState) -> None:
        """End an attempt that gets no producer. If the broker does not answer, it is lost after its lease."""
        with suppress(BrokerUnavailableError, PositionConflictError):
            await self._log.append(start.make("end", RunState.LOST, start.count), start.end)


def _new_name() -> str:
    return token_urlsafe(9)
