"""RunRecord: what the log of a run says about the run itself, among its output.

A record is a block of one comment. Clients dispatch nothing for it, and no Event has a comment, so nothing
that an application publishes is taken for a record.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from math import inf
from typing import Literal

from .event import from_payload, to_payload
from .reasons import RunState

#: What the block of a record starts with.
RECORD_START = b": livepush.run "
_to_json = json.JSONEncoder(separators=(",", ":")).encode
# The longest error in a record, in characters.
MAX_ERROR = 1000

Kind = Literal["start", "alive", "gap", "end"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """A record of one attempt to produce the output of a run.

    A `gap` is where a server has lost events, and the attempt went on after them.
    `begin` is the offset of the first record of the output: earlier than its own for a start that continues
    an attempt which has ended. `count` is how many events the output had, None if the writer cannot know.
    `lease` is in seconds, and `at` the time of the writer's clock, in seconds since the epoch. `error` is a
    text for the readers of a run that has failed, and `dialect` the name of what the output is written in.
    """

    kind: Kind
    attempt: str
    begin: int
    lease: float
    at: float
    count: int | None = None
    state: RunState = RunState.RUNNING
    error: str | None = None
    dialect: str | None = None

    def encode(self) -> bytes:
        """Return the record as a payload for a broker."""
        # `asdict` takes as long as all the rest of the end of a run.
        values = {name: getattr(self, name) for name in self.__slots__}
        return to_payload(RECORD_START + _to_json(values).encode() + b"\n\n")


def is_record(block: bytes) -> bool:
    """Return whether a block is a record."""
    return block.startswith(RECORD_START)


def may_have_record(blocks: bytes) -> bool:
    """Return whether a record may be among joined blocks: True too if an event has the text of one."""
    return RECORD_START in blocks


def record_of(block: bytes) -> RunRecord | None:
    """Return the record in a block, or None if the block is an event, or a record that cannot be read."""
    if not is_record(block):
        return None
    return _known(block) if len(block) <= _MAX_KNOWN else _decode(block)


def _decode(block: bytes) -> RunRecord | None:
    try:
        values = json.loads(block[len(RECORD_START) :])
        return RunRecord(
            kind=_kind_of(values["kind"]),
            attempt=str(values["attempt"]),
            begin=int(values["begin"]),
            lease=_lease_of(values["lease"]),
            at=float(values["at"]),
            count=None if values["count"] is None else int(values["count"]),
            state=RunState(values["state"]),
            error=None if values.get("error") is None else error_text(values["error"]),
            dialect=None if values.get("dialect") is None else str(values["dialect"]),
        )
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        # A later version may have written it.
        return None


# Each reader and watcher of a run meets the same few records. Those with a long error, or of another program,
# are not kept: they may be as large as a log.
_MAX_KNOWN = 1024
_known = lru_cache(maxsize=1024)(_decode)


def has_record(payload: bytes) -> bool:
    """Return whether a payload is a record."""
    return RECORD_START in payload[:20]


def record_in(payload: bytes) -> RunRecord | None:
    """Return the record in a payload, or None."""
    return record_of(from_payload(payload)) if has_record(payload) else None


def error_text(error: object) -> str | None:
    """Return the text of an error for readers: bounded, and one that UTF-8 can hold. None for no text."""
    text = str(error)
    text = text if len(text) <= MAX_ERROR else f"{text[: MAX_ERROR - 1]}…"
    return text.encode("utf-8", "replace").decode() or None


def _lease_of(value: object) -> float:
    lease = float(value)  # type: ignore[arg-type]
    if 0 < lease < inf:
        return lease
    raise ValueError(f"a lease is a time in seconds, not {lease}")


def _kind_of(text: object) -> Kind:
    match text:
        case "start" | "alive" | "gap" | "end":
            return text
    raise ValueError(f"a record is a start, alive, a gap or an end, not {text!r}")


class RunFollower:
    """Follows the records that a reader of a run meets, and says when its reading ends.

    The first end of an attempt counts. It ends the reader if nothing follows it in the log: an attempt that
    has ended may have been continued. `met` says whether the reader has a part of the output of `attempt`,
    whose start record is at the offset `begin`.
    """

    __slots__ = ("_attempt", "_begin", "_earlier", "_ended_at", "_met", "end", "lacks_beginning")

    def __init__(self, attempt: str, begin: int = 0, *, met: bool = False) -> None:
        #: The end that the reader has met, until a start follows that continues the output.
        self.end: RunRecord | None = None
        #: Whether the last record says that events of the output were lost with a log: those right before it,
        #: or the beginning, of which a reader that has met nothing of the output was not told.
        self.lacks_beginning = False
        self._attempt, self._begin = attempt, begin
        # The attempts before this one that the reader has followed, each with the offset of the next start.
        self._earlier: list[tuple[str, int]] = []
        # The offset of the end that it has met.
        self._ended_at = 0
        # Whether the reader was given anything of the output, here or before it came back.
        self._met = met

    def meet(self) -> None:
        """Take an event, before any end. As `take(None, offset)`."""
        self._met, self.lacks_beginning = True, False

    def meet_gap(self, offset: int) -> None:
        """Take a gap that the reader was told of. It goes on after this offset."""
        if offset < self._begin:
            # The start of the output is still to come: what the reader had was of a log that was lost.
            self._met = False
        # The reader forgets the attempts and the end that the log has lost behind this offset.
        while self._earlier and self._earlier[-1][1] > offset:
            self._attempt, self.end = self._earlier.pop()[0], None
        if self._ended_at > offset:
            self.end = None

    def take(self, record: RunRecord | None, offset: int) -> bool:
        """Take the next record of the log, or None for an event. Return False if the reading ends before it.

        An event after the end is none of the run.
        """
        self.lacks_beginning = False
        if record is None:
            self._met = True
        elif record.kind == "start":
            # An attempt that goes on after its log was lost has a count.
            goes_on = record.attempt == self._attempt and bool(record.count)
            if record.begin == offset and self._met and not goes_on:
                return False
            self.lacks_beginning = record.begin == offset and bool(record.count) and not self._met
            if record.attempt != self._attempt:
                self._earlier.append((self._attempt, offset))
            self._attempt, self.end, self._met = record.attempt, None, True
        elif record.kind == "gap":
            self.lacks_beginning = True
        elif record.kind == "end" and record.attempt == self._attempt and self.end is None:
            self.end, self._ended_at = record, offset
        return True
