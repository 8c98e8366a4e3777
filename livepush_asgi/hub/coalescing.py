"""Turn: what channels deliver in one turn of the event loop goes to each stream as one batch.

So the cost of an event is paid once for all of the turn: joined once, put once, sent once.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from ..wire.cursor import Position

# So many deliveries are no longer kept for the end of the turn: a publisher that never lets go of the
# loop must not fill the memory.
MOST_PENDING = 256


class Delivery(NamedTuple):
    """One block on its way to the streams of a channel. The same object waits in every outbox.

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
    """Deliveries of one turn, in order, for a stream on one channel or on several."""

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


class Hearer(Protocol):
    """Who gets batches. The call returns at once and never raises."""

    #: Whether it hears several channels: then it gets them in the order in which they were delivered.
    several: bool

    def receive(self, batch: Batch, /) -> None:
        """Take what was delivered."""
        ...


class Source(Protocol):
    """A channel, and who hears it now."""

    def hearers(self) -> Sequence[Hearer]:
        """Return the listeners; the sequence does not change any more."""
        ...


class Turn:
    """Gathers deliveries until the turn ends. `call_soon` has the loop call a function in its next turn."""

    def __init__(self, call_soon: Callable[[Callable[[], object]], object], now: Callable[[], float]) -> None:
        self._call_soon = call_soon
        self._now = now
        self._pending: list[tuple[Source, Delivery]] = []
        self._called = False
        self._flushing = False

    def add(self, source: Source, delivery: Delivery) -> None:
        """Deliver something at the end of this turn, behind all that was added before."""
        self._pending.append((source, delivery))
        if len(self._pending) >= MOST_PENDING:
            self.flush()
        elif not self._called:
            self._called = True
            self._call_soon(self._end)

    def flush(self) -> None:
        """Deliver now what waits: before a listener comes or a position is asked for, for instance."""
        # While a batch is given out nothing newer may overtake it.
        if not self._pending or self._flushing:
            return
        self._flushing = True
        try:
            pending, self._pending = self._pending, []
            self._give_out(pending)
        finally:
            self._flushing = False

    def _end(self) -> None:
        self._called = False
        self.flush()

    def _give_out(self, pending: list[tuple[Source, Delivery]]) -> None:
        by_source: dict[Source, list[Delivery]] = {}
        for source, delivery in pending:
            by_source.setdefault(source, []).append(delivery)
        # Each on several channels: which of these channels it hears.
        several: dict[Hearer, set[Source]] = {}
        # Raised when all the others have theirs.
        failure: BaseException | None = None
        now = self._now()
        for source, deliveries in by_source.items():
            batch = Batch(deliveries, now)
            for hearer in source.hearers():
                if hearer.several and len(by_source) > 1:
                    several.setdefault(hearer, set()).add(source)
                    continue
                try:
                    hearer.receive(batch)
                except BaseException as error:
                    failure = failure or error
        for hearer, sources in several.items():
            try:
                hearer.receive(Batch([delivery for source, delivery in pending if source in sources], now))
            except BaseException as error:
                failure = failure or error
        if failure is not None:
            raise failure
