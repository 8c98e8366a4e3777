"""RunStream: the stream of a run's output, which ends where the run has ended."""

from collections.abc import Callable, Sequence

from ..grant import Grant, RunGrant
from ..hub.delivery import Batch, Delivery
from ..wire.control import gap_block, id_block, run_end_block
from ..wire.cursor import Cursor, Position, event_id
from ..wire.event import HEARTBEAT
from ..wire.reasons import EndReason, GapReason
from ..wire.run_record import RunFollower, has_records, is_record, record_of
from .composer import Composer
from .context import StreamContext
from .stream import Stream


def start_id(grant: RunGrant, last_event_id: str | None) -> str | None:
    """Return the event id after which a reader begins; None if it begins with the log.

    A client that was at an earlier attempt, which was not continued, begins with this one.
    """
    channel, first = grant.channel_names[0], grant.begin
    cursor = Cursor.parse(last_event_id) if last_event_id else None
    if cursor is not None:
        for position in cursor.positions_in(channel):
            if position.epoch != first.epoch or position.offset >= first.offset:
                return last_event_id
    return event_id(channel, first) if first.offset else None


class RunComposer(Composer):
    """Composes the output of a run, and at its end an event, or an id alone without control events."""

    __slots__ = ("_follower",)

    def __init__(
        self,
        context: StreamContext,
        grant: RunGrant,
        ends: dict[str, Position],
        *,
        control_events: bool,
        last_event_id: str | None,
    ) -> None:
        id = start_id(grant, last_event_id)
        super().__init__(context, grant, ends, control_events=control_events, last_event_id=id)
        self._follower = RunFollower(grant.attempt)

    def pass_through(self, batch: Batch) -> bytes:
        """Return deliveries to send past the outbox, or b"" if a record is among them."""
        if has_records([delivery.bare for delivery in batch.deliveries]):
            return b""
        return super().pass_through(batch)

    def _compose_page(self, page: Batch) -> bytes:
        if not has_records([delivery.bare for delivery in page.deliveries]):
            return super()._compose_page(page)
        self._record_position()
        self._gap_queued = self._gap_queued or page.has_gap
        chunk = self._compose(page.deliveries)
        self._record_position()
        return chunk

    def _compose(self, deliveries: Sequence[Delivery]) -> bytes:
        chunk, events, follower = b"", list[Delivery](), self._follower
        for delivery in deliveries:
            position = delivery.position
            if position is not None and not delivery.gap:
                if follower.end is None and not is_record(delivery.bare):
                    follower.meet()
                    events.append(delivery)
                    continue
                record = record_of(delivery.bare)
                if not follower.take(record, position.offset):
                    return chunk + super()._compose(events) + self._finish()
                if record is not None or follower.end is not None:
                    chunk += super()._compose(events)
                    events = []
                    chunk += self._pass(
                        delivery.channel, position, is_start=getattr(record, "kind", "") == "start"
                    )
                    if self.end_reason is not None:
                        return chunk
                    continue
            events.append(delivery)
        return chunk + super()._compose(events)

    def _pass(self, channel: str, position: Position, *, is_start: bool) -> bytes:
        """Pass a record. Finish if the run has ended, and nothing follows in the log."""
        self._record_position()
        self._recovery.mark_sent(channel, position)
        if self._follower.end is not None:
            end = self._context.hub.end_of(channel)
            # This process may not have been told yet what the log has shown.
            is_last = end is None or end.epoch != position.epoch or end.offset <= position.offset
            return self._finish() if is_last else b""
        if self._follower.lacks_beginning:
            if not self._control_events:
                return self._end_at_gap()
            self._context.counts.gaps[GapReason.EPOCH] += 1
            return gap_block(channel, GapReason.EPOCH, self._id)
        return id_block(self._id) if is_start else HEARTBEAT

    def _finish(self) -> bytes:
        end = self._follower.end
        self.end_reason = EndReason.FINISHED
        if end is None or not self._control_events:
            return id_block(self._id)
        return run_end_block(end.state, end.count, self._id)


class RunStream(Stream):
    """One client's stream of a run. The run is watched as long as it is open."""

    __slots__ = ("_leave",)

    grant: RunGrant

    def __init__(
        self,
        context: StreamContext,
        grant: Grant,
        on_closed: Callable[[Stream], None],
        *,
        control_events: bool = True,
        last_event_id: str | None = None,
    ) -> None:
        super().__init__(
            context, grant, on_closed, control_events=control_events, last_event_id=last_event_id
        )
        self._leave: Callable[[], None] | None = self.grant.follow()

    def close(self) -> None:
        """Close the stream, and leave the watch. Harmless the second time."""
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()
        super().close()

    def _make_composer(self, ends: dict[str, Position], last_event_id: str | None) -> Composer:
        return RunComposer(
            self.context,
            self.grant,
            ends,
            control_events=self._control_events,
            last_event_id=last_event_id,
        )
