"""The logs of the channels on a server: what is asked of the scripts, and what they answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from redis.exceptions import ResponseError

from ..broker import Page, Record
from ..cursor import Position, new_epoch
from ..errors import PositionConflictError
from ..event import POSITION_MARK
from .history import History
from .redis_connection import Argument, Reply
from .redis_log_scripts import APPEND, READ
from .redis_script import Script

# In milliseconds. A log outlives its events, so that a channel on which little happens keeps its epoch: who
# listens asks for it every minute or so. An idempotency key is remembered for at least five minutes, and for
# a day where events have no age.
_LEAST_KEEP = 600_000
_LEAST_REMEMBER, _ENDLESS_REMEMBER = 300_000, 86_400_000

_ESCAPES = str.maketrans({"%": "%25", "{": "%7B", "}": "%7D"})


def tag_of(channel: str) -> str:
    """Return the hash tag of a channel's keys: its name, without braces. No two channels have the same.

    The server hashes what is between the first brace and the next one; nothing would be no tag.
    """
    return channel.translate(_ESCAPES) or "%"


class Addition(NamedTuple):
    """An event to append."""

    payload: bytes
    idempotency_key: str | None = None
    expected: Position | None = None


class Added(NamedTuple):
    """Where it is in the log, and how many connections it was sent to."""

    position: Position
    receivers: int


@dataclass(frozen=True, slots=True)
class Call:
    """A run of a script: all its keys have the hash tag `tag`."""

    script: Script
    tag: str
    keys: Sequence[str]
    arguments: Sequence[Argument]
    #: Whether running it twice is the same as running it once.
    repeatable: bool


class Server(Protocol):
    """Where scripts are run."""

    #: PUBLISH, or SPUBLISH in a cluster.
    verb: bytes
    #: The name of this writer, whose calls may be repeated; empty if they never are.
    writer: str

    def live_name(self, channel: str) -> str:
        """Return the name on which what is appended is published."""
        ...

    async def run(self, call: Call) -> Reply:
        """Run a script. Raises one of FAILURES if it did not run, or nobody knows whether it did."""
        ...


class Logs:
    """The logs of all channels, bounded by `history`."""

    def __init__(self, server: Server, history: History, prefix: str) -> None:
        self._server = server
        self._prefix = prefix
        age = None if history.age is None else max(1, round(history.age * 1000))
        self._bounds = (history.size, age or 0, 0 if age is None else max(2 * age, _LEAST_KEEP))
        self._events = history.events
        self._remember = _ENDLESS_REMEMBER if age is None else max(age, _LEAST_REMEMBER)
        self._append, self._read = Script(APPEND), Script(READ)
        self._calls = 0

    async def append(
        self, channel: str, additions: Sequence[Addition]
    ) -> list[Added | PositionConflictError]:
        """Append events and publish them, in one step. Each has an outcome of its own."""
        key = self._key(channel)
        writer = self._server.writer
        self._calls += 1
        keys = [key, f"{key}:head"]
        if writer:
            keys.append(f"{key}:writer:{writer}")
        arguments: list[Argument] = [
            *(self._server.live_name(channel), self._server.verb, POSITION_MARK, new_epoch()),
            *(self._events, *self._bounds, self._remember, self._calls if writer else b""),
        ]
        for addition in additions:
            arguments += (addition.payload, _index(addition, key, keys), _text(addition.expected))
        call = Call(self._append, tag_of(channel), keys, arguments, repeatable=bool(writer))
        reply = await self._server.run(call)
        assert isinstance(reply, bytes)
        epoch, *outcomes = reply.decode().split(" ")
        return [_outcome(channel, epoch, outcome) for outcome in outcomes]

    async def read(self, channel: str, after: int, limit: int) -> Page:
        """Return a part of a channel's log. See `broker.HistoryBroker`."""
        key = self._key(channel)
        arguments = (max(after, 0) + 1, max(limit, 0), new_epoch(), *self._bounds)
        call = Call(self._read, tag_of(channel), (key, f"{key}:head"), arguments, repeatable=True)
        match await self._server.run(call):
            case [bytes() as epoch, bytes() as first, bytes() as last, bytes() as ancestors, list() as records]:
                return Page(
                    epoch.decode(),
                    int(first),
                    int(last),
                    tuple(map(_record, records)),
                    tuple(map(Position.parse, filter(None, ancestors.decode().split(",")))),
                )
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
    if text[0] == "+":
        offset, receivers = text[1:].split(":")
        return Added(Position(epoch, int(offset)), int(receivers))
    position = Position.parse(text[1:])
    return Added(position, 0) if text[0] == "=" else PositionConflictError(channel, position)


def _record(entry: Reply) -> Record:
    match entry:
        case [bytes() as id_, [_, bytes() as payload]]:
            return Record(int(id_.partition(b"-")[0]), payload)
        case _:
            raise ResponseError(f"the log has what is no event: {entry!r:.100}")
