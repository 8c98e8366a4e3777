"""Feed: what one stream sends next. It joins the outbox, the history, the snapshots and the heartbeats."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from .control import gap_block, opening, retry_line
from .cursor import Position
from .event import HEARTBEAT, with_id
from .hub import Hub
from .outbox import Delivery, LatestOutbox, Outbox, OutboxFullError
from .places import Places
from .reading import HistoryReader, Told
from .reasons import EndReason, GapReason
from .request import Grant
from .settings import Limits, Timing
from .snapshot import blocks_of
from .turn import Batch

# How long to wait, in seconds, before history that could not be read is asked again.
RETRY = 0.5


class Household(Protocol):
    """What a feed needs of the process."""

    hub: Hub
    timing: Timing
    limits: Limits


class Feed:
    """The bytes of one stream, in the order in which they go out. `next` gives what can go out now."""

    __slots__ = (
        "_control_events",
        "_gap_waits",
        "_grant",
        "_head",
        "_house",
        "_outbox",
        "_passed",
        "_places",
        "_reader",
        "_resuming",
        "_single",
        "_snapshot_due",
        "heartbeat_due",
        "hurried",
        "unanswerable",
    )

    def __init__(
        self,
        house: Household,
        grant: Grant,
        *,
        control_events: bool,
        last_event_id: str | None,
    ) -> None:
        #: Whether to open without having heard from the broker.
        self.hurried = False
        self.heartbeat_due = False
        #: Why the stream has to end, when its client would have to be told what it cannot be told.
        self.unanswerable: EndReason | None = None
        self._house = house
        self._grant = grant
        self._control_events = control_events
        self._resuming = bool(last_event_id)
        # Made for the first event that has to wait: most clients take each at once.
        self._outbox: Outbox | None = None
        replayed = house.limits.replay_events
        names = grant.channel_names
        self._places = Places(names, last_event_id or None, grant.replay, replayed)
        self._gap_waits = False
        # The position of what went past the queues last, on the one channel.
        self._passed: Position | None = None
        # Made for the first to need it: who comes new and keeps up never reads any history.
        self._reader: HistoryReader | None = None
        self._single = len(names) == 1
        # What is to go out before anything else: the open event, a page of history, a snapshot.
        self._head = b""
        self._snapshot_due = False

    def put(self, batch: Batch) -> None:
        """Queue deliveries, or leave them to the history. Raises OutboxFullError."""
        self._note_passed()
        if self._places.settled and self._queue().put_all(batch.deliveries, batch.size):
            return
        for delivery in batch.deliveries:
            self._put(delivery)

    def pass_through(self, batch: Batch) -> bytes:
        """Return deliveries as they can go out at once, past all queues; b"" if something is before them."""
        if self._head or self._snapshot_due or self._gap_waits or self._outbox or not self._places.settled:
            return b""
        if batch.size > self._house.limits.message_bytes:
            return b""
        self.heartbeat_due = False
        if not self._single:
            return self._compose(batch.deliveries)
        # This runs once for every event and stream: where the client is now is written down when it matters.
        self._passed = batch.position or self._passed
        return batch.joined

    def _put(self, delivery: Delivery) -> None:
        if not self._places.settled and not self._places.admits(delivery):
            return
        try:
            self._queue().put(delivery)
        except OutboxFullError:
            if not self._fall_behind(delivery):
                raise

    def _queue(self) -> Outbox:
        if self._outbox is None:
            limits = self._house.limits
            self._outbox = LatestOutbox(limits) if limits.overflow == "latest" else Outbox(limits)
        return self._outbox

    def put_gap(self, channel: str, reason: GapReason, position: Position | None) -> None:
        """Queue the word that events are missing. Raises OutboxFullError."""
        self._note_passed()
        if self._places.hears_gap(channel, position):
            self._gap_waits = True
            id_ = None if position is None else str(position)
            bare = gap_block(channel, reason)
            gap = Delivery(channel, gap_block(channel, reason, id_), position, bare, gap=True)
            try:
                self._queue().put(gap)
            except OutboxFullError:
                if not self._fall_behind(gap):
                    raise

    def begin(self, channel: str) -> None:
        """Take note that a channel is subscribed: what is published from now on is the client's."""
        self._places.begin(channel, self._house.hub.end_of(channel))

    def begin_late(self, channel: str) -> bool:
        """Begin in a channel that was not there when the stream opened. False if a gap cannot be told."""
        self._note_passed()
        self._tell(self._history().place({channel: self._house.hub.end_of(channel)}, late={channel}))
        return self.unanswerable is None

    def _history(self) -> HistoryReader:
        if self._reader is None:
            house = self._house
            self._reader = HistoryReader(house.hub, self._places, self._grant.channel_names, house.limits)
        return self._reader

    def _tell(self, gaps: list[Told]) -> None:
        """Tell of gaps before anything of their channels that history has."""
        for channel, reason in gaps:
            self._head += gap_block(channel, reason, self._places.id)
            self._snapshot_due = True
            if not self._control_events:
                self._head, self.unanswerable = b"", EndReason.BROKER

    async def open(self) -> None:
        """Begin in every channel that is there, and prepare the open event. Cancelling it is harmless."""
        resumable = self._resuming and await self._history().can_resume(self._house.timing.subscribe_timeout)
        # Nothing waits from here on: what the hub delivers from now on is queued.
        hub = self._house.hub
        ends = {name: hub.end_of(name) for name in self._grant.channel_names if hub.is_ready(name)}
        told = self._place_in(ends)
        resumed = self._resuming and resumable and not told
        retry = self._house.timing.own_retry()
        if self._control_events:
            self._head = opening(retry, self._places.id, told, resumed=resumed)
        else:
            self._head = retry_line(retry)
        self._snapshot_due = not resumed and self._grant.snapshot is not None

    def _place_in(self, ends: Mapping[str, Position | None]) -> list[Told]:
        """Begin in the channels whose logs end so, and return the gaps to tell."""
        if self._resuming:
            return self._history().place(ends)
        self._places.place_new(ends)
        return []

    @property
    def must_wait(self) -> bool:
        """Whether history or a snapshot comes before what is ready: then ask for `next`."""
        sought = self._reader is not None and self._reader.sought
        return bool(self._snapshot_due or self._places.behind or sought)

    def ready(self) -> bytes:
        """Return what can go out at once, b"" if that is nothing."""
        chunk, self._head = self._head, b""
        if self._outbox:
            chunk += self._joined()
        if not chunk and self.heartbeat_due:
            chunk = HEARTBEAT
        self.heartbeat_due = False
        return chunk

    async def next(self) -> bytes:
        """Return what can go out now, b"" if that is nothing. Waits for history and snapshots only.

        Nobody is told of what happens while it waits, so look at everything again after it.
        """
        if self._snapshot_due:
            await self._take_snapshot()
        if not self._head and self._reader is not None and self._reader.sought:
            self._tell(await self._reader.seek())
        # A page for each message, so that a busy live channel does not keep one that is behind waiting.
        if not self._head and self._places.behind:
            await self._read_on()
        return self.ready()

    @property
    def again_in(self) -> float | None:
        """In how many seconds to ask again, unless woken before; None if there is nothing to go on with."""
        reader = self._reader
        if not self._places.behind and (reader is None or not reader.sought):
            return None
        return RETRY if reader is not None and reader.failed else 0.0

    def flush(self) -> bytes:
        """Return everything that waits here. What is left in the history stays there."""
        chunk, self._head = self._head, b""
        while self._outbox and self.unanswerable is None:
            chunk += self._joined()
        return chunk

    def discard(self) -> None:
        """Forget what waits."""
        self._head = b""
        self._outbox = None

    def _note_passed(self) -> None:
        if self._passed is not None:
            self._places.mark_sent(self._grant.channel_names[0], self._passed)
            self._passed = None

    async def _take_snapshot(self) -> None:
        # Due no more from its beginning on: a gap that is told meanwhile asks for another one.
        self._snapshot_due = False
        if self._grant.snapshot is not None:
            try:
                blocks = await blocks_of(self._grant.snapshot)
            except BaseException:
                self._snapshot_due = True
                raise
            self._head += blocks

    def _fall_behind(self, delivery: Delivery) -> bool:
        """Empty the outbox and read on from history, if that has what waits."""
        if self._house.limits.overflow != "resume":
            return False
        channels = self._queue().give_up_positioned()
        if delivery.position is not None:
            channels.append(delivery.channel)
        elif channels:
            self._queue().put(delivery)
        self._places.fall_behind(channels)
        return bool(channels)

    async def _read_on(self) -> None:
        """Put a page of history at the head. A channel that has it all is live again at that moment."""
        deliveries = await self._history().next_deliveries()
        self._gap_waits = self._gap_waits or any(delivery.gap for delivery in deliveries)
        self._head += self._compose(deliveries)

    def _joined(self) -> bytes:
        assert self._outbox is not None
        dropped = self._outbox.take_dropped()
        if dropped and not self._control_events:
            self.unanswerable = EndReason.SLOW
            return b""
        gaps = b"".join(gap_block(channel, GapReason.OVERFLOW) for channel in dropped)
        self._snapshot_due = self._snapshot_due or bool(dropped)
        return gaps + self._compose(self._outbox.take())

    def _compose(self, deliveries: Sequence[Delivery]) -> bytes:
        """Join deliveries and take note of where the client will be when it has them."""
        if self._single and not self._gap_waits:
            return self._compose_quickly(deliveries)
        self._gap_waits = False
        blocks = []
        for delivery in deliveries:
            if delivery.gap:
                if not self._control_events:
                    self.unanswerable = EndReason.BROKER
                    break
                self._snapshot_due = True
            block = delivery.block
            if delivery.position is not None:
                self._places.mark_sent(delivery.channel, delivery.position)
                if not self._single:
                    block = with_id(delivery.bare, self._places.id)
            blocks.append(block)
        return b"".join(blocks)

    def _compose_quickly(self, deliveries: Sequence[Delivery]) -> bytes:
        """Join the events of one channel: each brings its id, and the last one says where the client is."""
        for delivery in reversed(deliveries):
            if delivery.position is not None:
                self._places.mark_sent(delivery.channel, delivery.position)
                break
        return b"".join([delivery.block for delivery in deliveries])
