"""Feed: what one stream sends next. It joins the outbox, the history, the snapshots and the heartbeats.

Nothing here waits but what `work` returns: reading history, and calling for a snapshot. The stream runs that
beside itself, goes on sending what is ready, and cancels it when it ends.

While the client has not been sent the whole state, each id it gets says so. A client that is cut off in a
snapshot, or before it, comes back with such an id and is sent the state again.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from ..grant import Grant
from ..hub.delivery import Batch, Delivery, gap_delivery
from ..hub.hub import Hub
from ..settings import Limits, Timing
from ..wire.control import gap_block, id_block, opening, retry_line
from ..wire.cursor import Position, owed
from ..wire.event import HEARTBEAT, with_id
from ..wire.reasons import EndReason, GapReason
from .history_reader import HistoryReader
from .outbox import LatestOutbox, Outbox, OutboxFullError
from .recovery import ChannelGap, RecoveryState
from .resumption import Resumption
from .snapshot import State

logger = logging.getLogger("livepush_asgi")

Work = Callable[[], Awaitable[None]]


class Household(Protocol):
    """What a feed needs of the process."""

    hub: Hub
    timing: Timing
    limits: Limits
    #: Whether the last snapshot callback failed: the first failure is logged, and the first success after it.
    snapshots_fail: bool


class Feed:
    """The bytes of one stream, in the order in which they go out. `ready` gives what can go out now."""

    __slots__ = (
        "_control_events",
        "_gap_waits",
        "_grant",
        "_head",
        "_house",
        "_outbox",
        "_passed",
        "_reader",
        "_recovery",
        "_resumable",
        "_resuming",
        "_single",
        "_state",
        "heartbeat_due",
        "hurried",
        "opened",
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
        #: Whether the open event has been prepared.
        self.opened = False
        self.heartbeat_due = False
        #: Why the stream has to end: a gap must be told without control events, or the snapshot failed.
        self.unanswerable: EndReason | None = None
        self._house = house
        self._grant = grant
        self._control_events = control_events
        self._resuming = bool(last_event_id)
        # Whether history has all that a client that comes back has missed; None until the logs were asked.
        self._resumable: bool | None = None
        # Made for the first event that has to wait: most clients take each at once.
        self._outbox: Outbox | None = None
        replayed = house.limits.replay_events
        names = grant.channel_names
        resumption = Resumption(house.hub, names, last_event_id) if last_event_id else None
        self._recovery = RecoveryState(names, resumption, grant.replay, replayed)
        self._gap_waits = False
        # The position of what went past the queues last, on the one channel.
        self._passed: Position | None = None
        # Made for the first to need it: a client that is new and keeps up never reads any history.
        self._reader: HistoryReader | None = None
        self._single = len(names) == 1
        # Blocks that go out before anything else: the open event, a page of history.
        self._head = b""
        self._state = None if grant.snapshot is None else State(grant.snapshot)

    def put(self, batch: Batch) -> None:
        """Queue deliveries, or leave them to the history. Raises OutboxFullError."""
        self._note_passed()
        if self._recovery.settled and self._queue().put_all(batch.deliveries, batch.size):
            return
        for delivery in batch.deliveries:
            self._put(delivery)

    def pass_through(self, batch: Batch) -> bytes:
        """Return deliveries as they can go out at once, past all queues; b"" if something is before them."""
        if self._head or self._gap_waits or self._outbox or not self._recovery.settled:
            return b""
        if self._state is not None and self._state.owed:
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
        if not self._recovery.settled and not self._recovery.admits(delivery):
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
        gap = gap_delivery(channel, reason, position)
        if self._recovery.admits(gap):
            self._gap_waits = True
            try:
                self._queue().put(gap)
            except OutboxFullError:
                if not self._fall_behind(gap):
                    raise

    def begin(self, channel: str) -> None:
        """Take note that a channel is subscribed: what is published from now on is the client's."""
        self._recovery.begin(channel, self._house.hub.end_of(channel))

    def begin_late(self, channel: str) -> bool:
        """Begin in a channel that was not there when the stream opened. False if a gap cannot be told."""
        self._note_passed()
        self._tell(self._recovery.place(self._house.hub.catch_up([channel]), late=True))
        return self.unanswerable is None

    def _tell(self, gaps: list[ChannelGap]) -> None:
        """Tell of gaps before anything of their channels that history has."""
        for channel, reason in gaps:
            self._owe_state()
            if not self._control_events:
                self._head += self._end_instead()
                return
            self._head += gap_block(channel, reason, self._id)

    @property
    def _owes_state(self) -> bool:
        return self._state is not None and self._state.owed

    @property
    def _id(self) -> str:
        return owed(self._recovery.id) if self._owes_state else self._recovery.id

    def _owe_state(self) -> None:
        if self._state is not None:
            self._state.owe()

    def open(self) -> None:
        """Begin in every channel that is there, and prepare the open event."""
        hub, names = self._house.hub, self._grant.channel_names
        ends = hub.catch_up(names)
        told = self._recovery.place(ends)
        resumed = self._resuming and self._resumable is not False and not told
        if self._state is not None and not (resumed and self._recovery.has_state):
            self._state.owe()
            resumed = False
        retry = self._house.timing.own_retry()
        self.opened = True
        if not self._control_events:
            self._head = retry_line(retry)
            # Where the broker has no positions the id stays the same. To end the stream again tells no more.
            if told and not self._recovery.came_with(self._id):
                self._head += self._end_instead()
            return
        not_live = [name for name in names if name not in ends] if len(ends) < len(names) else ()
        self._head = opening(retry, self._id, told, resumed=resumed, not_live=not_live)

    def _end_instead(self) -> bytes:
        """Have the stream end, as its client cannot be told of a gap; return the id that is behind the gap.

        With it the client is not told again when it comes back.
        """
        self.unanswerable = EndReason.BROKER
        return id_block(self._id)

    def work(self) -> Work | None:
        """Return what has to be waited for now, None if that is nothing. Ask again when it has ended.

        It never raises but when cancelled; look at `ready` after it.
        """
        if not self.opened:
            resumption = self._recovery.resumption
            if resumption is not None and self._resumable is None:
                self._resumable = resumption.resumable()
                return self._look_up if self._resumable is None else None
            return None
        if self._state is not None and self._state.owed:
            # State first, then the changes.
            return self._read_state if self._state.wanted else None
        if self._recovery.settled:
            return None
        if self._recovery.must_seek:
            return self._seek
        # A page for each message, so that a busy live channel does not keep one that is behind waiting.
        return self._read_on if self._recovery.behind and not self._head else None

    def ready(self) -> bytes:
        """Return what can go out at once, b"" if that is nothing."""
        chunk = self.take_head()
        if self._state is not None and self._state.owed:
            # State first, then the changes.
            chunk += self._next_of_state(self._state)
        if self._outbox and not self._owes_state:
            chunk += self._joined()
        if not chunk and self.heartbeat_due:
            chunk = HEARTBEAT
        self.heartbeat_due = False
        return chunk

    def take_head(self) -> bytes:
        """Return what goes out before anything else: also of a stream that has to end."""
        head, self._head = self._head, b""
        return head

    def flush(self) -> bytes:
        """Return everything in the outbox. Events that are still to be read from history are not sent.

        A client that has not been sent the whole state comes back for it, and for what waits behind it.
        """
        if not self.opened:
            return b""
        chunk = self.take_head()
        while self._outbox and self.unanswerable is None and not self._owes_state:
            chunk += self._joined()
        return chunk

    def discard(self) -> None:
        """Forget what waits."""
        self._head = b""
        self._outbox = None

    def _note_passed(self) -> None:
        if self._passed is not None:
            self._recovery.mark_sent(self._grant.channel_names[0], self._passed)
            self._passed = None

    async def _look_up(self) -> None:
        """Ask the logs whether they have all that the client has missed."""
        assert self._recovery.resumption is not None
        self._resumable = await self._recovery.resumption.look_up(self._house.timing.subscribe_timeout)

    async def _seek(self) -> None:
        assert self._recovery.resumption is not None
        self._tell(self._recovery.place(await self._recovery.resumption.seek()))

    async def _read_state(self) -> None:
        assert self._state is not None
        house = self._house
        try:
            await self._state.read(house.timing.snapshot_timeout)
        except Exception:
            self.unanswerable = EndReason.ERROR
            if not house.snapshots_fail:
                house.snapshots_fail = True
                logger.exception("a snapshot failed, so its stream ends; the next failures are not logged")
            return
        if house.snapshots_fail:
            house.snapshots_fail = False
            logger.warning("snapshots can be read again")

    def _next_of_state(self, state: State) -> bytes:
        """Return the next blocks of the state. The last one brings an id that resumes without it."""
        blocks = state.take(self._house.limits.message_bytes)
        if blocks and not state.owed:
            blocks[-1] = with_id(blocks[-1], self._recovery.id)
        return b"".join(blocks)

    def _fall_behind(self, delivery: Delivery) -> bool:
        """Empty the outbox and read on from history, if that has what waits."""
        if self._house.limits.overflow != "resume":
            return False
        channels = self._queue().give_up_positioned()
        if delivery.position is not None:
            channels.append(delivery.channel)
        elif channels:
            self._queue().put(delivery)
        self._recovery.fall_behind(channels)
        return bool(channels)

    async def _read_on(self) -> None:
        """Put a page of history at the head. A channel that has it all is live again at that moment."""
        if self._reader is None:
            self._reader = HistoryReader(self._house.hub, self._recovery, self._house.limits)
        deliveries = await self._reader.next_deliveries()
        self._gap_waits = self._gap_waits or any(delivery.gap for delivery in deliveries)
        self._head += self._compose(deliveries)

    def _joined(self) -> bytes:
        assert self._outbox is not None
        dropped = self._outbox.take_dropped()
        if dropped and not self._control_events:
            self.unanswerable = EndReason.SLOW
            return b""
        gaps = b"".join(gap_block(channel, GapReason.OVERFLOW) for channel in dropped)
        if dropped:
            self._owe_state()
        return gaps + self._compose(self._outbox.take())

    def _compose(self, deliveries: Sequence[Delivery]) -> bytes:
        """Join deliveries and take note of where the client will be when it has them."""
        if self._single and not self._gap_waits and not self._owes_state:
            return self._compose_quickly(deliveries)
        self._gap_waits = False
        blocks = []
        for delivery in deliveries:
            if delivery.gap:
                self._owe_state()
            if delivery.position is not None:
                self._recovery.mark_sent(delivery.channel, delivery.position)
            if delivery.gap and not self._control_events:
                blocks.append(self._end_instead())
                break
            block = delivery.block
            if delivery.position is not None and (not self._single or self._owes_state):
                block = with_id(delivery.bare, self._id)
            blocks.append(block)
        return b"".join(blocks)

    def _compose_quickly(self, deliveries: Sequence[Delivery]) -> bytes:
        """Join the events of one channel: each brings its id, and the last one says where the client is."""
        for delivery in reversed(deliveries):
            if delivery.position is not None:
                self._recovery.mark_sent(delivery.channel, delivery.position)
                break
        return b"".join([delivery.block for delivery in deliveries])
