"""Pace: whether events came at the pace they were sent, and what they waited for if not. Pure functions.

Only differences count, within the server's clock and within ours, so the two clocks need not agree. The
lateness of this program itself is left out, so a busy machine does not look like a buffer.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from .observation import Arrival, Evidence, Observation, Stall

# In intervals: an event is late if it is later than the promptest one by more than this.
LATE = 1.5
# In intervals: events that come closer to each other than this have come together.
TOGETHER = 0.6
# A series is held back if more than this part of it is late, and came in groups.
LATE_PART = 0.25
# A series was kept to its end if the latest event waited for more than this part of it.
TO_THE_END = 0.9
# The last event was kept through the silence behind it if it came after more than this part of it.
KEPT = 0.75
# In milliseconds: a shorter silence does not tell whether the event before it was kept.
SHORTEST_SILENCE = 500
# Two periods are the same if they differ by less than this part.
SAME = 0.4
# In seconds: a stall excuses events that come this close to it, in the same turn of the event loop.
NEAR = 0.05
# A stall of more than this part of the series spoils the measurement.
DISTURBED = 0.3


@dataclass(frozen=True, slots=True)
class Pace:
    """How a series came. Times are in seconds."""

    events: int
    #: By how much the latest event was later than the promptest one.
    latest: float
    #: The events that came together.
    groups: tuple[tuple[Arrival, ...], ...]
    #: Whether events that were sent one by one came late and together.
    grouped: bool
    #: Whether events came only after all had been sent.
    held_to_the_end: bool
    #: Whether something held events back, if only the last one through the silence after it.
    held: bool
    #: The largest number of events that came together.
    together: int
    #: The time and the bytes between two groups. The time is 0 with fewer than three groups.
    period: float
    amount: float


@dataclass(frozen=True, slots=True)
class Hold:
    """What events wait for: the `next` event, the `end` of the stream, an amount of `bytes` or of `seconds`.

    With `end` the amount is the number of bytes that were not enough.
    """

    kind: str
    amount: float = 0


def pace_of(observation: Observation) -> Pace:
    """Measure a series."""
    series = observation.series
    interval = observation.plan.interval / 1000 if observation.plan else 0.0
    lags = _lags(series, observation.stalls)
    latest = max(lags, default=0.0)
    groups = _groups(series, TOGETHER * interval)
    late = sum(lag > LATE * interval for lag in lags)
    grouped = late > LATE_PART * len(series) and len(groups) <= len(series) / 2
    # The end of the series releases the last group: its size tells nothing, unless it is the only one.
    ends = [0, *(group[-1].offset for group in groups[: max(len(groups) - 1, 1)])]
    starts = [group[0].at for group in groups]
    return Pace(
        events=len(series),
        latest=latest,
        groups=groups,
        grouped=grouped,
        held_to_the_end=grouped and latest > TO_THE_END * (series[-1].sent - series[0].sent),
        held=grouped or _last_held(observation),
        together=max(map(len, groups), default=0),
        period=median(b - a for a, b in pairwise(starts)) if len(groups) > 2 else 0.0,
        amount=median(b - a for a, b in pairwise(ends)) if groups else 0.0,
    )


def is_held(observation: Observation) -> bool:
    """Return whether something held the series of a probe back."""
    return pace_of(observation).held


def surely_held(evidence: Evidence) -> bool:
    """Return whether events were held back in every measurement, and in more than one."""
    return bool(evidence.repeated) and all(map(is_held, [evidence.first, *evidence.repeated]))


def is_disturbed(observation: Observation) -> bool:
    """Return whether this program stalled for so long that a hold would not show."""
    series = observation.series
    longest = max((stall.late for stall in observation.stalls), default=0.0)
    return bool(series) and longest > DISTURBED * (series[-1].sent - series[0].sent)


def hold_of(small: Observation, large: Observation | None) -> Hold:
    """Return what events waited for, by a series of small events and one of large events."""
    pace = pace_of(small)
    if not pace.grouped:
        return Hold("next")
    if large is None or not large.series:
        return Hold("end" if pace.held_to_the_end else "bytes", pace.amount)
    large_pace = pace_of(large)
    if large_pace.grouped and abs(pace.period - large_pace.period) < SAME * pace.period:
        return Hold("seconds", pace.period)
    if large_pace.held_to_the_end:
        return Hold("end", large_pace.groups[-1][-1].offset)
    # One or two large events may fill the buffer. Small ones show its size, if they filled it more than once.
    return Hold("bytes", (pace if len(pace.groups) > 2 else large_pace).amount)


def _lags(arrivals: Sequence[Arrival], stalls: Sequence[Stall]) -> list[float]:
    """Return by how much each event was later than the promptest one, our own stalls left out."""
    promptest = min((arrival.at - arrival.sent for arrival in arrivals), default=0.0)
    return [max(each.at - each.sent - promptest - _excuse(each, stalls), 0.0) for each in arrivals]


def _excuse(arrival: Arrival, stalls: Sequence[Stall]) -> float:
    return max((stall.late for stall in stalls if abs(stall.at - arrival.at) < NEAR), default=0.0)


def _last_held(observation: Observation) -> bool:
    """Return whether the last event of the series came together with the heartbeat or the end after it."""
    arrivals, plan = observation.arrivals, observation.plan
    if (
        plan is None
        or plan.idle < SHORTEST_SILENCE
        or len(arrivals) < 3
        or arrivals[-2].number != plan.events
    ):
        return False
    silence = min(arrivals[-1].sent - arrivals[-2].sent, observation.heartbeat or math.inf)
    return _lags(arrivals[:-1], observation.stalls)[-1] > KEPT * silence


def _groups(arrivals: Sequence[Arrival], gap: float) -> tuple[tuple[Arrival, ...], ...]:
    groups: list[list[Arrival]] = []
    for arrival in arrivals:
        if groups and arrival.at - groups[-1][-1].at < gap:
            groups[-1].append(arrival)
        else:
            groups.append([arrival])
    return tuple(map(tuple, groups))
