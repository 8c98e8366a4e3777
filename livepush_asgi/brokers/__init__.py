"""The broker ports: the methods that a pub/sub system must offer. The adapters are in this folder.

An adapter is two classes. The first has `publish` and `subscribe`; `subscribe` returns the second. That is
enough: the component reads each subscription in a task of its own. When a subscription raises, the component
reports a possible loss to the streams, waits, and subscribes again, as long as the channel has streams.

An adapter that already has one reader for everything (a single connection, say) also gives its subscriptions
`forward`. Then no task is needed for each channel.

Only slots/ and the rooms above it may import it. Start with this file, then `memory.py`, which needs no
server; `redis/`, `nats/` and `postgres/` each need a client library. `mailbox.py` holds the messages of one
subscription, `segments.py` the events of a log in memory, `history.py` has the bounds of a log, `timeouts.py`
the time-outs, `faults.py` why a broker is not healthy, `transaction.py` the port of a broker that appends in
a transaction of the application.
docs/guides/brokers.md says how to write an adapter.
"""

from collections.abc import Awaitable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count
from typing import NamedTuple, Protocol, cast, overload, runtime_checkable

from ..wire.cursor import Position

#: The most bytes of payload that a read of history returns, unless the caller sets `max_bytes`.
READ_BYTES = 1024 * 1024


@runtime_checkable
class Subscription(Protocol):
    """A live subscription to one channel."""

    async def get_message(self, *, timeout: float) -> bytes | None:
        """Wait for the next payload and return it, or None after `timeout` seconds without one.

        Payloads come in the order in which they were published by any one publisher, each once.
        Raises MessagesLostError where some may have been lost and the subscription goes on. Any
        other exception means that the subscription has ended.
        """
        ...

    async def close(self) -> None:
        """Unsubscribe. Closing twice is harmless; nothing is delivered afterwards."""
        ...


@runtime_checkable
class Broker(Protocol):
    """A pub/sub backend.

    The component subscribes to a channel once per process, however many streams listen, and closes
    that subscription before it subscribes to the channel again. A channel is named by any text that
    is not empty. The component closes its subscriptions, never the broker: the application closes
    its connections after the component has stopped.
    """

    async def publish(self, channel: str, payload: str | bytes) -> int:
        """Send a payload to every subscription of the channel and return how many there were.

        The count is as far as the backend knows: a server counts its own connections, and 0 may
        mean that it does not count. The payload is opaque and must arrive unchanged; a str is sent as
        UTF-8. Raises BrokerUnavailableError if the backend is away; the payload may have arrived all
        the same.
        """
        ...

    async def subscribe(self, channel: str) -> Subscription:
        """Return a subscription that gets every payload published after this call has returned.

        Raises BrokerUnavailableError if the backend cannot be reached.
        """
        ...


class Sink(Protocol):
    """Receives payloads from a forwarding subscription. Both methods return at once and never raise."""

    def deliver(self, payload: bytes, /) -> None:
        """Take one payload. Called on the event loop's thread, in order."""
        ...

    def lost(self) -> None:
        """Note that payloads may have been lost before the next one that is delivered."""
        ...


class LoggedSink(Sink, Protocol):
    """A sink that also takes a payload and its position apart, from a broker in the same process."""

    def deliver_at(self, position: Position, payload: bytes, /) -> None:
        """Take one payload as it is in the log. Same as `deliver(positioned(position, payload))`."""
        ...

    def deliver_after(self, position: Position, payloads: Sequence[bytes], /) -> None:
        """Take the payloads that follow a position in the log. Same as `deliver_at` for each."""
        ...


@runtime_checkable
class ForwardingSubscription(Subscription, Protocol):
    """A subscription that passes each payload to a sink, so that no task has to call `get_message`."""

    def forward(self, sink: Sink, /) -> None:
        """Deliver the payloads that wait, and all later ones, to `sink` instead of to `get_message`."""
        ...


class Record(NamedTuple):
    """One event in a channel's log: its offset, and the payload as it was appended."""

    offset: int
    payload: bytes


