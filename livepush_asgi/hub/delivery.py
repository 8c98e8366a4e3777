"""Delivery, Batch and Listener: what a channel passes on, or its log has, and to whom."""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple, Protocol, cast

from ..wire.control import gap_block
from ..wire.cursor import Position, event_id
from ..wire.event import bare_block, blocks_of, from_payload, numbered_blocks, to_payload
from ..wire.reasons import GapReason

# The bytes for streams on several channels are kept up to so many times those for one channel: with a hundred
# channels the ids are ten times as large as an event.
MAX_GROWTH = 2


class Delivery(NamedTuple):
    """One block for the listeners of a channel. All outboxes share the same object.

    A stream on a single channel sends `block`; its id encodes the `position`, if there is one. A stream on
    several channels sends `bare`, the block without this id, with an id of its own. A `gap` is no event: it
    says why events are missing.
    """

    channel: str
    block: bytes
    position: Position | None = None
    bare: bytes = b""
    gap: GapReason | None = None


def delivery_of(channel: str, payload: bytes, position: Position | None) -> Delivery:
    """Return the delivery of a payload. Raises InvalidEventError for a payload that is no event."""
    if position is None:
        return Delivery(channel, from_payload(payload))
    block, bare = blocks_of(payload, event_id(channel, position))
    return Delivery(channel, block, position, bare)


def gap_delivery(channel: str, reason: GapReason, position: Position | None) -> Delivery:
    """Return the delivery of a gap: events are missing, in a log those up to a position."""
    bare = gap_block(channel, reason)
    block = bare if position is None else gap_block(channel, reason, event_id(channel, position))
    return Delivery(channel, block, position, bare, gap=reason)


class Batch:
    """Deliveries in order: those of one turn of the event loop, a page of history, or what an outbox has had.

    The first two are shared by several streams.
    """

    __slots__ = ("_composed", "_deliveries", "_joined", "count", "has_gap", "position", "size", "time")

    def __init__(
        self, deliveries: Sequence[Delivery], *, has_gap: bool = False, size: int | None = None
    ) -> None:
        self._deliveries: Sequence[Delivery] | None = deliveries
        #: How many they are.
        self.count = len(deliveries)
        #: When it was delivered, by the loop's clock. 0 for a page of history.
        self.time = 0.0
        #: Whether a gap is among them, for a page of history. What waits in an outbox does not say so.
        self.has_gap = has_gap
        #: The total size of the blocks, in bytes.
        self.size: int
        #: The last position, for a stream on a single channel.
        self.position: Position | None
        self._joined: bytes | None = None
        self._composed: tuple[object, bytes] | None = None
        if self.count == 1:
            # The usual case with many channels.
            self.position, self._joined = deliveries[0].position, deliveries[0].block
            self.size = len(self._joined)
        else:
            self.size = sum([len(delivery.block) for delivery in deliveries]) if size is None else size
            self.position = deliveries[-1].position if deliveries else None
            if self.position is None:
                self.position = next((item.position for item in reversed(deliveries) if item.position), None)

    @property
    def deliveries(self) -> Sequence[Delivery]:
        """Each of them."""
        assert self._deliveries is not None
        return self._deliveries

    @property
    def channel(self) -> str:
        """The channel of the last one."""
        return self.deliveries[-1].channel

    @property
    def joined(self) -> bytes:
        """The joined blocks, for streams on a single channel. Joined once for all streams."""
        if self._joined is None:
            self._joined = b"".join([delivery.block for delivery in self.deliveries])
        return self._joined

    def part(self, start: int, end: int) -> "Batch":
        """Return the deliveries from the place `start` on, up to `end`. The first one is at 0."""
        return Batch(self.deliveries[start:end], has_gap=self.has_gap)

    def places(self, start: bytes) -> list[int]:
        """Return the places of all gaps, and of the events whose bare block starts so."""
        return [
            place for place, each in enumerate(self.deliveries) if each.gap or each.bare.startswith(start)
        ]

    def composed(self, place: object, compose: Callable[["Batch"], bytes]) -> bytes:
        """Return what `compose` makes of the deliveries for a stream on several channels.

        `place` is all that the result depends on: the channels of the stream and its position in each.
        Streams that come one after the other at the same place share the result.
        """
        if self._composed is not None and self._composed[0] == place:
            return self._composed[1]
        chunk = compose(self)
        if len(chunk) <= MAX_GROWTH * self.size:
            self._composed = place, chunk
        return chunk


