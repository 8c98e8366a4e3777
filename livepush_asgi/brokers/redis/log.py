"""Logs: appends to the logs of the channels on a server, in order and in batches, and reads from them.

Each busy channel has one script call under way. Appends that come meanwhile wait, and the next call carries
all of them: a burst of a hundred events costs one call, not a hundred.
"""

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from redis.exceptions import ResponseError

from ...errors import PositionConflictError
from ...runtime.event_loop import asyncio_loop
from ...wire.cursor import Position, new_epoch
from .. import Page, Record
from ..history import History
from .connection import Argument, Reply
from .log_scripts import log_scripts
from .pipeline import Receiver
from .script import Call, tag_of

# Bounds of one call, which keeps the server busy for some 2 ms.
MOST_EVENTS = 200
MOST_BYTES = 256 * 1024


class Addition(NamedTuple):
    """An event to append."""

    payload: bytes
    idempotency_key: str | None = None
    expected_position: Position | None = None


class Added(NamedTuple):
    """Where an event is in the log, and to how many connections it was sent."""

    epoch: str
    offset: int
    receivers: int

    @property
    def position(self) -> Position:
        """The position of the event."""
        return Position(self.epoch, self.offset)


_Outcome = Added | PositionConflictError
_Waiting = tuple[Addition, asyncio.Future[Added]]


class Server(Protocol):
    """Runs scripts: on one server, or on the nodes of a cluster."""

    #: PUBLISH, or SPUBLISH in a cluster.
    verb: str

    @property
    def writer(self) -> str:
        """The name under which calls are numbered, so that they may be repeated. Empty: never repeated."""
        ...

    def live_name(self, channel: str) -> str:
        """Return the name under which the channel's events are published."""
        ...

    async def run(self, call: Call) -> Reply:
        """Run a script. Raises one of FAILURES if it did not run, or may not have run."""
        ...

    def start(self, call: Call, receiver: Receiver) -> None:
        """Run a script. Its reply goes to `receiver`, after this call has returned."""
        ...


class Logs:
    """The logs of all channels, bounded by `history`. For one event loop at a time."""

    def __init__(self, server: Server, history: History, prefix: str) -> None:
        self._server = server
        self._prefix = prefix
        self._append, self._read = log_scripts(history, server.verb)
        self._calls = 0
        self._queues: dict[str, _AppendQueue] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        # Until the first call has succeeded, each call checks all permissions. So a missing permission is
        # reported at once, and not hours later when a log is trimmed for the first time.
        self._may_append = self._may_read = False

    def append(self, channel: str, addition: Addition) -> asyncio.Future[Added]:
        """Queue an event and return the future of its position.

        An event whose future is cancelled is not appended, unless it was sent already. The future raises
        PositionConflictError, or one of FAILURES. Raises UnicodeError at once for a name or a key that is
        not UTF-8, which would fail the other events of the same call.
        """
        loop = asyncio_loop()
        channel.encode()
        (addition.idempotency_key or "").encode()
        if self._loop is not loop:
            # Events that an earlier event loop left in the queues will not be sent.
            self._queues, self._loop = {}, loop
        queue = self._queues.get(channel)
        if queue is None:
            queue = self._queues[channel] = _AppendQueue(self, channel)
            # Not at once, so that one call carries all appends of this turn of the event loop.
            loop.call_soon(queue.send_next)
        future: asyncio.Future[Added] = loop.create_future()
        queue.waiting.append((addition, future))
        return future

    def discard(self, queue: "_AppendQueue") -> None:
        """Forget a queue that is empty."""
        if self._queues.get(queue.channel) is queue:
            del self._queues[queue.channel]

    def start(self, queue: "_AppendQueue", additions: Sequence[Addition]) -> None:
        """Append events and publish them, in one step. The queue gets the reply."""
        key = self._key(queue.channel)
        writer = self._server.writer
        self._calls += 1
        keys = [key, f"{key}:head"]
        if writer:
            keys.append(f"{key}:writer:{writer}")
        arguments: list[Argument] = [
            self._server.live_name(queue.channel),
            new_epoch(),
            self._calls if writer else b"",
            int(not self._may_append),
            sum(len(addition.payload) for addition in additions),
        ]
        for addition in additions:
            index = 0
            if addition.idempotency_key is not None:
                keys.append(f"{key}:key:{addition.idempotency_key}")
                # Lua counts from 1.
                index = len(keys)
            expected = "" if addition.expected_position is None else str(addition.expected_position)
            arguments += (addition.payload, index, expected)
        self._server.start(Call(self._append, tag_of(queue.channel), keys, arguments), queue)

    def outcomes(self, channel: str, reply: Reply) -> list[_Outcome]:
        """Return the outcome of each event of a call. Raises ValueError for a malformed reply."""
        if not isinstance(reply, bytes):
            raise ValueError("the reply is no text")
        self._may_append = True
        epoch, *outcomes = reply.decode().split(" ")
        return [_outcome(channel, epoch, outcome) for outcome in outcomes]

    async def read(self, channel: str, after: int, limit: int, max_bytes: int) -> Page:
        """Return a part of a channel's log. See `HistoryBroker`."""
        key = self._key(channel)
        arguments = (max(after, 0) + 1, max(limit, 0), new_epoch(), int(not self._may_read), max_bytes)
        call = Call(self._read, tag_of(channel), (key, f"{key}:head"), arguments)
        match await self._server.run(call):
            case [bytes() as epoch, bytes() as first, bytes() as last, bytes() as older, list() as records]:
                self._may_read = True
                found = tuple(map(_record, records))
                return Page(epoch.decode(), int(first), int(last), found, *_ancestors(older.decode()))
            case reply:
                raise ResponseError(f"the server's reply is no page of a log: {reply!r:.100}")

    def _key(self, channel: str) -> str:
        return f"{self._prefix}{{{tag_of(channel)}}}"


