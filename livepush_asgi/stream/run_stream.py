"""RunStream: the stream of a run's output, in the dialect of its client. It ends with the run."""

from collections.abc import Callable, Sequence

from ..dialects import RunEnd
from ..grant import Grant, RunGrant
from ..hub.delivery import Batch, Delivery
from ..wire.control import count_events, open_block, retry_line
from ..wire.cursor import Cursor, Position, event_id
from ..wire.event import HEARTBEAT
from ..wire.reasons import EndReason, GapReason, RunState
from ..wire.run_record import (
    RECORD_START,
    RunFollower,
    RunRecord,
    is_record,
    may_have_record,
    record_of,
)
from .composer import Composer
from .context import StreamContext
from .recovery import ChannelGap
from .stream import Stream


def start_id(grant: RunGrant, last_event_id: str | None) -> str | None:
    """Return the event id after which a reader begins; None if it begins with the log.

    A client that was at an earlier attempt, which was not continued, begins with this one.
    """
    channel, begin = grant.channel_names[0], grant.begin
    if has_begun(grant, last_event_id):
        return last_event_id
    if was_restarted(grant, last_event_id):
        # After the start record, so that the id says that the client was told.
        return event_id(channel, begin.next())
    return event_id(channel, begin) if begin.offset else None


def has_begun(grant: RunGrant, last_event_id: str | None) -> bool:
    """Return whether a reader with this event id has a part of the output, or of a log that was lost."""
    return any(at.offset > grant.begin.offset for at in _positions(grant, last_event_id))


def was_restarted(grant: RunGrant, last_event_id: str | None) -> bool:
    """Return whether a client has a part of an earlier attempt, which this one does not continue.

    The epoch does not matter: a log can go on in another one when its server has restarted.
    """
    positions = _positions(grant, last_event_id)
    return any(at.offset > 0 for at in positions) and not has_begun(grant, last_event_id)


def offset_of(id: str, channel: str) -> int:
    """Return the offset after which a client with this event id reads a channel on."""
    cursor = Cursor.parse(id)
    return max([at.offset for at in (() if cursor is None else cursor.positions_in(channel))], default=0)


def end_behind(grant: RunGrant, offset: int) -> RunEnd | None:
    """Return the end of a run for a reader whose gap reaches past the record of it: that never comes."""
    return grant.end if 0 < grant.ended_at <= offset else None


def _positions(grant: RunGrant, last_event_id: str | None) -> Sequence[Position]:
    cursor = Cursor.parse(last_event_id) if last_event_id else None
    return () if cursor is None else cursor.positions_in(grant.channel_names[0])


