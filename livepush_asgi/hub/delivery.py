"""Delivery, Batch and Listener: what a channel gives to those that hear it."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from ..wire.control import gap_block
from ..wire.cursor import Position, event_id
from ..wire.event import from_payload, with_id
from ..wire.reasons import GapReason


class Delivery(NamedTuple):
    """One block on its way to the listeners of a channel. The same object waits in every outbox.

    `block` is what a stream on this one channel sends; with a `position`, that is its id. `bare` is
    the block without it, for streams on several channels, whose ids hold several positions. A `gap` is
    no event but the word that some are missing.
    """

    channel: str
    block: bytes
    position: Position | None = None
    bare: bytes = b""
    gap: bool = False


def delivery_of(channel: str, payload: bytes, position: Position | None) -> Delivery:
    """Return a payload as streams send it. Raises InvalidEventError for one that is no event."""
    block = from_payload(payload)
    if position is None:
        return Delivery(channel, block)
    return Delivery(channel, with_id(block, event_id(channel, position)), position, block)


def gap_delivery(channel: str, reason: GapReason, position: Position | None) -> Delivery:
    """Return the word that events are missing, in a log those up to a position."""
    bare = gap_block(channel, reason)
    block = bare if position is None else gap_block(channel, reason, event_id(channel, position))
    return Delivery(channel, block, position, bare, gap=True)


class Batch:
    """Deliveries of one turn, in order, for a listener to one channel or to several."""

    __slots__ = ("_joined", "deliveries", "position", "size", "time")

    def __init__(self, deliveries: Sequence[Delivery], time: float) -> None:
        self.deliveries = deliveries
        #: When it was given out, by the loop's clock.
        self.time = time
        #: In bytes, of the blocks.
        self.size: int
        #: Of the last delivery that has one. For a stream on one channel.
        self.position: Position | None
        self._joined: bytes | None = None
        if len(deliveries) == 1:
            # With ten thousand channels most batches are such.
            self.position, self._joined = deliveries[0].position, deliveries[0].block
            self.size = len(self._joined)
        else:
            self.size = sum([len(delivery.block) for delivery in deliveries])
            self.position = next((item.position for item in reversed(deliveries) if item.position), None)

    @property
    def joined(self) -> bytes:
        """The blocks as a stream on their one channel sends them. Joined once, for all the streams."""
        if self._joined is None:
            self._joined = b"".join([delivery.block for delivery in self.deliveries])
        return self._joined


class Listener(Protocol):
    """What hears a channel: a stream, for one. The calls return at once and never raise."""

    #: Whether it hears several channels: then it gets them in the order in which they were delivered.
    several: bool

    def receive(self, batch: Batch, /) -> None:
        """Take what was published, all that one turn of the loop has brought."""
        ...

    def gap(self, channel: str, reason: GapReason, position: Position | None = None, /) -> None:
        """Hear that events may be missing at this point; in a log, up to this position."""
        ...

    def subscribed(self, channel: str, /) -> None:
        """Hear that the channel is subscribed, for a listener that was attached before it was."""
        ...
