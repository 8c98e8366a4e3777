"""Coalescer: what channels deliver in one turn of the event loop goes to each listener as one batch.

So the cost of an event is paid once for all of the turn: joined once, put once, sent once.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from ..wire.cursor import Position
from ..wire.reasons import GapReason

# At so many deliveries the end of the turn is not waited for: a publisher that never lets go of the loop must
# not fill the memory.
MOST_PENDING = 256


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


class Coalescer:
    """Gathers deliveries until the turn ends.

    `call_soon` has the loop call a function in its next turn. `listeners_of` returns the listeners of a
    channel, in a sequence that does not change any more.
    """

    def __init__(
        self,
        call_soon: Callable[[Callable[[], object]], object],
        now: Callable[[], float],
        listeners_of: Callable[[str], Sequence[Listener]],
    ) -> None:
        self._call_soon = call_soon
        self._now = now
        self._listeners_of = listeners_of
        self._pending: list[Delivery] = []
        self._called = False
        self._flushing = False

    def add(self, delivery: Delivery) -> None:
        """Deliver something at the end of this turn, behind all that was added before."""
        self._pending.append(delivery)
        if len(self._pending) >= MOST_PENDING:
            self.flush()
        elif not self._called:
            self._called = True
            self._call_soon(self._end_turn)

    def flush(self) -> None:
        """Deliver now what is pending: before a listener is added or placed in a log, for instance."""
        # While a batch is given out nothing newer may overtake it.
        if not self._pending or self._flushing:
            return
        self._flushing = True
        try:
            pending, self._pending = self._pending, []
            self._give_out(pending)
        finally:
            self._flushing = False

    def _end_turn(self) -> None:
        self._called = False
        self.flush()

    def _give_out(self, pending: list[Delivery]) -> None:
        by_channel: dict[str, list[Delivery]] = {}
        for delivery in pending:
            by_channel.setdefault(delivery.channel, []).append(delivery)
        # The listeners to several channels, each with those of these channels that it hears.
        several: dict[Listener, set[str]] = {}
        # Raised when all listeners have their batches.
        failure: BaseException | None = None
        now = self._now()
        for channel, deliveries in by_channel.items():
            batch = Batch(deliveries, now)
            for listener in self._listeners_of(channel):
                if listener.several and len(by_channel) > 1:
                    several.setdefault(listener, set()).add(channel)
                    continue
                try:
                    listener.receive(batch)
                except BaseException as error:
                    failure = failure or error
        for listener, channels in several.items():
            try:
                listener.receive(Batch([item for item in pending if item.channel in channels], now))
            except BaseException as error:
                failure = failure or error
        if failure is not None:
            raise failure
