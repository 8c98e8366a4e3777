"""Composer: composes the next chunk of a stream from the outbox, history, a snapshot and heartbeats.

The methods are synchronous, except `work`: reading history from a server, or calling the snapshot. The stream
runs `work` in a task of its own, meanwhile sends what is ready, and cancels the task when the stream ends.

Until the client has been sent the whole state, each id carries the mark of `owed`. A client that disconnects
before the end of a snapshot reconnects with such an id, and is sent the state again.

The state replaces the events that were published before its call: those that wait then are discarded, and
each channel goes on from where its log was then. The ids have these positions only after the whole state, so
nothing is missed if the client comes back to a stream without a snapshot. A replay that a new client has
asked for is kept, and follows the state.

A gap among the events that the state replaces need not be sent: the state is newer than the gap. If the
client disconnects before the whole state, its id has the positions before the gap, and the mark.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import lru_cache

from ..grant import Grant, RunGrant
from ..hub.delivery import Batch, Delivery, gap_delivery
from ..runtime.failure_log import fields
from ..settings import Limits
from ..wire.control import count_events, gap_block, id_block, open_block, retry_line
from ..wire.cursor import MAX_OFFSET, Position, event_id, owed
from ..wire.event import HEARTBEAT, with_id
from ..wire.reasons import EndReason, GapReason, OpenOutcome
from .context import StreamContext
from .history_reader import HistoryReader
from .outbox import LatestOutbox, Outbox, OutboxFullError
from .recovery import ChannelGap, RecoveryState, join_entries
from .resumption import Ends, Resumption
from .snapshot import State

logger = logging.getLogger("livepush_asgi")

# To look up a member of an enum is slow in Python 3.11.
_FRESH = OpenOutcome.FRESH

# How many pages of a log in this process are read one after the other without a task. Between two tasks a
# server whose `send` does not wait lets nobody else run.
PAGES_AT_ONCE = 8

Work = Callable[[], Awaitable[None]]


class Composer:
    """Composes the bytes of one stream, in the order in which they are sent.

    `ends` gets the current end of each log when the stream is attached to its channel, if it is subscribed.
    """

    __slots__ = (
        "_awaits_history",
        "_context",
        "_control_events",
        "_gap_queued",
        "_grant",
        "_head",
        "_outbox",
        "_outbox_filled",
        "_pages_at_once",
        "_reader",
        "_recovery",
        "_resumable",
        "_resuming",
        "_single_channel",
        "_state",
        "_state_ends",
        "_state_owed",
        "_state_replaces",
        "_unrecorded",
        "end_reason",
        "heartbeat_due",
        "outcome",
        "sent_events",
        "without_broker",
        "work",
    )

    def __init__(
        self,
        context: StreamContext,
        grant: Grant,
        ends: dict[str, Position],
        *,
        control_events: bool,
        last_event_id: str | None,
    ) -> None:
        #: Whether to open even if channels are not subscribed yet.
        self.without_broker = False
        #: How the stream has opened: None until the open event has been composed.
        self.outcome: OpenOutcome | None = None
        self.heartbeat_due = False
        #: How many events were composed to be sent: not the component's own.
        self.sent_events = 0
        #: Why the stream has to end: a gap cannot be sent without control events, or the snapshot failed.
        self.end_reason: EndReason | None = None
        self._context = context
        self._grant = grant
        self._control_events = control_events
        self._resuming = bool(last_event_id)
        # Whether history has every event that the client has missed; None until this is known.
        self._resumable: bool | None = None
        # Created for the first event that has to wait: most clients accept each event at once.
        self._outbox: Outbox | None = None
        replayed = self._limits.replay_events
        names = grant.channel_names
        resumption = Resumption(context.hub, names, last_event_id) if last_event_id else None
        self._recovery = RecoveryState(names, ends, resumption, grant.replay, replayed)
        # Whether the outbox holds a delivery, and whether it holds a gap.
        self._outbox_filled = self._gap_queued = False
        # The position of the last delivery on a single channel, if it is not recorded in the recovery state
        # yet.
        self._unrecorded: Position | None = None
        # Whether the next page of history has to be waited for, as far as the last call of `ready` has seen.
        self._awaits_history = True
        # How many pages were read since a task has read one.
        self._pages_at_once = 0
        # Created on first use: a new client that keeps up never reads history.
        self._reader: HistoryReader | None = None
        self._single_channel = len(names) == 1
        # Blocks that are sent before the outbox: the open event, a page of history.
        self._head = b""
        self._state = None if grant.snapshot is None else State(grant.snapshot)
        self._state_owed = False
        # Whether the state replaces the events before its call; False while a replay is to follow it.
        self._state_replaces = grant.replay == "new"
        # How far each log was when the state was called; kept while a replay follows the state.
        self._state_ends: dict[str, Position] = {}
        #: The work to run in a task, or None. It raises only when cancelled.
        self.work: Work | None = None

    def put(self, batch: Batch) -> None:
        """Queue deliveries, except those that the stream will read from history. Raises OutboxFullError."""
        if self._state_owed and self._state_will_have_it:
            return
        self._outbox_filled = True
        outbox = self._outbox
        if outbox is None:
            outbox = self._outbox = _make_outbox(self._limits)
        if self._recovery.settled and outbox.put_all(batch):
            return
        self._record_position()
        for delivery in batch.deliveries:
            if self._recovery.settled or self._recovery.admits(delivery):
                self._put(outbox, delivery)

    def pass_through(self, batch: Batch) -> bytes:
        """Return deliveries to send past the outbox, or b"" if other bytes have to be sent first."""
        if (
            self._head
            or self._gap_queued
            or self._outbox_filled
            or not self._recovery.settled
            or self._state_owed
        ):
            return b""
        if batch.size > self._context.limits.message_bytes:
            return b""
        self.heartbeat_due = False
        if not self._single_channel:
            return self._compose(batch)
        return self._compose_shared(batch)

    def put_gap(self, channel: str, reason: GapReason, position: Position | None) -> None:
        """Queue a gap. Raises OutboxFullError."""
        self._record_position()
        gap = gap_delivery(channel, reason, position)
        if self._recovery.admits(gap):
            self._gap_queued = self._outbox_filled = True
            if self._outbox is None:
                self._outbox = _make_outbox(self._limits)
            self._put(self._outbox, gap)

    def reads_log(self, channel: str) -> bool:
        """Return whether `put` would drop what is delivered live on a channel."""
        return self._recovery.reads_log(channel)

    def _put(self, outbox: Outbox, delivery: Delivery) -> None:
        try:
            outbox.put(delivery)
        except OutboxFullError:
            if not self._fall_behind(outbox, delivery):
                raise

    def channel_subscribed(self, channel: str) -> None:
        """Called when another channel is subscribed: the client gets what is published from now on."""
        self._recovery.record_start(channel, self._context.hub.end_of(channel))

    def channel_subscribed_late(self, channel: str) -> bool:
        """Start a channel that was subscribed late. Return False if the stream has to end."""
        self._record_position()
        self._add_gaps(self._recovery.start_channels(self._context.hub.catch_up([channel]), late=True))
        return self.end_reason is None

    def _add_gaps(self, gaps: list[ChannelGap]) -> None:
        """Compose gap events, to be sent before the events that history has."""
        for channel, reason in gaps:
            self._resend_state_at_gap()
            self._head += self._tell_gap(channel, reason)
            if self.end_reason is not None:
                return

    def _tell_gap(self, channel: str, reason: GapReason) -> bytes:
        """Return what tells the client of a gap. Without control events the stream ends with it."""
        if not self._control_events:
            return self._end_at_gap()
        self._context.counts.gaps[reason] += 1
        return gap_block(channel, reason, self._id)

    @property
    def _limits(self) -> Limits:
        limits = self._context.limits
        return _of_run(limits) if isinstance(self._grant, RunGrant) else limits

    @property
    def _id(self) -> str:
        self._record_position()
        return owed(self._recovery.id) if self._state_owed else self._recovery.id

    def _resend_state(self) -> None:
        if self._state is not None:
            self._state.restart()
            self._state_owed = True

    def _resend_state_at_gap(self) -> None:
        self._state_replaces = True
        self._resend_state()

    @property
    def _state_will_have_it(self) -> bool:
        """Whether the state that is owed will have what is published now, or was published earlier."""
        return self._state is not None and self._state_replaces and not self._state.called

    def _state_has(self, gap: Delivery) -> bool:
        """Whether what is missing in a replay was published before the call of the state."""
        end = self._state_ends.get(gap.channel)
        if end is None or gap.position is None or self._state_owed:
            return False
        return gap.position.epoch == end.epoch and gap.position.offset <= end.offset

    def open(self, retry: int) -> bool:
        """Start every subscribed channel, and compose the open event with the reconnection time `retry`.

        Returns False if logs have to be read first: then run `work`, and call again.
        """
        resumption = self._recovery.resumption
        if resumption is not None and self._resumable is None:
            self._resumable = resumption.resumable()
            if self._resumable is None:
                self.work = self._look_up
                return False
        hub, names = self._context.hub, self._grant.channel_names
        ends = hub.catch_up(names)
        gaps = self._with_known_gaps(resumption, self._recovery.start_channels(ends), ends)
        resumed = self._resuming and self._resumable is not False and not gaps
        self._count_opening(resumed)
        if self._state is not None and not (resumed and self._recovery.has_state):
            self._state_replaces |= bool(gaps)
            self._resend_state()
            resumed = False
        not_live = [name for name in names if name not in ends] if len(ends) < len(names) else ()
        self._head = self._opening(retry, gaps, not_live, resumed=resumed)
        return True

    def _opening(
        self, retry: int, gaps: list[ChannelGap], not_live: Sequence[str], *, resumed: bool
    ) -> bytes:
        """Return the open event and the gap events, or what replaces them without control events."""
        if self._control_events:
            id = owed(self._recovery.id) if self._state_owed else self._recovery.id
            for _, reason in gaps:
                self._context.counts.gaps[reason] += 1
            return open_block(retry, id, gaps, resumed=resumed, not_live=not_live)
        # Without history the id stays the same. Then a client that reconnects would meet the same gap for
        # ever, so do not end the stream again.
        ends_here = gaps and not self._recovery.has_cursor(self._id)
        return retry_line(retry) + (self._end_at_gap() if ends_here else b"")

    def _with_known_gaps(
        self, resumption: Resumption | None, gaps: list[ChannelGap], started: Ends
    ) -> list[ChannelGap]:
        """Add the gaps that history would show later: the state comes once for all of them."""
        if self._state is None or resumption is None or not self._control_events:
            return gaps
        found = {channel: reason for channel, reason in resumption.known_gaps.items() if channel in started}
        return list({**found, **dict(gaps)}.items())

    def _count_opening(self, resumed: bool) -> None:
        counts = self._context.counts
        if not self._resuming:
            self.outcome = _FRESH
            counts.fresh += 1
        elif resumed:
            self.outcome = OpenOutcome.RESUMED
            counts.resumed += 1
        else:
            self.outcome = OpenOutcome.GAP
            counts.gap += 1

    def _end_at_gap(self) -> bytes:
        """End the stream, because its client does not accept a gap event. Return the id that follows the gap.

        With this id the client does not meet the same gap again when it reconnects.
        """
        self.end_reason = EndReason.BROKER
        return id_block(self._id)

    def ready(self) -> bytes:
        """Return the next chunk, or b"" if nothing is ready. Sets `work`, and perhaps `end_reason`."""
        chunk, self._head = self._head, b""
        if self.end_reason is None:
            if self._state is not None and self._state_owed:
                # The state precedes the changes.
                chunk += self._next_state_blocks(self._state)
            if self._recovery.behind:
                chunk = self._take_history(chunk)
            if self._outbox_filled and not self._state_owed and self.end_reason is None:
                chunk += self._take_queued()
        if self.end_reason is not None:
            chunk += self._head
            self._head = b""
        elif not chunk and self.heartbeat_due:
            chunk = HEARTBEAT
        self.heartbeat_due = False
        self.work = None if self._recovery.settled and not self._state_owed else self._next_work(chunk)
        return chunk

    def _next_work(self, chunk: bytes) -> Work | None:
        if self._state is not None and self._state_owed:
            if not self._state.must_read:
                return None
            return self._seek if self._recovery.must_seek_first else self._read_state
        if self._recovery.must_seek:
            return self._seek
        if not self._recovery.behind or self._head or (chunk and not self._awaits_history):
            # There is a next call, since this one has a chunk or a head.
            return None
        # Read one page per chunk, so that a busy live channel does not delay a channel that is behind.
        return self._read_history

    def flush(self) -> bytes:
        """Return the whole outbox as one chunk. Events that are still to be read from history are not sent.

        A client that has not been sent the whole state gets the state and the outbox when it reconnects.
        """
        if self.outcome is None:
            return b""
        chunk, self._head = self._head, b""
        while self._outbox_filled and self.end_reason is None and not self._state_owed:
            chunk += self._take_queued()
        return chunk + self._head

    @property
    def waiting_bytes(self) -> int:
        """How many bytes wait in the outbox."""
        outbox = self._outbox
        return 0 if outbox is None else outbox.waiting_bytes

    def discard(self) -> None:
        """Discard everything that has not been sent."""
        self.sent_events -= count_events(self._head)
        self._head = b""
        self._outbox, self._outbox_filled = None, False

    def _record_position(self) -> None:
        if self._unrecorded is not None:
            self._recovery.mark_sent(self._grant.channel_names[0], self._unrecorded)
            self._unrecorded = None

    async def _look_up(self) -> None:
        """Read from the logs whether they have every event that the client has missed."""
        assert self._recovery.resumption is not None
        self._resumable = await self._recovery.resumption.look_up(self._context.timing.subscribe_timeout)

    async def _seek(self) -> None:
        resumption = self._recovery.resumption
        assert resumption is not None
        ends = await resumption.seek()
        self._add_gaps(self._with_known_gaps(resumption, self._recovery.start_channels(ends), ends))

    async def _read_state(self) -> None:
        assert self._state is not None
        context = self._context
        # The events of a log that is being read were published before the call.
        await context.hub.wait_read(self._grant.channel_names, context.timing.subscribe_timeout)
        try:
            await self._state.read(
                context.callbacks, context.timing.snapshot_timeout, context.encode, self._begin_state
            )
        except Exception:
            self.end_reason = EndReason.ERROR
            if context.snapshot_log.begins():
                logger.exception(
                    "a snapshot failed, so its stream ends; the next failures are not logged",
                    extra=fields("snapshots_fail"),
                )
            return
        if context.snapshot_log.ends():
            logger.warning("snapshots can be read again", extra=fields("snapshots_back"))

    def _begin_state(self) -> None:
        """Record how far each log is, and discard what the state will have, except the gaps."""
        self._record_position()
        self._state_ends = self._recovery.ends_read(self._context.hub.catch_up(self._grant.channel_names))
        if self._state_replaces and self._outbox is not None:
            queued, self._outbox_filled = self._outbox.take_all(), False
            self._head += self._compose(queued)

    def _next_state_blocks(self, state: State) -> bytes:
        """Return the next blocks of the state. The last block has an id without the mark of `owed`."""
        blocks = state.take(self._context.limits.message_bytes)
        self._state_owed = state.owed
        if not state.owed:
            self._record_position()
            if self._state_replaces:
                names = self._grant.channel_names
                self._recovery.skip(self._state_ends, self._context.hub.catch_up(names))
                self._state_ends = {}
            if blocks:
                blocks[-1] = with_id(blocks[-1], self._recovery.id)
        self.sent_events += len(blocks)
        return b"".join(blocks)

    def _fall_behind(self, outbox: Outbox, delivery: Delivery) -> bool:
        """Empty the outbox and read on from history. Return False if history does not have the deliveries."""
        if self._limits.overflow != "resume":
            return False
        channels = outbox.discard_for_history()
        if delivery.position is not None:
            channels.append(delivery.channel)
        elif channels:
            outbox.put(delivery)
        self._record_position()
        self._recovery.fall_behind(channels)
        return bool(channels)

    async def _read_history(self) -> None:
        """Read a page of history into the head. A channel whose last event is read becomes live again."""
        self._pages_at_once = 0
        self._head += self._compose_page(await self._history.read())

    def _take_history(self, chunk: bytes) -> bytes:
        """Return the chunk with the pages of history that other streams have read lately, as many as fit.

        So the clients that come back together are sent the open event and what they have missed at once,
        without a task. An empty chunk gets a page of a broker in this process, if there is none: one page
        alone, so that a busy live channel and one that is behind take turns.
        """
        self._awaits_history = True
        while self._recovery.behind and not self._recovery.must_seek and not self._state_owed:
            page = self._history.take_known(self._context.limits.message_bytes - len(chunk))
            if page is None and self._may_read_at_once:
                # With a chunk, the next call reads.
                page = None if chunk else self._read_at_once()
                self._awaits_history = not chunk and page is None
            if page is None or self.end_reason is not None:
                break
            chunk += self._compose_page(page)
        return chunk

    @property
    def _may_read_at_once(self) -> bool:
        return self._pages_at_once < PAGES_AT_ONCE and self._context.hub.history.reads_nowait

    def _read_at_once(self) -> Batch | None:
        self._pages_at_once += 1
        return self._history.take_nowait()

    @property
    def _history(self) -> HistoryReader:
        if self._reader is None:
            self._reader = HistoryReader(self._context.hub, self._recovery, self._limits)
        return self._reader

    def _compose_page(self, page: Batch) -> bytes:
        """Join the blocks of a page of history, and record the position at which the next page starts."""
        self._record_position()
        self._count_replayed(page)
        if page.position is None or page.has_gap or self._gap_queued or self._state_owed:
            self._gap_queued = self._gap_queued or page.has_gap
            chunk = self._compose(page)
            self._record_position()
            return chunk
        sent = self.sent_events + page.count
        if self._single_channel:
            chunk = page.joined
        else:
            chunk = page.composed(tuple(self._recovery.entries().items()), self._compose)
        # Not every stream that shares a page composes it.
        self.sent_events = sent
        self._recovery.mark_sent(page.channel, page.position)
        return chunk

    def _count_replayed(self, page: Batch) -> None:
        gaps = sum([delivery.gap is not None for delivery in page.deliveries]) if page.has_gap else 0
        self._context.counts.replayed += page.count - gaps

    def _take_queued(self) -> bytes:
        """Return the next part of the outbox, after a gap for each channel whose events were dropped."""
        assert self._outbox is not None
        dropped = self._outbox.take_dropped()
        if dropped and not self._control_events:
            self.end_reason = EndReason.SLOW
            return b""
        batch = self._outbox.take()
        self._outbox_filled = bool(self._outbox)
        if not dropped:
            return self._compose(batch)
        self._resend_state_at_gap()
        self._context.counts.gaps[GapReason.OVERFLOW] += len(dropped)
        gaps = b"".join([gap_block(channel, GapReason.OVERFLOW) for channel in dropped])
        return gaps + self._compose(batch)

    def _compose_shared(self, batch: Batch) -> bytes:
        """Return the blocks of a batch on a single channel: each has its id."""
        self.sent_events += batch.count
        # This runs once for every event and stream, so the position is recorded only when it is needed.
        self._unrecorded = batch.position or self._unrecorded
        return batch.joined

    def _compose(self, batch: Batch) -> bytes:
        """Join the blocks of deliveries, and record the positions that the client reaches with them."""
        if self._single_channel and not self._gap_queued and not self._state_owed:
            return self._compose_shared(batch)
        # A gap may be among the deliveries that are still in the outbox.
        self._gap_queued = self._gap_queued and self._outbox_filled
        self._record_position()
        blocks, entries = [], self._recovery.entries()
        for delivery in batch.deliveries:
            if delivery.gap and not self._state_has(delivery):
                self._resend_state_at_gap()
            elif not delivery.gap and self._state_owed and self._state_will_have_it:
                continue
            if delivery.position is not None:
                self._recovery.mark_sent(delivery.channel, delivery.position)
                entries[delivery.channel] = event_id(delivery.channel, delivery.position)
            if delivery.gap:
                if not self._control_events:
                    blocks.append(self._end_at_gap())
                    break
                self._context.counts.gaps[delivery.gap] += 1
            else:
                self.sent_events += 1
            block = delivery.block
            if delivery.position is not None and (not self._single_channel or self._state_owed):
                id = join_entries(entries)
                block = with_id(delivery.bare, owed(id) if self._state_owed else id)
            blocks.append(block)
        return b"".join(blocks)


@lru_cache(maxsize=8)
def _of_run(limits: Limits) -> Limits:
    # The reader of a run is sent all of it, at its own pace.
    return replace(limits, overflow="resume", replay_events=MAX_OFFSET)


def _make_outbox(limits: Limits) -> Outbox:
    return LatestOutbox(limits) if limits.overflow == "latest" else Outbox(limits)
