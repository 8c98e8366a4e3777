"""Observation: the measurements of one answer, and whether its events came at the pace they were sent.

Only differences count, within the server's clock and within ours, so the two clocks need not agree. The
lateness of this program itself is left out, so a busy machine does not look like a buffer.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from statistics import median
from typing import Self

from ...http.probe import ProbePlan

# In seconds. A shorter silence is an ordinary interval between two events.
SILENCE = 0.5
# A silence at the end counts if it is longer than the longest one before by this factor.
LONGER = 1.05
# In intervals: an event is late if it is later than the promptest one by more than LATE. Events that come
# closer to each other than TOGETHER have come together.
LATE, TOGETHER = 1.5, 0.6
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


class Trouble(StrEnum):
    """Why no answer came."""

    NAME = "name"
    REFUSED = "connection-refused"
    TLS = "tls"
    CONNECT = "unreachable"
    CLOSED = "closed-before-the-answer"
    SILENT = "no-answer"
    REDIRECTS = "redirect-loop"


class End(StrEnum):
    """How an answer ended."""

    COMPLETE = "complete"
    DRAIN = "drain"
    CLOSED = "closed"  # as if it were complete, before the last event of the probe
    BROKEN = "broken"  # the connection, in the middle of the answer
    SILENT = "silent"  # the time was up, and nothing came any more
    ENOUGH = "enough"  # the doctor stopped reading a stream that does not end


@dataclass(frozen=True, slots=True)
class Answer:
    """The head of an answer."""

    status: int
    http_version: str
    headers: tuple[tuple[str, str], ...]
    url: str

    def get(self, name: str) -> str | None:
        """Return a header field; repeated fields are joined with a comma."""
        return ", ".join(value for key, value in self.headers if key == name) or None

    @property
    def media_type(self) -> str:
        """The content type without its parameters."""
        return (self.get("content-type") or "").partition(";")[0].strip().lower()


@dataclass(frozen=True, slots=True)
class Redirect:
    """A redirect that was followed."""

    status: int
    source: str
    target: str


@dataclass(frozen=True, slots=True)
class Arrival:
    """An event of the probe: when it was sent (by the server's clock) and when it came (by ours), in seconds.

    `offset` is the number of bytes of the stream up to its end.
    """

    number: int
    sent: float
    at: float
    offset: int


@dataclass(frozen=True, slots=True)
class Stall:
    """A moment at which this program ran `late` seconds too late. Bytes that came then may not be late."""

    at: float
    late: float


@dataclass(frozen=True, slots=True)
class Seen:
    """The request as the application saw it, and its heartbeat interval, by the first event of the probe."""

    http: str = ""
    scheme: str = ""
    telling: tuple[str, ...] = ()
    via: str = ""
    heartbeat: float = 0.0

    @classmethod
    def of(cls, facts: dict[str, object]) -> Self:
        """Read the data of the event. An entry of another type counts as missing."""
        http, scheme, via = (str(facts.get(name, "")) for name in ("http", "scheme", "via"))
        telling, heartbeat = facts.get("telling"), facts.get("heartbeat")
        names = tuple(map(str, telling)) if isinstance(telling, list) else ()
        return cls(http, scheme, names, via, heartbeat if isinstance(heartbeat, (int, float)) else 0.0)


@dataclass(slots=True, kw_only=True)
class Observation:
    """One request and its answer, filled in while it comes. Moments are in seconds after the request."""

    plan: ProbePlan | None
    answer: Answer | None = None
    trouble: Trouble | None = None
    detail: str = ""
    redirects: list[Redirect] = field(default_factory=list)
    bytes_at: list[float] = field(default_factory=list)  # the moments at which bytes of the body came
    arrivals: list[Arrival] = field(default_factory=list)  # the opening event, the series, and the totals
    seen: Seen = Seen()
    others: list[tuple[str, str]] = field(default_factory=list)  # the first events that belong to no probe
    body: bytes = b""  # its beginning
    unreadable: str = ""  # why the body cannot be read
    trailing: int = 0  # the bytes after the end of the compressed data, which browsers ignore
    end: End | None = None
    ended_at: float = 0.0
    stalls: list[Stall] = field(default_factory=list)

    def is_answer_of(self, media_type: str) -> bool:
        """Return whether a successful answer of a content type came."""
        return self.answer is not None and (self.answer.status, self.answer.media_type) == (200, media_type)

    @property
    def is_stream(self) -> bool:
        """Whether a browser takes the answer for an event stream."""
        return self.is_answer_of("text/event-stream")

    @property
    def probed(self) -> bool:
        """Whether the application answered with a probe."""
        return bool(self.arrivals)

    @property
    def series(self) -> list[Arrival]:
        """The events between the opening one and the totals."""
        return [arrival for arrival in self.arrivals if 1 <= arrival.number <= self.expected]

    @property
    def first_byte_at(self) -> float | None:
        """When the first byte of the body came."""
        return self.bytes_at[0] if self.bytes_at else None

    @property
    def last_byte_at(self) -> float:
        """When the last byte of the body came; 0 if none did."""
        return self.bytes_at[-1] if self.bytes_at else 0.0

    @property
    def expected(self) -> int:
        """The number of events in the series that was asked for."""
        return self.plan.events if self.plan is not None else 0

    @property
    def compression(self) -> str | None:
        """The content encoding of the answer; None if there is none."""
        encoding = ((self.answer and self.answer.get("content-encoding")) or "").strip().lower()
        return None if encoding in ("identity", "") else encoding

    @property
    def longest_stall(self) -> float:
        """The largest lateness of this program."""
        return max((stall.late for stall in self.stalls), default=0.0)

    @property
    def cut(self) -> bool:
        """Whether a probe ended before its last event, and not because the application drains."""
        return self.probed and not self.trailing and self.end in (End.CLOSED, End.BROKEN)

    @property
    def silence(self) -> float:
        """The seconds between the last byte and the end."""
        return max(self.ended_at - self.last_byte_at, 0.0)

    @property
    def cut_for_silence(self) -> bool:
        """Whether the answer was cut during its longest silence."""
        longest_before = max((b - a for a, b in pairwise(self.bytes_at)), default=0.0)
        return self.cut and self.silence > max(LONGER * longest_before, SILENCE)


@dataclass(slots=True, kw_only=True)
class Evidence:
    """The observations of one examination; None where one was not needed."""

    first: Observation
    repeated: list[Observation] = field(default_factory=list)  # the same again, after events had come late
    uncompressed: Observation | None = None  # the same probe without compression
    large: Observation | None = None  # a probe with larger events
    steady: Observation | None = None  # without a silence, for as long as it took until the first was cut
    ordinary: Observation | None = None  # a stream, after the probe was refused
    unread_encoding: str | None = None  # what browsers can decompress and this program cannot
    large_starts_compressed: bool = False  # whether it is compressed only if its first piece is large
    vite: bool = False  # whether Vite's development server answers at the same origin
    origin: str | None = None
    has_cookie: bool = False  # whether a cookie went along, as from a page with `withCredentials: true`
    idle: float = 0.0

    @property
    def latest(self) -> Observation:
        """The last measurement of the first probe."""
        return self.repeated[-1] if self.repeated else self.first

    @property
    def shown(self) -> Observation:
        """The observation that the report is about: the ordinary one if only the probe was refused."""
        return self.ordinary if self.ordinary is not None and self.only_probe_refused else self.first

    @property
    def only_probe_refused(self) -> bool:
        """Whether the answer was another one without the probe."""
        asked, ordinary = self.first.answer, self.ordinary.answer if self.ordinary is not None else None
        return asked is not None and ordinary is not None and asked.status != ordinary.status

    @property
    def held(self) -> bool:
        """Whether events were held back in every measurement, and in more than one."""
        return bool(self.repeated) and all(map(is_held, [self.first, *self.repeated]))


class Pace:
    """How a series came. Times are in seconds."""

    def __init__(self, observation: Observation) -> None:
        series, lags = observation.series, _lags(observation.series, observation.stalls)
        interval = observation.plan.interval / 1000 if observation.plan else 0.0
        self.events = len(series)
        #: By how much the latest event was later than the promptest one.
        self.latest = max(lags, default=0.0)
        #: The events that came together, and the size of the largest group.
        self.groups = _groups(series, TOGETHER * interval)
        self.together = max(map(len, self.groups), default=0)
        late = sum(lag > LATE * interval for lag in lags)
        #: Whether events that were sent one by one came late and together.
        self.grouped = late > LATE_PART * len(series) and len(self.groups) <= len(series) / 2
        #: Whether they came only after all had been sent.
        self.held_to_the_end = self.grouped and self.latest > TO_THE_END * (series[-1].sent - series[0].sent)
        #: Whether something held events back, if only the last one through the silence after it.
        self.held = self.grouped or _last_held(observation)
        starts = [group[0].at for group in self.groups]
        # The end of the series releases the last group: its size tells nothing, unless it is the only one.
        ends = [0, *(group[-1].offset for group in self.groups[: max(len(self.groups) - 1, 1)])]
        #: The time and the bytes between two groups. The time is 0 with fewer than three groups.
        self.period = median(b - a for a, b in pairwise(starts)) if len(starts) > 2 else 0.0
        self.amount = median(b - a for a, b in pairwise(ends)) if self.groups else 0.0


@dataclass(frozen=True, slots=True)
class Hold:
    """What events wait for: the `next` event, the `end` of the stream, an amount of `bytes` or of `seconds`.

    With `end` the amount is the number of bytes that were not enough.
    """

    kind: str
    amount: float = 0


def is_held(observation: Observation) -> bool:
    """Return whether something held the series of a probe back."""
    return Pace(observation).held


def is_disturbed(observation: Observation) -> bool:
    """Return whether this program stalled for so long that a hold would not show."""
    series = observation.series
    return bool(series) and observation.longest_stall > DISTURBED * (series[-1].sent - series[0].sent)


def hold_of(small: Observation, large: Observation | None) -> Hold:
    """Return what events waited for, by a series of small events and one of large events."""
    pace = Pace(small)
    if not pace.grouped:
        return Hold("next")
    if large is None or not large.series:
        return Hold("end" if pace.held_to_the_end else "bytes", pace.amount)
    large_pace = Pace(large)
    if large_pace.grouped and abs(pace.period - large_pace.period) < SAME * pace.period:
        return Hold("seconds", pace.period)
    if large_pace.held_to_the_end:
        return Hold("end", large_pace.groups[-1][-1].offset)
    # One or two large events may fill the buffer. Small ones show its size, if they filled it more than once.
    return Hold("bytes", (pace if len(pace.groups) > 2 else large_pace).amount)


def json_object(text: str) -> dict[str, object]:
    """Return a JSON object; an empty one if the text is none."""
    try:
        value: object = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _lags(arrivals: Sequence[Arrival], stalls: Sequence[Stall]) -> list[float]:
    """Return by how much each event was later than the promptest one, our own stalls left out."""
    promptest = min((arrival.at - arrival.sent for arrival in arrivals), default=0.0)

    def excuse(arrival: Arrival) -> float:
        return max((stall.late for stall in stalls if abs(stall.at - arrival.at) < NEAR), default=0.0)

    return [max(each.at - each.sent - promptest - excuse(each), 0.0) for each in arrivals]


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
    silence = min(arrivals[-1].sent - arrivals[-2].sent, observation.seen.heartbeat or math.inf)
    return _lags(arrivals[:-1], observation.stalls)[-1] > KEPT * silence


def _groups(arrivals: Sequence[Arrival], gap: float) -> list[list[Arrival]]:
    groups: list[list[Arrival]] = []
    for arrival in arrivals:
        if groups and arrival.at - groups[-1][-1].at < gap:
            groups[-1].append(arrival)
        else:
            groups.append([arrival])
    return groups
