"""Composer: what one stream sends next, from the outbox, the history, a snapshot and the heartbeats.

Only `work` is awaited: reading history, or calling for a snapshot. The stream runs it in a task beside
itself, goes on sending what is ready, and cancels it when it ends.

Until the client has been sent the whole state, each id that it gets says so. A client that is cut off in a
snapshot, or before it, comes back with such an id and is sent the state again.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence

from ..grant import Grant
from ..hub.delivery import Batch, Delivery, gap_delivery
from ..settings import Limits
from ..wire.control import gap_block, id_block, opening, retry_line
from ..wire.cursor import Position, owed
from ..wire.event import HEARTBEAT, with_id
from ..wire.reasons import EndReason, GapReason
from .context import StreamContext
from .history_reader import HistoryReader
from .outbox import LatestOutbox, Outbox, OutboxFullError
from .recovery import ChannelGap, RecoveryState
from .resumption import Resumption
from .snapshot import State

logger = logging.getLogger("livepush_asgi")

Work = Callable[[], Awaitable[None]]


class Composer:
    """Composes the bytes of one stream, in the order in which they go out."""

    __slots__ = (
        "_context",
        "_control_events",
        "_gap_waits",
        "_grant",
        "_head",
        "_outbox",
        "_outbox_filled",
        "_reader",
        "_recovery",
        "_resumable",
        "_resuming",
        "_single",
        "_state",
        "_state_owed",
        "_unrecorded",
        "end_reason",
        "heartbeat_due",
        "opened",
        "without_broker",
        "work",
    )

    def __init__(
        self,
        context: StreamContext,
        grant: Grant,
        *,
        control_events: bool,
        last_event_id: str | None,
    ) -> None:
        #: Whether to open without having heard from the broker.
        self.without_broker = False
        #: Whether the open event has been prepared.
        self.opened = False
        self.heartbeat_due = False
        #: Why the stream has to end: a gap must be told without control events, or the snapshot failed.
        self.end_reason: EndReason | None = None
        self._context = context
        self._grant = grant
        self._control_events = control_events
        self._resuming = bool(last_event_id)
        # Whether history has all that a client that comes back has missed; None until the logs were asked.
        self._resumable: bool | None = None
        # Made for the first event that has to wait: most clients take each at once.
        self._outbox: Outbox | None = None
        replayed = context.limits.replay_events
        names = grant.channel_names
        resumption = Resumption(context.hub, names, last_event_id) if last_event_id else None
        self._recovery = RecoveryState(names, resumption, grant.replay, replayed)
        # Whether something waits in the outbox, and whether a gap does.
        self._outbox_filled = self._gap_waits = False
        # The position of what was sent last on the one channel, if the recovery state has not been told yet.
        self._unrecorded: Position | None = None
        # Made for the first to need it: a client that is new and keeps up never reads any history.
        self._reader: HistoryReader | None = None
        self._single = len(names) == 1
        # Blocks that go out before anything else: the open event, a page of history.
        self._head = b""
        self._state = None if grant.snapshot is None else State(grant.snapshot)
        self._state_owed = False
        #: What has to be awaited beside the stream, None if that is nothing. It raises only when cancelled.
        self.work: Work | None = None

    def put(self, batch: Batch) -> None:
        """Queue deliveries, or leave them to the history. Raises OutboxFullError."""
        self._outbox_filled = True
        outbox = self._outbox
        if outbox is None:
            outbox = self._outbox = _make_outbox(self._context.limits)
        if self._recovery.settled and outbox.put_all(batch.deliveries, batch.size):
            return
        self._record_position()
        for delivery in batch.deliveries:
            if self._recovery.settled or self._recovery.admits(delivery):
                self._put(outbox, delivery)

    def pass_through(self, batch: Batch) -> bytes:
        """Return deliveries to send at once, past the outbox; b"" if something has to go out before them."""
        if (
            self._head
            or self._gap_waits
            or self._outbox_filled
            or not self._recovery.settled
            or self._state_owed
        ):
            return b""
        if batch.size > self._context.limits.message_bytes:
            return b""
        self.heartbeat_due = False
        if not self._single:
            return self._compose(batch.deliveries)
        # This runs once for every event and stream: the recovery state is told of the position when it
        # matters.
        self._unrecorded = batch.position or self._unrecorded
        return batch.joined

    def put_gap(self, channel: str, reason: GapReason, position: Position | None) -> None:
        """Queue the word that events are missing. Raises OutboxFullError."""
        self._record_position()
        gap = gap_delivery(channel, reason, position)
        if self._recovery.admits(gap):
            self._gap_waits = self._outbox_filled = True
            if self._outbox is None:
                self._outbox = _make_outbox(self._context.limits)
            self._put(self._outbox, gap)

    def _put(self, outbox: Outbox, delivery: Delivery) -> None:
        try:
            outbox.put(delivery)
        except OutboxFullError:
            if not self._fall_behind(outbox, delivery):
                raise

    def channel_subscribed(self, channel: str) -> None:
        """Take note that a channel is subscribed: what is published from now on is the client's."""
        self._recovery.record_start(channel, self._context.hub.end_of(channel))

    def channel_subscribed_late(self, channel: str) -> bool:
        """Begin in a channel that was not there when the stream opened. False if a gap cannot be told."""
        self._record_position()
        self._add_gaps(self._recovery.start_channels(self._context.hub.catch_up([channel]), late=True))
        return self.end_reason is None

    def _add_gaps(self, gaps: list[ChannelGap]) -> None:
        """Tell of gaps before anything of their channels that history has."""
        for channel, reason in gaps:
            self._resend_state()
            if not self._control_events:
                self._head += self._end_at_gap()
                return
            self._head += gap_block(channel, reason, self._id)

    @property
    def _id(self) -> str:
        self._record_position()
        return owed(self._recovery.id) if self._state_owed else self._recovery.id

    def _resend_state(self) -> None:
        if self._state is not None:
            self._state.restart()
            self._state_owed = True

    def open(self) -> bool:
        """Begin in every channel that is there, and prepare the open event.

        Returns False while logs have to be asked first: await `work`, and call again.
        """
        resumption = self._recovery.resumption
        if resumption is not None and self._resumable is None:
            self._resumable = resumption.resumable()
            if self._resumable is None:
                self.work = self._look_up
                return False
        hub, names = self._context.hub, self._grant.channel_names
        ends = hub.catch_up(names)
        gaps = self._recovery.start_channels(ends)
        resumed = self._resuming and self._resumable is not False and not gaps
        if self._state is not None and not (resumed and self._recovery.has_state):
            self._resend_state()
            resumed = False
        retry = self._context.timing.own_retry()
        self.opened = True
        if not self._control_events:
            self._head = retry_line(retry)
            # Where the broker has no positions the id stays the same. To end the stream again tells no more.
            if gaps and not self._recovery.has_cursor(self._id):
                self._head += self._end_at_gap()
            return True
        not_live = [name for name in names if name not in ends] if len(ends) < len(names) else ()
        self._head = opening(retry, self._id, gaps, resumed=resumed, not_live=not_live)
        return True

    def _end_at_gap(self) -> bytes:
        """Have the stream end, as its client cannot be told of a gap; return the id that is behind the gap.

        With it the client is not told again when it comes back.
        """
        self.end_reason = EndReason.BROKER
        return id_block(self._id)

    def ready(self) -> bytes:
        """Return what can go out at once, b"" if that is nothing. Sets `work`, and perhaps `end_reason`."""
        chunk, self._head = self._head, b""
        if self.end_reason is None:
            if self._state is not None and self._state_owed:
                # State first, then the changes.
                chunk += self._next_state_blocks(self._state)
            if self._outbox_filled and not self._state_owed:
                chunk += self._take_queued()
        if self.end_reason is not None:
            chunk += self._head
            self._head = b""
        elif not chunk and self.heartbeat_due:
            chunk = HEARTBEAT
        self.heartbeat_due = False
        self.work = self._next_work()
        return chunk

    def _next_work(self) -> Work | None:
        if self._state is not None and self._state_owed:
            return self._read_state if self._state.must_read else None
        if self._recovery.settled:
            return None
        if self._recovery.must_seek:
            return self._seek
        # A page for each message, so that a busy live channel does not keep one that is behind waiting.
        return self._read_history if self._recovery.behind and not self._head else None

    def flush(self) -> bytes:
        """Return everything in the outbox. Events that are still to be read from history are not sent.

        A client that has not been sent the whole state comes back for it, and for what waits behind it.
        """
        if not self.opened:
            return b""
        chunk, self._head = self._head, b""
        while self._outbox_filled and self.end_reason is None and not self._state_owed:
            chunk += self._take_queued()
        return chunk + self._head

    def discard(self) -> None:
        """Forget what waits."""
        self._head = b""
        self._outbox, self._outbox_filled = None, False

    def _record_position(self) -> None:
        if self._unrecorded is not None:
            self._recovery.mark_sent(self._grant.channel_names[0], self._unrecorded)
            self._unrecorded = None

    async def _look_up(self) -> None:
        """Ask the logs whether they have all that the client has missed."""
        assert self._recovery.resumption is not None
        self._resumable = await self._recovery.resumption.look_up(self._context.timing.subscribe_timeout)

    async def _seek(self) -> None:
        assert self._recovery.resumption is not None
        self._add_gaps(self._recovery.start_channels(await self._recovery.resumption.seek()))

    async def _read_state(self) -> None:
        assert self._state is not None
        context = self._context
        try:
            await self._state.read(context.callbacks, context.timing.snapshot_timeout)
        except Exception:
            self.end_reason = EndReason.ERROR
            if not context.snapshots_fail:
                context.snapshots_fail = True
                logger.exception("a snapshot failed, so its stream ends; the next failures are not logged")
            return
        if context.snapshots_fail:
            context.snapshots_fail = False
            logger.warning("snapshots can be read again")

    def _next_state_blocks(self, state: State) -> bytes:
        """Return the next blocks of the state. The last one brings an id that resumes without it."""
        blocks = state.take(self._context.limits.message_bytes)
        self._state_owed = state.owed
        if blocks and not state.owed:
            self._record_position()
            blocks[-1] = with_id(blocks[-1], self._recovery.id)
        return b"".join(blocks)

    def _fall_behind(self, outbox: Outbox, delivery: Delivery) -> bool:
        """Empty the outbox and read on from history, if that has what waits."""
        if self._context.limits.overflow != "resume":
            return False
        channels = outbox.give_up_positioned()
        if delivery.position is not None:
            channels.append(delivery.channel)
        elif channels:
            outbox.put(delivery)
        self._record_position()
        self._recovery.fall_behind(channels)
        return bool(channels)

    async def _read_history(self) -> None:
        """Put a page of history at the head. A channel that has it all is live again at that moment."""
        if self._reader is None:
            self._reader = HistoryReader(self._context.hub, self._recovery, self._context.limits)
        deliveries = await self._reader.next_deliveries()
        self._gap_waits = self._gap_waits or any(delivery.gap for delivery in deliveries)
        self._head += self._compose(deliveries)
        # The next page is read from there.
        self._record_position()

    def _take_queued(self) -> bytes:
        """Return the next part of the outbox, behind a gap for each channel of which events were dropped."""
        assert self._outbox is not None
        dropped = self._outbox.take_dropped()
        if dropped and not self._control_events:
            self.end_reason = EndReason.SLOW
            return b""
        deliveries = self._outbox.take()
        self._outbox_filled = bool(self._outbox)
        if not dropped:
            return self._compose(deliveries)
        self._resend_state()
        gaps = b"".join([gap_block(channel, GapReason.OVERFLOW) for channel in dropped])
        return gaps + self._compose(deliveries)

    def _compose(self, deliveries: Sequence[Delivery]) -> bytes:
        """Join deliveries and take note of where the client will be when it has them."""
        if self._single and not self._gap_waits and not self._state_owed:
            # Each has its id, and the last one says where the client is.
            for delivery in reversed(deliveries):
                if delivery.position is not None:
                    self._unrecorded = delivery.position
                    break
            return b"".join([delivery.block for delivery in deliveries])
        self._gap_waits = False
        self._record_position()
        blocks = []
        for delivery in deliveries:
            if delivery.gap:
                self._resend_state()
            if delivery.position is not None:
                self._recovery.mark_sent(delivery.channel, delivery.position)
            if delivery.gap and not self._control_events:
                blocks.append(self._end_at_gap())
                break
            block = delivery.block
            if delivery.position is not None and (not self._single or self._state_owed):
                block = with_id(delivery.bare, self._id)
            blocks.append(block)
        return b"".join(blocks)


def _make_outbox(limits: Limits) -> Outbox:
    return LatestOutbox(limits) if limits.overflow == "latest" else Outbox(limits)
