"""Pace: whether events came at the pace they were sent, and if not, what they waited for. Pure functions.

Only differences count: of the clock of the server among themselves, and of ours. What matters is how the
two spread relate, so that a slow or busy machine does not look like a buffer.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from .observation import Evidence, Mark, Observation, Stall

# An event is late when it is later than the promptest one by so many intervals, this program's own lateness
# not counted; a series is held back when more than so large a part of it is late, in groups.
LATE_INTERVALS = 1.5
LATE_PART = 0.25
# A stall excuses what comes so near to it, in seconds: both are seen in the same turn of the loop.
NEAR = 0.05
# A stall of so large a part of the series spoils it.
DISTURBED = 0.3
# A hold of less than this is believed when it was seen three times, any other twice.
WEAK = 0.5
# Two periods are the same if they differ by no more than this.
SAME = 0.4
# Events that come within so many intervals have come together. What is held back comes in bursts, with two
# intervals between them at least; a burst itself takes its time on a busy machine.
TOGETHER, BURST = 0.5, 1.2
# The first event that comes when so large a part of the series has been sent has waited for all of it.
ALL = 0.9
# The last event that comes after so large a part of the silence behind it was kept until that was over.
MOST = 0.75
# A silence of less than this, in milliseconds, does not tell whether the event before it was held back.
SHORTEST = 500


@dataclass(frozen=True, slots=True)
class Group:
    """Events that came together: how many, how many bytes with all before them, and when."""

    events: int
    offset: int
    at: float


@dataclass(frozen=True, slots=True)
class Pace:
    """How a series came. Times are in seconds; `spread` is that of the sending."""

    events: int
    latest: float
    late: int
    spread: float
    groups: tuple[Group, ...]
    bursts: tuple[Group, ...]
    #: Whether the last event came when the silence after it was over, and not before.
    last_held: bool

    @property
    def grouped(self) -> bool:
        """Whether events that were sent one after the other came together, and late."""
        return self.late > LATE_PART * self.events and len(self.groups) <= self.events / 2

    @property
    def held(self) -> bool:
        """Whether something held events back."""
        return self.grouped or self.last_held

    @property
    def held_to_the_end(self) -> bool:
        """Whether nothing was passed on before all had been sent."""
        return self.grouped and self.latest > ALL * self.spread

    @property
    def together(self) -> int:
        """How many events came together at the most."""
        return max((group.events for group in self.groups), default=0)

    @property
    def period(self) -> float | None:
        """The time between two bursts; None with fewer than three."""
        if len(self.bursts) < 3:
            return None
        return median(b.at - a.at for a, b in pairwise(self.bursts))


@dataclass(frozen=True, slots=True)
class Hold:
    """What events wait for: the `next` one, the `end` of the stream, so many `bytes`, or `seconds` to pass.

    Bytes that are `at_least` are all that was tried.
    """

    kind: str
    amount: float = 0
    at_least: bool = False


def pace_of(observation: Observation) -> Pace:
    """Measure a series."""
    marks = observation.series
    interval = observation.plan.interval / 1000 if observation.plan else 0.0
    lags = _lags(marks, observation.stalls)
    return Pace(
        events=len(marks),
        latest=max(lags, default=0.0),
        late=sum(lag > LATE_INTERVALS * interval for lag in lags),
        spread=marks[-1].sent - marks[0].sent if marks else 0.0,
        groups=_groups(marks, TOGETHER * interval),
        bursts=_groups(marks, BURST * interval),
        last_held=_last_held(observation),
    )


def is_held(observation: Observation | None) -> bool:
    """Return whether a series was asked for, came, and was held back."""
    return observation is not None and pace_of(observation).held


def hold_of(small: Observation, weighed: Observation | None) -> Hold:
    """Say what held-back events waited for, from a series of small ones and one of large ones."""
    pace, large = pace_of(small), pace_of(weighed) if weighed is not None else None
    if not pace.grouped:
        return Hold("next")
    if large is None or not large.events:
        return Hold("end") if pace.held_to_the_end else Hold("bytes", _amount(pace.bursts))
    if not large.grouped:
        # Few large events fill it, if not one.
        amount = _amount(pace.bursts)
        return Hold("bytes", amount if len(pace.bursts) > 2 else max(amount, _amount(large.groups)))
    if pace.period and large.period and abs(pace.period - large.period) < SAME * pace.period:
        return Hold("seconds", pace.period)
    if large.held_to_the_end:
        return Hold("end", large.groups[-1].offset, at_least=True)
    return Hold("bytes", _amount(large.bursts))


def is_weak(observation: Observation) -> bool:
    """Return whether a hold is so short that a busy machine might pass for it."""
    pace = pace_of(observation)
    return pace.latest < WEAK or not pace.grouped


def is_disturbed(observation: Observation) -> bool:
    """Return whether this program was stopped for so long that a hold would not have shown."""
    longest = max((stall.late for stall in observation.stalls), default=0.0)
    return bool(observation.series) and longest > DISTURBED * pace_of(observation).spread


def surely_held(evidence: Evidence) -> bool:
    """Return whether events were held back each time that they were asked for, and that was often enough."""
    return bool(evidence.repeated) and all(map(is_held, (evidence.first, *evidence.repeated)))


def _lags(marks: Sequence[Mark], stalls: Sequence[Stall]) -> list[float]:
    delays = [mark.at - mark.sent for mark in marks]
    promptest = min(delays, default=0.0)
    return [
        max(delay - promptest - _excuse(mark, stalls), 0.0) for delay, mark in zip(delays, marks, strict=True)
    ]


def _last_held(observation: Observation) -> bool:
    """Return whether the last event of the series came with what was sent next, a heartbeat or the end."""
    marks, plan = observation.marks, observation.plan
    if plan is None or plan.idle < SHORTEST or len(marks) < 3 or marks[-2].number != plan.events:
        return False
    heartbeat = observation.seen.heartbeat if observation.seen is not None else None
    silence = min(marks[-1].sent - marks[-2].sent, heartbeat or math.inf)
    return _lags(marks[:-1], observation.stalls)[-1] > MOST * silence


def _excuse(mark: Mark, stalls: Sequence[Stall]) -> float:
    return max((stall.late for stall in stalls if abs(stall.at - mark.at) < NEAR), default=0.0)


def _groups(marks: Sequence[Mark], gap: float) -> tuple[Group, ...]:
    groups: list[Group] = []
    before: Mark | None = None
    for mark in marks:
        if before is not None and mark.at - before.at < gap:
            groups[-1] = Group(groups[-1].events + 1, mark.offset, groups[-1].at)
        else:
            groups.append(Group(1, mark.offset, mark.at))
        before = mark
    return tuple(groups)


def _amount(groups: Sequence[Group]) -> int:
    """Return the bytes between two groups; with one group, all that came with it."""
    if len(groups) < 2:
        return groups[0].offset if groups else 0
    # The last group is what was left over.
    ends = [0, *(group.offset for group in groups[:-1])]
    return round(median(b - a for a, b in pairwise(ends)))