class RunComposer(Composer):
    """Composes the output of a run between the first and the last blocks of its dialect.

    A gap is told in the dialect too. `Composer` then need not end the stream at a gap, so it takes the client
    for one that accepts control events.
    """

    _grant: RunGrant

    __slots__ = (
        "_begin",
        "_dialect",
        "_first_owed",
        "_first_unsent",
        "_follower",
        "_restarted",
        "_run_id",
        "is_told",
    )

    def __init__(
        self, context: StreamContext, grant: RunGrant, ends: dict[str, Position], last_event_id: str | None
    ) -> None:
        id = start_id(grant, last_event_id)
        super().__init__(context, grant, ends, control_events=True, last_event_id=id)
        #: Whether the client was sent what its stream ends with: the end of the run, or a gap.
        self.is_told = False
        self._dialect, self._run_id = grant.dialect, grant.run_id
        # Whether the client has not been sent the first blocks, which stand where the output begins.
        self._first_owed = not has_begun(grant, last_event_id)
        # Whether they are composed and wait to be sent.
        self._first_unsent = False
        self._follower = RunFollower(grant.attempt, grant.begin.offset + 1, met=not self._first_owed)
        self._restarted = was_restarted(grant, last_event_id)
        self._resuming = not self._first_owed
        # Where the output begins, until the client is past it: one that has met another log starts before it,
        # if that log was lost.
        self._begin = None if self._first_owed else grant.begin

    def pass_through(self, batch: Batch) -> bytes:
        """Return deliveries to send past the outbox, or b"" if a record may be among them."""
        return b"" if self._must_look(batch) else super().pass_through(batch)

    def _must_look(self, batch: Batch) -> bool:
        """Whether any of these deliveries may be no item, or something has to precede them."""
        if self._first_owed or self._begin is not None or batch.has_gap or self._follower.end is not None:
            return True
        return may_have_record(batch.joined)

    def _opening(
        self, retry: int, gaps: list[ChannelGap], not_live: Sequence[str], *, resumed: bool
    ) -> bytes:
        if self._restarted and not gaps:
            gaps = [(self._grant.channel_names[0], GapReason.EPOCH)]
        if self._dialect.control_events and self._first_owed and not gaps:
            # With an id of what precedes the output, it would come back as one that has read that.
            return open_block(retry, None, resumed=resumed, not_live=not_live)
        if self._dialect.control_events:
            opening = super()._opening(retry, gaps, not_live, resumed=resumed)
            return opening + (self._meet_gap() if gaps else b"")
        return retry_line(retry) + b"".join([self._tell_gap(*gap) for gap in gaps])

    def _compose_page(self, page: Batch) -> bytes:
        if not self._must_look(page):
            return super()._compose_page(page)
        self._record_position()
        self._count_replayed(page)
        chunk = self._compose(page)
        self._record_position()
        return chunk

    def _compose(self, batch: Batch) -> bytes:
        chunk, at = b"", 0
        # Between the records and gaps there are items, which need no look of their own in the midst of a run.
        for place in (*batch.places(RECORD_START), batch.count):
            while at <= place and at < batch.count:
                if at < place and self._begin is None and self._follower.end is None:
                    chunk += self._compose_items(batch.part(at, place))
                    at = place
                    continue
                chunk += self._compose_other(batch.part(at, at + 1))
                at += 1
                if self.end_reason is not None:
                    return chunk
        return chunk

    def _compose_other(self, part: Batch) -> bytes:
        """Return what is sent for a gap, for a record, and for an item at either end of the output."""
        delivery = part.deliveries[0]
        position = delivery.position
        if delivery.gap:
            return self._pass_gap(delivery, delivery.gap)
        if position is None:
            return self._compose_items(part)
        if self._begin is not None:
            if position.epoch == self._begin.epoch and position.offset <= self._begin.offset:
                self._record_position()
                self._recovery.mark_sent(delivery.channel, position)
                return b""
            self._begin = None
        if self._follower.end is None and not is_record(delivery.bare):
            return self._compose_items(part)
        record = record_of(delivery.bare)
        if not self._follower.take(record, position.offset):
            return self._finish()
        return self._pass(delivery.channel, position, record)

    def _compose_items(self, items: Batch) -> bytes:
        self._follower.meet()
        first = self._first(None)
        self._gap_queued = False
        return first + self._compose_shared(items)

    def _pass_gap(self, delivery: Delivery, reason: GapReason) -> bytes:
        self._record_position()
        if delivery.position is not None:
            self._recovery.mark_sent(delivery.channel, delivery.position)
        return self._tell_gap(delivery.channel, reason)

    def _tell_gap(self, channel: str, reason: GapReason) -> bytes:
        if self._dialect.control_events:
            return super()._tell_gap(channel, reason) + self._meet_gap()
        self._context.counts.gaps[reason] += 1
        if self._dialect.ends_at_gap:
            self.end_reason = EndReason.BROKER
        first = self._first(None)
        told = first + self._counted(self._dialect.gap_block(self._run_id, reason, self._id))
        return told + self._meet_gap()

    def _meet_gap(self) -> bytes:
        """Take note of a gap that is told. Return the end of the run if the gap reaches past it."""
        offset = offset_of(self._id, self._grant.channel_names[0])
        self._follower.meet_gap(offset)
        end = None if self.end_reason is not None else end_behind(self._grant, offset)
        if end is None:
            return b""
        self.end_reason = EndReason.FINISHED
        return self._counted(self._dialect.last_block(end, self._id))

    def _pass(self, channel: str, position: Position, record: RunRecord | None) -> bytes:
        """Pass a record, or an event after the end. Finish if the run has ended, and nothing follows."""
        self._record_position()
        self._recovery.mark_sent(channel, position)
        if self._follower.end is not None:
            end = self._context.hub.end_of(channel)
            # This process may not have been told yet what the log has shown.
            is_last = end is None or end.epoch != position.epoch or end.offset <= position.offset
            return self._finish() if is_last else b""
        if self._follower.lacks_beginning:
            return self._tell_gap(channel, GapReason.EPOCH)
        if record is None or record.kind != "start":
            return HEARTBEAT
        return self._first(self._id) or self._dialect.control_block(self._id) or HEARTBEAT

    def _first(self, id: str | None) -> bytes:
        """Return the first blocks of the dialect, once."""
        if not self._first_owed:
            return b""
        self._first_owed, self._first_unsent = False, True
        return self._counted(self._dialect.first_block(self._run_id, id))

    def _finish(self) -> bytes:
        end = self._follower.end
        self.end_reason = EndReason.FINISHED
        if end is None:
            # The run was begun again, and the client has to read that from its beginning.
            return self.interrupted()
        first = self._first(None)
        run_end = RunEnd(self._run_id, end.state, end.error, end.count)
        return first + self._counted(self._dialect.last_block(run_end, self._id))

    def interrupted(self) -> bytes:
        """Return what tells the client that the stream ends before its run."""
        first = self._first(None)
        return first + self._counted(self._dialect.last_block(RunEnd(self._run_id, RunState.RUNNING)))

    def _counted(self, blocks: bytes) -> bytes:
        self.sent_events += count_events(blocks)
        return blocks

    def ready(self) -> bytes:
        """Return the next chunk, or b"" if nothing is ready."""
        return self._given(super().ready())

    def flush(self) -> bytes:
        """Return the whole outbox as one chunk."""
        return self._given(super().flush())

    def _given(self, chunk: bytes) -> bytes:
        self._first_unsent, self.is_told = False, self.end_reason is not None
        return chunk

    def _take_queued(self) -> bytes:
        # Only a gap without a position was dropped, and history shows whether anything is missing.
        if self._outbox is not None:
            self._outbox.take_dropped()
        return super()._take_queued()

    def discard(self) -> None:
        """Discard everything that has not been sent."""
        super().discard()
        self._first_owed, self._first_unsent = self._first_owed or self._first_unsent, False


class RunStream(Stream):
    """One client's stream of a run. The run is watched as long as it is open."""

    __slots__ = ("_leave",)

    grant: RunGrant
    _composer: RunComposer

    def __init__(
        self,
        context: StreamContext,
        grant: Grant,
        on_closed: Callable[[Stream], None],
        *,
        control_events: bool = True,
        last_event_id: str | None = None,
    ) -> None:
        super().__init__(context, grant, on_closed, control_events=True, last_event_id=last_event_id)
        self._leave: Callable[[], None] | None = self.grant.follow()

    def close(self) -> None:
        """Close the stream, and leave the watch. Harmless the second time."""
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()
        super().close()

    def _make_composer(self, ends: dict[str, Position], last_event_id: str | None) -> RunComposer:
        return RunComposer(self.context, self.grant, ends, last_event_id)

    def _closing(self, reason: EndReason) -> bytes:
        if self.grant.dialect.control_events:
            return super()._closing(reason)
        return b"" if self._composer.is_told else self._composer.interrupted()
