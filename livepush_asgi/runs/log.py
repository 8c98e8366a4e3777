"""RunLog: the log of a run's channel, and the state that it tells."""

import time
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass, replace

from ..brokers import HistoryBroker, Page, Record, append_in_order, has_beside
from ..brokers.history import History
from ..brokers.memory import MemoryBroker
from ..wire.cursor import MAX_OFFSET, Position
from ..wire.reasons import RunState
from ..wire.run_record import Kind, RunRecord, record_in

# The channel of a run is its id after this.
CHANNEL_PREFIX = "run:"
# How many events the state is read from at first. A producer appends a record more often.
WINDOW = 128
# How much older than the lease the newest record may be, by another clock, in seconds.
CLOCK_TOLERANCE = 2.0


@dataclass(frozen=True, slots=True)
class LogState:
    """What the log of a run says. `end` is the position of the newest event or record."""

    attempt: str
    state: RunState
    begin: int
    count: int
    lease: float
    #: The time of the newest record, by its writer's clock, in seconds since the epoch.
    at: float
    end: Position
    #: The offset of the record that has ended it, 0 if it has not ended.
    ended_at: int = 0
    #: The text for readers, of a run that has failed.
    error: str | None = None
    #: Whether the record that has started the attempt is among those that tell this.
    has_start: bool = False
    #: Whether the log has, or had, the output: not if it was lost, and only the end was appended since.
    has_output: bool = True
    #: The name of the dialect that the output is written in, None if the records do not say so.
    dialect: str | None = None

    @property
    def ended(self) -> bool:
        """Whether the attempt has ended."""
        return self.state.ended

    @property
    def seems_silent(self) -> bool:
        """Whether the time of its newest record is more than the lease away: two clocks may differ."""
        return not self.ended and abs(time.time() - self.at) > self.lease + CLOCK_TOLERANCE

    def make(self, kind: Kind, state: RunState = RunState.RUNNING, count: int | None = None) -> RunRecord:
        """Return a record of this attempt."""
        return RunRecord(
            kind=kind,
            attempt=self.attempt,
            begin=self.begin,
            lease=self.lease,
            at=time.time(),
            count=count,
            state=state,
            dialect=self.dialect,
        )


class RunLog:
    """The log of one run."""

    def __init__(self, broker: HistoryBroker, channel: str) -> None:
        self.channel = channel
        self._broker = broker
        #: What the log keeps, as far as the broker says so.
        self.history: History = getattr(broker, "history", None) or History()
        #: Whether the log of each channel is bounded in bytes.
        self.bounds_bytes: bool = getattr(broker, "bounds_bytes", True)
        #: Whether `append_nowait` may be called.
        self.is_in_process = isinstance(broker, MemoryBroker) and has_beside(
            broker, "append", "append_nowait"
        )

    async def append(self, record: RunRecord, expected: Position) -> Position:
        """Append a record. Raises PositionConflictError if the log goes on after `expected`."""
        return await self._broker.append(self.channel, record.encode(), expected_position=expected)

    def append_batch(self, payloads: Sequence[bytes], expected: Position) -> Awaitable[Position]:
        """Append one or more of these events and records, as `BatchBroker.append_batch` does."""
        return append_in_order(self._broker, self.channel, payloads, expected)

    def append_nowait(self, payloads: Sequence[bytes], expected: Position) -> Position:
        """Do what `append_batch` does without waiting, in a broker in this process."""
        assert isinstance(self._broker, MemoryBroker)
        return self._broker.append_nowait(self.channel, payloads, expected_position=expected)

    async def append_cancelled(self, state: LogState) -> Position:
        """Append the end of an attempt that is cancelled, whatever the producer appends meanwhile."""
        record = state.make("end", RunState.CANCELLED)
        key = f"{state.attempt}/cancelled"
        return await self._broker.append(self.channel, record.encode(), idempotency_key=key)

    async def bounds(self) -> Page:
        """Return an empty page with the current bounds of the log."""
        return await self._broker.read(self.channel, MAX_OFFSET, 0)

    async def after(self, offset: int, limit: int = WINDOW) -> Page:
        """Return the page after an offset."""
        return await self._broker.read(self.channel, offset, limit)

    async def state(self) -> tuple[LogState | None, Position]:
        """Return the state, None if the log has no record of a run, and the position of its end."""
        window = WINDOW
        while True:
            page = await self.bounds()
            start = max(page.first - 1, page.last - window)
            records, end = await self._read_to_end(page, start)
            found = state_of(records, end)
            if start < page.first or (found is not None and found.count >= 0):
                return None if found is None else _with_known_count(found), end
            # Records are rarer than their writer makes them: another program publishes to the channel.
            window *= 8

    async def _read_to_end(self, bounds: Page, after: int) -> tuple[list[Record], Position]:
        records: list[Record] = []
        end = Position(bounds.epoch, bounds.last)
        while after < bounds.last:
            page = await self.after(after)
            if page.epoch != bounds.epoch or not page.records:
                break
            records += page.records
            after = page.records[-1].offset
            end = Position(page.epoch, after)
        return records, end


def _with_known_count(found: LogState) -> LogState:
    return found if found.count >= 0 else replace(found, count=0, has_output=False)


def state_of(records: Iterable[Record], end: Position) -> LogState | None:
    """Return the state that these events and records tell. A count below 0 is unknown."""
    found: LogState | None = None
    # The events since the last record.
    events = 0
    for item in records:
        record = record_in(item.payload)
        if record is None:
            events += 1
        else:
            found, events = _with_record(_with_events(found, events), record, item.offset, end), 0
    return _with_events(found, events)


def _with_events(found: LogState | None, events: int) -> LogState | None:
    if found is None or found.ended or found.count < 0 or not events:
        return found
    return replace(found, count=found.count + events)


def _with_record(found: LogState | None, record: RunRecord, offset: int, end: Position) -> LogState:
    is_of_another = found is not None and record.attempt != found.attempt
    if found is not None and record.kind != "start" and (found.ended or is_of_another):
        # The first end counts, and the end of an earlier attempt may come late.
        return found
    count = record.count
    if count is None:
        count = -1 if found is None else found.count
    begin, has_start = record.begin, record.kind == "start"
    if found is not None and found.has_start and not is_of_another and not has_start:
        # A record that was made before the log was lost has the beginning in the lost one.
        begin, has_start = found.begin, True
    return LogState(
        record.attempt,
        record.state,
        begin,
        count,
        record.lease,
        record.at,
        end,
        offset if record.kind == "end" else 0,
        record.error,
        has_start,
        dialect=record.dialect,
    )
