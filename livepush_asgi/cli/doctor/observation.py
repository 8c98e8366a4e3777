"""Observation: the measurements of one answer, from its first byte to its end, without a judgement."""

from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise

from ...http.probe import ProbePlan

# In seconds. A shorter silence is an ordinary interval between two events.
SILENCE = 0.5
# A silence at the end counts if it is longer than the longest one before by this factor.
LONGER = 1.05


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
    #: Closed as if it were complete, before the last event of the probe.
    CLOSED = "closed"
    #: The connection broke in the middle of the answer.
    BROKEN = "broken"
    #: The time was up, and nothing came any more.
    SILENT = "silent"
    #: The doctor stopped reading a stream that does not end.
    ENOUGH = "enough"


@dataclass(frozen=True, slots=True)
class Answer:
    """The head of an answer."""

    status: int
    http_version: str
    headers: tuple[tuple[str, str], ...]
    url: str

    def get(self, name: str) -> str | None:
        """Return a header field; repeated fields are joined with a comma."""
        found = [value for key, value in self.headers if key == name]
        return ", ".join(found) if found else None

    @property
    def media_type(self) -> str:
        """The content type without its parameters."""
        return (self.get("content-type") or "").partition(";")[0].strip().lower()

    @property
    def compression(self) -> str | None:
        """The content encoding; None if there is none."""
        encoding = (self.get("content-encoding") or "identity").strip().lower()
        return None if encoding in ("identity", "") else encoding


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
    """The request as the application saw it, by the first event of the probe."""

    http: str = ""
    scheme: str = ""
    telling: tuple[str, ...] = ()
    via: str = ""
    heartbeat: float | None = None


@dataclass(slots=True, kw_only=True)
class Observation:
    """One request and its answer, filled in while it comes. Moments are in seconds after the request."""

    plan: ProbePlan | None
    answer: Answer | None = None
    trouble: Trouble | None = None
    detail: str = ""
    redirects: list[Redirect] = field(default_factory=list)
    #: The moments at which bytes of the body came.
    bytes_at: list[float] = field(default_factory=list)
    #: The events of the probe: the opening one, the series, and the totals.
    arrivals: list[Arrival] = field(default_factory=list)
    seen: Seen | None = None
    #: The names and the data of the first events that belong to no probe.
    others: list[tuple[str, str]] = field(default_factory=list)
    #: The beginning of the body.
    body: bytes = b""
    #: Why the body cannot be read.
    unreadable: str = ""
    #: The bytes after the end of the compressed data, which browsers ignore.
    trailing: int = 0
    end: End | None = None
    ended_at: float = 0.0
    stalls: list[Stall] = field(default_factory=list)

    @property
    def is_stream(self) -> bool:
        """Whether a browser takes the answer for an event stream."""
        answer = self.answer
        return answer is not None and answer.status == 200 and answer.media_type == "text/event-stream"

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
    def expected(self) -> int:
        """The number of events in the series that was asked for."""
        return self.plan.events if self.plan is not None else 0

    @property
    def compression(self) -> str | None:
        """The content encoding of the answer; None if there is none."""
        return self.answer.compression if self.answer is not None else None

    @property
    def heartbeat(self) -> float:
        """The application's heartbeat interval; 0 if it is unknown."""
        return (self.seen.heartbeat if self.seen is not None else None) or 0.0

    @property
    def cut(self) -> bool:
        """Whether a probe ended before its last event, and not because the application drains."""
        return self.probed and not self.trailing and self.end in (End.CLOSED, End.BROKEN)

    @property
    def silence(self) -> float:
        """The seconds between the last byte and the end."""
        return max(self.ended_at - max(self.bytes_at, default=0.0), 0.0)

    @property
    def cut_for_silence(self) -> bool:
        """Whether the answer was cut during its longest silence."""
        longest_before = max((b - a for a, b in pairwise(self.bytes_at)), default=0.0)
        return self.cut and self.silence > max(LONGER * longest_before, SILENCE)

    @property
    def other_names(self) -> tuple[str, ...]:
        """The names of the events that belong to no probe."""
        return tuple(name for name, _ in self.others)


@dataclass(slots=True, kw_only=True)
class Evidence:
    """The observations of one examination, in the order of asking; None where one was not needed."""

    first: Observation
    #: The same probe again, after events had come late.
    repeated: list[Observation] = field(default_factory=list)
    #: The same probe without compression.
    uncompressed: Observation | None = None
    #: A probe with larger events.
    large: Observation | None = None
    #: A probe without a silence, for as long as it took until the first one was cut.
    steady: Observation | None = None
    #: An ordinary stream, after the probe was refused.
    ordinary: Observation | None = None
    #: A content encoding that browsers can read and this program cannot.
    unread_encoding: str | None = None
    #: Whether the answer is compressed only if its first piece is large.
    large_starts_compressed: bool = False
    #: Whether Vite's development server answers at the same origin.
    vite: bool = False
    origin: str | None = None
    idle: float = 0.0

    @property
    def latest(self) -> Observation:
        """The last measurement of the first probe."""
        return self.repeated[-1] if self.repeated else self.first

    @property
    def shown(self) -> Observation:
        """The observation that the report is about: the ordinary stream if only the probe was refused."""
        ordinary = self.ordinary
        return ordinary if ordinary is not None and ordinary.is_stream else self.first
