"""The logs of the channels on a server: what is asked of the scripts, and what they answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from redis.exceptions import ResponseError

from ...broker import Page, Record
from ...cursor import Position, new_epoch
from ...errors import PositionConflictError
from ..history import History
from .command import Receiver
from .connection import Argument, Reply
from .hash_tag import tag_of
from .log_scripts import Scripts
from .script import Script


class Addition(NamedTuple):
    """An event to append."""

    payload: bytes
    idempotency_key: str | None = None
    expected: Position | None = None


class Added(NamedTuple):
    """Where it is in the log, and how many connections it was sent to."""

    epoch: str
    offset: int
    receivers: int

    @property
    def position(self) -> Position:
        """The position, made when it is asked for."""
        return Position(self.epoch, self.offset)


@dataclass(frozen=True, slots=True)
class Call:
    """A run of a script: all its keys have the hash tag `tag`."""

    script: Script
    tag: str
    keys: Sequence[str]
    arguments: Sequence[Argument]


class Server(Protocol):
    """Where scripts are run."""

    #: PUBLISH, or SPUBLISH in a cluster.
    verb: str

    @property
    def writer(self) -> str:
        """The name of this writer, whose calls may be repeated; empty if they never are."""
        ...

    def live_name(self, channel: str) -> str:
        """Return the name on which what is appended is published."""
        ...

    async def run(self, call: Call) -> Reply:
        """Run a script. Raises one of FAILURES if it did not run, or nobody knows whether it did."""
        ...

    def start(self, call: Call, receiver: Receiver) -> None:
        """Run a script and say who gets its reply, which is never within this call."""
        ...


class Logs:
    """The logs of all channels, bounded by `history`."""

    def __init__(self, server: Server, history: History, prefix: str) -> None:
        self._server = server
        self._prefix = prefix
        self._scripts = Scripts.of(history, server.verb)
        self._calls = 0
        # Until one has succeeded each call checks all permissions, so that one that is missing is named by
        # the first call and not when the log is trimmed.
        self._may_append = self._may_read = False

    def append(self, channel: str, additions: Sequence[Addition], receiver: Receiver) -> None:
        """Append events and publish them, in one step. `outcomes` says what the reply means."""
        key = self._key(channel)
        writer = self._server.writer
        self._calls += 1
        keys = [key, f"{key}:head"]
        if writer:
            keys.append(f"{key}:writer:{writer}")
        arguments: list[Argument] = [
            self._server.live_name(channel),
            new_epoch(),
            self._calls if writer else b"",
            int(not self._may_append),
            sum(len(addition.payload) for addition in additions),
        ]
        for addition in additions:
            arguments += (addition.payload, _index(addition, key, keys), _text(addition.expected))
        self._server.start(Call(self._scripts.append, tag_of(channel), keys, arguments), receiver)

    def outcomes(self, channel: str, reply: Reply) -> list[Added | PositionConflictError]:
        """Return what became of each event that was to be appended. Raises ValueError for another reply."""
        if not isinstance(reply, bytes):
            raise ValueError("this is no text")
        self._may_append = True
        epoch, *outcomes = reply.decode().split(" ")
        return [_outcome(channel, epoch, outcome) for outcome in outcomes]

    async def read(self, channel: str, after: int, limit: int, max_bytes: int) -> Page:
        """Return a part of a channel's log. See `broker.HistoryBroker`."""
        key = self._key(channel)
        arguments = (max(after, 0) + 1, max(limit, 0), new_epoch(), int(not self._may_read), max_bytes)
        call = Call(self._scripts.read, tag_of(channel), (key, f"{key}:head"), arguments)
        match await self._server.run(call):
            case [bytes() as epoch, bytes() as first, bytes() as last, bytes() as older, list() as records]:
                self._may_read = True
                found = tuple(map(_record, records))
                return Page(epoch.decode(), int(first), int(last), found, *_ancestors(older.decode()))
            case reply:
                raise ResponseError(f"the server answered what is no page: {reply!r:.100}")

    def _key(self, channel: str) -> str:
        return f"{self._prefix}{{{tag_of(channel)}}}"


def _index(addition: Addition, key: str, keys: list[str]) -> int:
    """Return where in `keys` the event's idempotency key is, counted as Lua counts."""
    if addition.idempotency_key is None:
        return 0
    keys.append(f"{key}:key:{addition.idempotency_key}")
    return len(keys)


def _text(position: Position | None) -> str:
    return "" if position is None else str(position)


def _outcome(channel: str, epoch: str, text: str) -> Added | PositionConflictError:
    if text.startswith("+"):
        offset, _, receivers = text.partition(":")
        return Added(epoch, int(offset), int(receivers))
    position = Position.parse(text[1:])
    if text.startswith("!"):
        return PositionConflictError(channel, position)
    return Added(position.epoch, position.offset, 0)


def _ancestors(text: str) -> tuple[tuple[Position, ...], tuple[str, ...]]:
    """Return the ancestors, and the epochs of the doubtful ones."""
    parts = text.split(",") if text else []
    ancestors = tuple([Position.parse(part.rstrip("!")) for part in parts])
    doubtful = [ancestor.epoch for ancestor, part in zip(ancestors, parts, strict=True) if part.endswith("!")]
    return ancestors, tuple(doubtful)


def _record(entry: Reply) -> Record:
    match entry:
        case [bytes() as id_, [_, bytes() as payload]]:
            return Record(int(id_.partition(b"-")[0]), payload)
        case _:
            raise ResponseError(f"the log has what is no event: {entry!r:.100}")
