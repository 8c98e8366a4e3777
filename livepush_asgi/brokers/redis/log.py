"""What goes to the scripts of a channel's log, and what comes back. `log.lua` says what a log is."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from importlib.resources import files
from itertools import accumulate
from typing import NamedTuple

from redis.exceptions import ResponseError

from ...errors import PositionConflictError
from ...wire.cursor import Position
from ...wire.event import BATCH_MARK, POSITION_MARK, split_batch, split_payloads
from .. import Page, Records
from ..history import History
from ..mailbox import Mailbox
from .connection import Reply
from .script import Script, tag_of

#: The keys of logs begin with this, unless a broker is given another prefix.
KEY_PREFIX = "livepush:log:"
# Bounds of one call, which keeps the server busy for some 2 ms.
MAX_EVENTS = 200
MAX_BYTES = 256 * 1024
# In milliseconds. A log outlives its events, so that a quiet channel keeps its epoch: processes that listen
# ask for it about every minute. An idempotency key is remembered for at least five minutes, and for a day
# where events have no age.
_LEAST_KEEP = 600_000
_LEAST_REMEMBER, _ENDLESS_REMEMBER = 300_000, 86_400_000


def log_key(prefix: str, channel: str) -> str:
    """Return the key of a channel's log. The key of its head is the same with `:head` behind it."""
    return f"{prefix}{{{tag_of(channel)}}}"


def log_scripts(history: History, verb: str) -> tuple[Script, Script]:
    """Return the scripts to append and to read, for logs with these bounds. `verb` is PUBLISH or SPUBLISH."""
    age = None if history.age is None else max(1, round(history.age * 1000))
    constants = {
        "EVENTS": history.events,
        "SIZE": history.size,
        "AGE": age or "false",
        "KEEP": "false" if age is None else max(2 * age, _LEAST_KEEP),
        "REMEMBER": _ENDLESS_REMEMBER if age is None else max(age, _LEAST_REMEMBER),
        "VERB": f"'{verb}'",
        "MARK": _lua_text(POSITION_MARK),
        "BATCH_MARK": _lua_text(BATCH_MARK),
    }
    begin = "".join(f"local {name} = {value}\n" for name, value in constants.items())
    folder = files(__package__)
    log, append, read = [folder.joinpath(f"{name}.lua").read_text() for name in ("log", "append", "read")]
    return Script(begin + log + append), Script(begin + log + read)


def _lua_text(text: bytes) -> str:
    return "'" + "".join(f"\\{byte:03}" for byte in text) + "'"


def fitting(payloads: Sequence[bytes]) -> Sequence[bytes]:
    """Return the first payloads, as many as fit into one call."""
    if len(payloads) <= MAX_EVENTS and sum(map(len, payloads)) <= MAX_BYTES:
        return payloads
    fit = sum(size <= MAX_BYTES for size in accumulate(map(len, payloads[:MAX_EVENTS])))
    return payloads[: max(1, fit)]


def age_script() -> Script:
    """Return the script that reads how long ago an event was added."""
    return Script(files(__package__).joinpath("age.lua").read_text())


class LogMailbox(Mailbox):
    """A subscription that takes the messages of the append script: of one payload, or of a batch."""

    __slots__ = ()

    def deliver(self, payload: bytes, /) -> None:
        """Take a message."""
        if not payload.startswith(BATCH_MARK):
            super().deliver(payload)
            return
        try:
            before, payloads = split_batch(payload)
        except ValueError:
            # Another program may publish anything. The sink refuses it.
            super().deliver(payload)
            return
        self.deliver_after(before, payloads)


class Added(NamedTuple):
    """Where an event is in the log, and to how many connections it was sent."""

    position: Position
    receivers: int


class Append(NamedTuple):
    """Events to append in order and together, and the future of the last one's place.

    The idempotency key is for one event alone.
    """

    payloads: Sequence[bytes]
    idempotency_key: str | None
    expected_position: Position | None
    added: asyncio.Future[Added]


class AppendQueue:
    """The appends of one channel, of which one call is under way. The queue is the receiver of its reply.

    Appends that come meanwhile wait, and the next call carries all of them: a burst of a hundred events costs
    one call, not a hundred. `start` begins a call; it is called without appends when none is left.
    """

    __slots__ = ("_sent", "_start", "channel", "waiting")

    def __init__(self, channel: str, start: Callable[["AppendQueue", Sequence[Append]], None]) -> None:
        self.channel = channel
        self.waiting: deque[Append] = deque()
        self._start = start
        self._sent: list[Append] = []

    def send_next(self) -> None:
        """Send the appends that wait, as many as fit into one call."""
        self._sent, events, size = [], 0, 0
        while self.waiting and events < MAX_EVENTS and size < MAX_BYTES:
            append = self.waiting.popleft()
            if not append.added.done():
                self._sent.append(append)
                events += len(append.payloads)
                size += sum(map(len, append.payloads))
        self._start(self, self._sent)

    def done(self) -> bool:
        """Return False: the reply is needed."""
        return False

    def set_result(self, reply: Reply, /) -> None:
        """Take the reply of the append script: a text with the outcome of each append."""
        sent, more = self._sent, bool(self.waiting)
        self.send_next()
        if more:
            # After the next call was sent, so that the server works meanwhile.
            asyncio.get_running_loop().call_soon(self._resolve, sent, reply)
        else:
            self._resolve(sent, reply)

    def set_exception(self, error: Exception, /) -> None:
        """Take the reason why there is no reply. The appends that wait would get the same error."""
        failed = (*self._sent, *self.waiting)
        self.waiting.clear()
        self.send_next()
        for append in failed:
            _settle(append, error)

    def _resolve(self, sent: Sequence[Append], reply: Reply) -> None:
        outcomes: Sequence[Added | Exception]
        try:
            texts = reply.decode().split(" ") if isinstance(reply, bytes) else []
            outcomes = [_outcome(self.channel, text) for _, text in zip(sent, texts, strict=True)]
        except ValueError:
            error = ResponseError(f"the server's reply is no outcome of appends: {reply!r:.100}")
            outcomes = [error] * len(sent)
        for append, outcome in zip(sent, outcomes, strict=True):
            _settle(append, outcome)


def _settle(append: Append, outcome: Added | Exception) -> None:
    if append.added.done():
        return
    if isinstance(outcome, Exception):
        append.added.set_exception(outcome)
    else:
        append.added.set_result(outcome)


def _outcome(channel: str, text: str) -> Added | PositionConflictError:
    where, _, receivers = text[1:].partition(":")
    position = Position.parse(where)
    if text.startswith("!"):
        return PositionConflictError(channel, position)
    return Added(position, int(receivers or 0))


def page_of(reply: Reply) -> Page:
    """Return the page in a reply of the read script. Raises ResponseError for another reply."""
    match reply:
        case [bytes(epoch), bytes(first), bytes(last), bytes(older), bytes(start), bytes(sizes), bytes(body)]:
            records = Records(int(start or 0), split_payloads(sizes, body) if sizes else ())
            return Page(epoch.decode(), int(first), int(last), records, *_ancestors(older.decode()))
        case _:
            raise ResponseError(f"the server's reply is no page of a log: {reply!r:.100}")


def _ancestors(text: str) -> tuple[tuple[Position, ...], tuple[str, ...]]:
    """Return the ancestors, and the epochs of the doubtful ones."""
    parts = text.split(",") if text else []
    ancestors = tuple([Position.parse(part.rstrip("!")) for part in parts])
    doubtful = [ancestor.epoch for ancestor, part in zip(ancestors, parts, strict=True) if part.endswith("!")]
    return ancestors, tuple(doubtful)
