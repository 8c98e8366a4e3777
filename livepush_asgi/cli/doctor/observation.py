"""Observation: what was seen of one answer, from the first byte to the end. Values; nothing is judged."""

from dataclasses import dataclass
from enum import Enum
from itertools import pairwise

from ...http.probe import ProbePlan

# What is no mere interval between events, in seconds, and longer than what was borne.
SILENCE, LONGER = 0.5, 1.05


class Trouble(Enum):
    """Why there was no answer at all."""

    NAME = "name"
    REFUSED = "connection-refused"
    TLS = "tls"
    CONNECT = "unreachable"
    CLOSED = "closed-before-the-answer"
    SILENT = "no-answer"
    REDIRECTS = "redirect-loop"


class End(Enum):
    """How an answer ended."""

    COMPLETE = "complete"
    DRAIN = "drain"
    #: Closed as if it were complete, and it was not.
    CLOSED = "closed"
    #: Broken off in the middle of what was promised.
    BROKEN = "broken"
    #: Nothing came any more.
    SILENT = "silent"
    #: Enough was seen of a stream that does not end.
    ENOUGH = "enough"


@dataclass(frozen=True, slots=True)
class Answer:
    """The head of an answer. `at` is seconds after it was asked for, as are all moments here."""

    status: int
    http_version: str
    headers: tuple[tuple[str, str], ...]
    url: str
    at: float = 0.0

    def get(self, name: str) -> str | None:
        """Return a header field; repeated ones are joined with a comma."""
        found = [value for key, value in self.headers if key == name]
        return ", ".join(found) if found else None

    @property
    def media_type(self) -> str:
        """The content type without its parameters."""
        return (self.get("content-type") or "").partition(";")[0].strip().lower()

    @property
    def compression(self) -> str | None:
        """The content encoding, None if there is none."""
        encoding = (self.get("content-encoding") or "identity").strip().lower()
        return None if encoding in ("identity", "") else encoding


@dataclass(frozen=True, slots=True)
class Redirect:
    """An answer that sent the client on."""

    status: int
    source: str
    target: str


@dataclass(frozen=True, slots=True)
class Mark:
    """A probe event: its number, when it was sent (the server's clock) and when it was here (ours), in
    seconds, and how many bytes of the stream there were with it.
    """

    number: int
    sent: float
    at: float
    offset: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes as they came, before anything is decompressed."""

    at: float
    size: int


@dataclass(frozen=True, slots=True)
class Stall:
    """A moment at which this program was called too late, and by how much. What came then is not late."""

    at: float
    late: float


@dataclass(frozen=True, slots=True)
class Seen:
    """What the application has told of the request that reached it."""

    http: str = ""
    scheme: str = ""
    telling: tuple[str, ...] = ()
    via: str = ""
    heartbeat: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One request and what came of it."""

    plan: ProbePlan | None
    answer: Answer | None = None
    trouble: Trouble | None = None
    detail: str = ""
    redirects: tuple[Redirect, ...] = ()
    chunks: tuple[Chunk, ...] = ()
    #: The events of the probe, from the opening one to the last.
    marks: tuple[Mark, ...] = ()
    seen: Seen | None = None
    #: The names and data of the first events that were no probe's.
    others: tuple[tuple[str, str], ...] = ()
    heartbeats: int = 0
    #: The beginning of a body that is no event stream, or of one that cannot be read.
    body: bytes = b""
    unreadable: str = ""
    #: The bytes behind the end of what was compressed.
    rest: int = 0
    end: End | None = None
    ended_at: float = 0.0
    stalls: tuple[Stall, ...] = ()

    @property
    def is_stream(self) -> bool:
        """Whether a browser would take it for an event stream."""
        return (
            self.answer is not None
            and self.answer.status == 200
            and self.answer.media_type == "text/event-stream"
        )

    @property
    def probed(self) -> bool:
        """Whether the application answered with a probe."""
        return bool(self.marks)

    @property
    def series(self) -> tuple[Mark, ...]:
        """The marks between the opening one and the totals."""
        most = self.plan.events if self.plan is not None else 0
        return tuple(mark for mark in self.marks if 1 <= mark.number <= most)

    @property
    def first_byte_at(self) -> float | None:
        """When the first byte of the body came."""
        return self.chunks[0].at if self.chunks else None

    @property
    def cut(self) -> bool:
        """Whether a probe was ended by somebody who should not have."""
        return self.probed and not self.rest and self.end in (End.CLOSED, End.BROKEN)

    @property
    def silence(self) -> float:
        """How long nothing had come when it ended."""
        at = self.chunks[-1].at if self.chunks else self.answer.at if self.answer is not None else 0.0
        return max(self.ended_at - at, 0.0)

    @property
    def longest_silence(self) -> float:
        """The longest time without a byte after which another came."""
        return max((b.at - a.at for a, b in pairwise(self.chunks)), default=0.0)

    @property
    def cut_for_silence(self) -> bool:
        """Whether it was cut off after a silence that was the longest so far, and no mere interval."""
        return self.cut and self.silence > max(LONGER * self.longest_silence, SILENCE)

    @property
    def other_names(self) -> tuple[str, ...]:
        """The names of the events that were no probe's."""
        return tuple(name for name, _ in self.others)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that was asked for, in order; what was not needed is None.

    `repeated`: the same again, after events had come late. `plain`: the same, uncompressed.
    `weighed`: larger events. `busy`: for as long as it took to be cut off, without a silence.
    `ordinary`: a stream, where there was no probe.
    """

    first: Observation
    repeated: tuple[Observation, ...] = ()
    plain: Observation | None = None
    weighed: Observation | None = None
    busy: Observation | None = None
    ordinary: Observation | None = None
    #: A content encoding that only browsers could read here.
    unread_encoding: str | None = None
    #: Whether it is compressed only if it begins with much.
    stout: bool = False
    #: Whether Vite's development server answers at the same place.
    vite: bool = False
    origin: str | None = None
    idle: float = 0.0
    http2_tried: bool = False