class _AppendQueue:
    """The appends of one channel. It receives the replies of its calls."""

    __slots__ = ("_logs", "_sent", "channel", "waiting")

    def __init__(self, logs: Logs, channel: str) -> None:
        self._logs = logs
        self.channel = channel
        self.waiting: deque[_Waiting] = deque()
        self._sent: list[_Waiting] = []

    def send_next(self) -> None:
        """Send the appends that wait, as many as fit into one call."""
        waiting, size = self.waiting, 0
        sent: list[_Waiting] = []
        while waiting and len(sent) < MOST_EVENTS and size < MOST_BYTES:
            addition, future = waiting.popleft()
            if not future.done():
                sent.append((addition, future))
                size += len(addition.payload)
        self._sent = sent
        if sent:
            self._logs.start(self, [addition for addition, _ in sent])
        else:
            self._logs.discard(self)

    def done(self) -> bool:
        return False

    def set_result(self, reply: Reply, /) -> None:
        sent, more = self._sent, bool(self.waiting)
        self.send_next()
        if more:
            # After the next call was sent, so that the server works meanwhile.
            asyncio.get_running_loop().call_soon(self._resolve, sent, reply)
        else:
            self._resolve(sent, reply)

    def set_exception(self, error: Exception, /) -> None:
        # The appends that wait would get the same error.
        _fail((*self._sent, *self.waiting), error)
        self.waiting.clear()
        self.send_next()

    def _resolve(self, sent: list[_Waiting], reply: Reply) -> None:
        try:
            outcomes = list(zip(sent, self._logs.outcomes(self.channel, reply), strict=True))
        except ValueError:
            _fail(sent, ResponseError(f"the server's reply is no outcome of appends: {reply!r:.100}"))
            return
        for (_, future), outcome in outcomes:
            if future.done():
                continue
            if isinstance(outcome, PositionConflictError):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)


def _fail(waiting: Iterable[_Waiting], error: Exception) -> None:
    for _, future in waiting:
        if not future.done():
            future.set_exception(error)


def _outcome(channel: str, epoch: str, text: str) -> _Outcome:
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
            raise ResponseError(f"the log has an entry that is no event: {entry!r:.100}")