class LogBatch(Batch):
    """The events that follow a position in a log. Most streams send them all, and look at none.

    So their deliveries are made when somebody looks at one. `blocks` are those with ids, if they are known.
    Raises InvalidEventError for a payload that is no event.
    """

    __slots__ = ("_before", "_blocks", "_channel", "_payloads")

    def __init__(
        self,
        channel: str,
        before: Position,
        payloads: Sequence[bytes],
        blocks: Sequence[bytes] | None = None,
    ) -> None:
        if blocks is None:
            id_start = event_id(channel, before).rpartition(".")[0] + "."
            blocks = numbered_blocks(payloads, id_start, before.offset + 1)
        self._channel, self._before, self._blocks = channel, before, blocks
        # The caller may change a list of its own before anybody looks.
        self._payloads = tuple(payloads)
        self._deliveries = self._composed = self._joined = None
        self.count, self.time, self.has_gap = len(blocks), 0.0, False
        self.size = sum(map(len, blocks))
        self.position = before.at(before.offset + self.count) if blocks else None

    @property
    def deliveries(self) -> Sequence[Delivery]:
        """Each of them. Made once for all streams."""
        if self._deliveries is None:
            self._deliveries = [
                Delivery(self._channel, block, position, bare_block(payload))
                for position, block, payload in zip(
                    self._before.following(self.count), self._blocks, self._payloads, strict=True
                )
            ]
        return self._deliveries

    @property
    def channel(self) -> str:
        """The channel of all."""
        return self._channel

    @property
    def joined(self) -> bytes:
        """The joined blocks, for streams on a single channel. Joined once for all streams."""
        if self._joined is None:
            self._joined = b"".join(self._blocks)
        return self._joined

    def is_followed_by(self, other: "LogBatch") -> bool:
        """Return whether the events of the other come next in the same log."""
        return other._before == self.position and other._channel == self._channel

    @classmethod
    def joining(cls, batches: Sequence["LogBatch"]) -> "LogBatch":
        """Return batches, each followed by the next one, as one."""
        first = batches[0]
        if len(batches) == 1:
            return first
        payloads = [payload for batch in batches for payload in batch._payloads]
        blocks = [block for batch in batches for block in batch._blocks]
        return cls(first._channel, first._before, payloads, blocks)

    def part(self, start: int, end: int) -> "LogBatch":
        """Return the events from the place `start` on, up to `end`. The first one is at 0."""
        if start == 0 and end >= self.count:
            return self
        before = self._before.at(self._before.offset + start)
        return LogBatch(self._channel, before, self._payloads[start:end], self._blocks[start:end])

    def places(self, start: bytes) -> list[int]:
        """Return the places of the events whose bare block starts so."""
        wanted = to_payload(start)
        return [place for place, payload in enumerate(self._payloads) if payload.startswith(wanted)]


def batch_of(items: Sequence[Delivery | LogBatch]) -> Batch:
    """Return these in order as one batch."""
    batches = [item for item in items if isinstance(item, LogBatch)]
    if not batches:
        # The usual case, and one for each channel of each turn.
        return Batch(cast("Sequence[Delivery]", items))
    if len(batches) == len(items) and all(a.is_followed_by(b) for a, b in pairwise(batches)):
        return LogBatch.joining(batches)
    return Batch(deliveries_of(items))


def deliveries_of(items: Iterable[Delivery | LogBatch]) -> list[Delivery]:
    """Return each delivery of these, in order."""
    found: list[Delivery] = []
    for item in items:
        if isinstance(item, LogBatch):
            found += item.deliveries
        else:
            found.append(item)
    return found


class Listener(Protocol):
    """Receives the deliveries of channels, as a stream does. The methods return at once and never raise."""

    #: Whether it is attached to several channels. Then it receives their deliveries in one order.
    multi_channel: bool

    def receive(self, batch: Batch, /) -> None:
        """Called with all deliveries of one turn of the event loop."""
        ...

    def gap(self, channel: str, reason: GapReason, position: Position | None = None, /) -> None:
        """Called when events may be missing at this point; in a log, up to this position."""
        ...

    def reads_log(self, channel: str, /) -> bool:
        """Return whether it reads this channel from its log, and so drops what it receives of it now."""
        ...

    def subscribed(self, channel: str, /) -> None:
        """Called when a channel is subscribed, if the listener was attached before."""
        ...