class Records(Sequence[Record]):
    """Records that follow each other in a log, the first at the offset `first`. Equal to a tuple of the same.

    Each is made when somebody looks at it: most pages are sent as a whole. So a `read` that returns these
    costs less than one that makes a tuple.
    """

    __slots__ = ("first", "payloads")

    def __init__(self, first: int, payloads: Sequence[bytes]) -> None:
        #: The offset of the first one.
        self.first = first
        #: The payload of each.
        self.payloads = tuple(payloads)

    def __len__(self) -> int:
        return len(self.payloads)

    @overload
    def __getitem__(self, place: int) -> Record: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[Record, ...]: ...
    def __getitem__(self, place: int | slice) -> Record | tuple[Record, ...]:
        if isinstance(place, slice):
            return tuple(self)[place]
        return Record(self.first + range(len(self))[place], self.payloads[place])

    def __iter__(self) -> Iterator[Record]:
        return map(Record, count(self.first), self.payloads)

    def __eq__(self, other: object) -> bool:
        return tuple(self) == (tuple(other) if isinstance(other, Records) else other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))


def payloads_of(records: Sequence[Record]) -> Sequence[bytes]:
    """Return the payload of each record."""
    if isinstance(records, Records):
        return records.payloads
    return [record.payload for record in records]


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a channel's log, all of it seen at one moment.

    `first` is the offset of the oldest event that is kept, `last` that of the newest. If the log keeps no
    event, `first` is `last + 1`. `records` follow each other without a hole: a tuple, or Records. If the
    first record has a higher offset than the caller asked for, the log has dropped the events before it.

    A log whose end may be lost continues under a new epoch, with the next offset. `ancestors` has the last
    position of each earlier epoch, the newest first: up to it, the log has the events of that epoch.
    `doubtful` names the epochs at whose end acknowledged events may be missing. The broker cannot know
    whether they are, so a client that reads past such an end is told of a gap.
    """

    epoch: str
    first: int
    last: int
    records: Sequence[Record]
    ancestors: tuple[Position, ...] = ()
    doubtful: tuple[str, ...] = ()

    def locate(self, position: Position) -> Position | None:
        """Translate a position into this epoch. None if events after it are lost, or may be."""
        if self._doubt_after(position.epoch) is not None or not self.has(position):
            return None
        return position if position.epoch == self.epoch else Position(self.epoch, position.offset)

    def has(self, position: Position) -> bool:
        """Return whether the event at this position is, or was, in this log. False for a lost event."""
        return position.offset <= self._shared_with(position.epoch)

    def seen_from(self, position: Position) -> "Page":
        """Return the page up to the first epoch boundary after `position` at which events may be missing.

        Returns the whole page if there is no such boundary, or if it is right after `position`.
        """
        doubt = self._doubt_after(position.epoch)
        if doubt is None or not self.has(position):
            return self
        end = self.ancestors[doubt]
        if position.offset >= end.offset:
            return self
        records = tuple([record for record in self.records if record.offset <= end.offset])
        first = min(self.first, end.offset + 1)
        return Page(end.epoch, first, end.offset, records, self.ancestors[doubt + 1 :], self.doubtful)

    def in_oldest_epoch(self, position: Position) -> Position:
        """Return the same place in the oldest epoch that has it, so that every doubtful end is after it."""
        if not self.has(position):
            return position
        holders = [ancestor.epoch for ancestor in self.ancestors if ancestor.offset >= position.offset]
        return Position(holders[-1], position.offset) if holders else position

    def start_after_loss(self, position: Position) -> Position:
        """Return where to continue after a position that was lost, or that is of another log.

        It is in the oldest epoch that goes on from there, so that each later doubtful end is after it.
        """
        offset = max(self._shared_with(position.epoch), self.first - 1)
        later = [ancestor.epoch for ancestor in self.ancestors if ancestor.offset > offset]
        return Position(later[-1] if later else self.epoch, offset)

    def _shared_with(self, epoch: str) -> int:
        """Return the last offset up to which an epoch has the events of this log, -1 if it has none."""
        if epoch == self.epoch:
            return self.last
        return next((ancestor.offset for ancestor in self.ancestors if ancestor.epoch == epoch), -1)

    def _doubt_after(self, epoch: str) -> int | None:
        """Return the index of the first doubtful ancestor between an epoch and this one."""
        if not self.doubtful:
            return None
        names = [ancestor.epoch for ancestor in self.ancestors]
        way = names[: names.index(epoch) + 1] if epoch in names else []
        return next((place for place in reversed(range(len(way))) if way[place] in self.doubtful), None)


@runtime_checkable
class HistoryBroker(Broker, Protocol):
    """A broker that keeps a bounded log of each channel, with positions.

    A live payload of such a broker is `positioned(position, payload)` of `wire/event.py`. `get_message` and
    `forward` deliver the same bytes, so that a wrapper may use either; `split_position` takes them apart.
    An event is in the log before any subscription gets it. So a reader that sees a hole between two live
    positions can read the missing events. Subscriptions may lose or repeat events that the log still has;
    the reader corrects that. `publish` appends too. A payload that another program publishes past the log
    has no position, and the component refuses it: clients that reconnect could never get it.

    An epoch is 1 to 16 letters, digits, `-` and `_`, drawn at random when a log begins.
    """

    async def append(
        self,
        channel: str,
        payload: bytes,
        *,
        idempotency_key: str | None = None,
        expected_position: Position | None = None,
    ) -> Position:
        """Add an event to the log and send it to every subscription, in one step; return its position.

        A second append with the same `idempotency_key`, while the first is remembered (for at least
        as long as the log keeps it, or a time that the adapter names), adds nothing and returns the
        first one's position. With `expected_position` it adds only if that is the log's last position; offset
        0 with any epoch means a log in which nothing was ever added. Raises PositionConflictError if
        it is not, BrokerUnavailableError if the backend is away, and the event may have been added.
        """
        ...

    async def read(self, channel: str, after: int, limit: int, *, max_bytes: int = READ_BYTES) -> Page:
        """Return up to `limit` events with offsets above `after`, the oldest first.

        The page ends before the event with which its payloads would have more than `max_bytes` together,
        but has one event at least. Do not load events that do not fit: a thousand clients may read at
        once. If the channel has no log, this call begins one, and keeps its epoch for at least as long
        as the channel is read once a minute. A `limit` of 0 returns the bounds alone. Raises
        BrokerUnavailableError if the backend is away.
        """
        ...


@runtime_checkable
class BatchBroker(HistoryBroker, Protocol):
    """A broker with history that appends several events in one call; runs use it if it is there."""

    async def append_batch(
        self, channel: str, payloads: Sequence[bytes], *, expected_position: Position
    ) -> Position:
        """Append events in order, the first right behind `expected_position`; return the last one's position.

        The call may append fewer events than it is given, from the first on, but one at least: the offset of
        the position says how many. No other event comes between them. Raises PositionConflictError if the log
        does not end at `expected_position`, and nothing was appended. Raises BrokerUnavailableError if the
        backend is away, and any number of the events, from the first on, may have been appended.
        """
        ...


def append_in_order(
    broker: HistoryBroker, channel: str, payloads: Sequence[bytes], expected_position: Position
) -> Awaitable[Position]:
    """Do what `BatchBroker.append_batch` does, with any broker."""
    if has_beside(broker, "append", "append_batch"):
        # `isinstance` of a protocol would cost as much as the append in memory.
        return cast("BatchBroker", broker).append_batch(
            channel, payloads, expected_position=expected_position
        )
    return broker.append(channel, payloads[0], expected_position=expected_position)


def has_beside(broker: HistoryBroker, method: str, name: str) -> bool:
    """Return whether the class that has a method has this one too, which does the same in another way.

    A subclass that changes the first alone, or a wrapper with `__getattr__`, would be passed by.
    """
    return _has_beside(type(broker), method, name)


@cache
def _has_beside(kind: Hashable, method: str, name: str) -> bool:
    assert isinstance(kind, type)
    return name in next((vars(each) for each in kind.__mro__ if method in vars(each)), ())
