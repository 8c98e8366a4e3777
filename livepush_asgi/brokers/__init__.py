"""The broker ports, what a pub/sub system has to offer, and in this folder the adapters that keep to them.

An adapter is two classes. The first has `publish` and `subscribe`; `subscribe` returns the second. That is
enough: the component reads each subscription in a task of its own. When a subscription raises, the component
tells the streams what may have been lost, waits, and subscribes again, for as long as there are listeners.

An adapter that already has one reader for everything (a single connection, say) also gives its subscriptions
`forward`. Then no task is needed for each channel.

`memory.py` needs no server. `redis/` and `nats/` each need a client library, which is imported nowhere else.
`mailbox.py` is the subscription that all of them return, `history.py` has the bounds of a log. hub/ and the
rooms above it import the ports; slots/ uses `redis/`. To write an adapter: docs/brokers.md.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from ..wire.cursor import Position

#: How many bytes of payload a read of history returns at most, where nobody says how many.
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
        """Give the subscription back. Closing twice is harmless; nothing is delivered afterwards."""
        ...


@runtime_checkable
class Broker(Protocol):
    """A pub/sub backend.

    The component subscribes to a channel once per process, however many streams listen, and does
    not subscribe to it again before it has closed the subscription it has. A channel is named by any
    text that is not empty. The component closes its subscriptions, never the broker: connections are
    for whoever made it to close, when the component has stopped.
    """

    async def publish(self, channel: str, payload: str | bytes) -> int:
        """Send a payload to every subscription of the channel and return how many there were.

        The count is what the backend knows (for a server: its own connections), 0 if it knows
        nothing. The payload is opaque and must arrive unchanged; a str is sent as UTF-8. Raises
        BrokerUnavailableError if the backend is away; the payload may have arrived all the same.
        """
        ...

    async def subscribe(self, channel: str) -> Subscription:
        """Return a subscription that gets all that is published from the return of this call on.

        Raises BrokerUnavailableError if the backend cannot be reached.
        """
        ...


class Sink(Protocol):
    """Where a forwarding subscription puts what arrives. Both calls return at once and never raise."""

    def deliver(self, payload: bytes, /) -> None:
        """Take one payload. Called on the event loop's thread, in order."""
        ...

    def lost(self) -> None:
        """Hear that payloads may have been lost before the next one that is delivered."""
        ...


class LoggedSink(Sink, Protocol):
    """A sink that takes positions by themselves too, from a broker in its process. The component's do."""

    def deliver_at(self, position: Position, payload: bytes, /) -> None:
        """Take one payload as it is in the log: what `deliver` does with a positioned one."""
        ...


@runtime_checkable
class ForwardingSubscription(Subscription, Protocol):
    """A subscription that can hand over each payload itself, without a task that asks for it."""

    def forward(self, sink: Sink, /) -> None:
        """Deliver what has arrived and all that will arrive to `sink`, instead of `get_message`."""
        ...


class Record(NamedTuple):
    """One event in a channel's log: its offset, and the payload as it was appended."""

    offset: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a channel's log, all of it seen at one moment.

    `first` is the offset of the oldest event that is kept, `last` that of the newest; of an empty
    log, or one of which nothing is kept, `first` is `last + 1`. `records` follow each other without
    a hole. When the first of them is not the one that was asked for, those before it are gone.

    A log of which the end may be lost goes on under a new epoch, with the next offset. `ancestors` are
    the last positions of earlier epochs that it still has, the newest first: up to there the events are
    the same ones. `doubtful` names those of them at whose end events that were acknowledged may be lost
    without anybody knowing: whoever goes on from there has to be told.
    """

    epoch: str
    first: int
    last: int
    records: tuple[Record, ...]
    ancestors: tuple[Position, ...] = ()
    doubtful: tuple[str, ...] = ()

    def place_of(self, position: Position) -> Position | None:
        """Return a position as one in this epoch, None if events after it are, or may be, lost."""
        if self._doubt_after(position.epoch) is not None:
            return None
        return Position(self.epoch, position.offset) if self.has(position) else None

    def has(self, position: Position) -> bool:
        """Return whether the position is one of this log, and not of a part that is lost."""
        return position.offset <= self._shared_with(position.epoch)

    def seen_from(self, position: Position) -> "Page":
        """Return the part of the page that one at `position` has to take before there is a doubt.

        Where the doubt is right after `position`, or nowhere, that is the page itself.
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

    def start_after_loss(self, position: Position) -> Position:
        """Return where to go on for one whose position is of a lost part, or of another log."""
        shared = self._shared_with(position.epoch)
        return Position(self.epoch, max(shared, self.first - 1))

    def _shared_with(self, epoch: str) -> int:
        """Return up to which offset an epoch had the events of this log, -1 for one it has nothing of."""
        if epoch == self.epoch:
            return self.last
        return next((ancestor.offset for ancestor in self.ancestors if ancestor.epoch == epoch), -1)

    def _doubt_after(self, epoch: str) -> int | None:
        """Return which ancestor's end is the first in doubt on the way from an epoch to this one."""
        names = [ancestor.epoch for ancestor in self.ancestors]
        way = names[: names.index(epoch) + 1] if epoch in names else []
        return next((place for place in reversed(range(len(way))) if way[place] in self.doubtful), None)


@runtime_checkable
class HistoryBroker(Broker, Protocol):
    """A broker that keeps a bounded log of each channel, with positions.

    A live payload of such a broker is `positioned(position, payload)` of `wire/event.py`. `get_message` and
    `forward` hand out the same, so that a wrapper may use either; `event.split_position` takes it apart.
    An event is in the log before any subscription gets it, so that a reader that sees a hole between two
    live positions can read what is missing. Subscriptions may lose and repeat what the log still has; a
    reader puts that right. `publish` appends too. What another program publishes past the log has no
    position, and the component refuses it: clients that reconnect could never get it.

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
        but has one event at least. Do not read what does not fit: a thousand clients may ask. A channel
        that has no log gets one, so that its epoch is known from now on, at least for as long as somebody
        reads it every minute. A `limit` of 0 asks for the bounds alone. Raises BrokerUnavailableError if
        the backend is away.
        """
        ...
