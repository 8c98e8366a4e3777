"""Attempt: the place of one producer in the log of its run. It appends there, and finds that it has ended."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from ..brokers import Record
from ..brokers.backoff import retry_unavailable
from ..errors import BrokerUnavailableError, PositionConflictError
from ..process.statistics import Counters
from ..wire.cursor import Position
from ..wire.reasons import RunState
from ..wire.run_record import RunRecord, record_in
from .log import LogState, RunLog

# The longest delay between two tries: in seconds, and this part of the lease at most, since a watcher counts
# the silence as soon as the broker answers again.
MOST_DELAY, LEASE_PART = 2.0, 3


class EndedError(Exception):
    """Raised when the log says that this attempt has ended: it was cancelled, or found lost."""

    def __init__(self, state: RunState = RunState.LOST) -> None:
        super().__init__(state)
        self.state = state


class Attempt:
    """One attempt to produce a run. It appends batches, in order and once, as long as the log is its own.

    `start` is the state after its start record. While the broker is unavailable, each batch is tried again
    for `retry_for` seconds. `now` is the loop's clock.
    """

    def __init__(
        self,
        log: RunLog,
        start: LogState,
        counters: Counters,
        retry_for: float,
        now: Callable[[], float],
    ) -> None:
        #: The state after the start record, which may be appended again after the log was lost.
        self.start = start
        #: The position of what this attempt, or another publisher, has appended last.
        self.end = start.end
        #: How many events the output has.
        self.count = start.count
        #: When the broker last took something.
        self.appended_at = now()
        #: The events and records that are being appended, those that are known to be in the log left out.
        self.batch: Sequence[bytes] = ()
        # Whether the last one is a record, and whether some of them may be in the log.
        self._has_record = self._is_unsure = False
        # Whether a record has to say that events before it are missing.
        self._owes_gap = False
        self._log = log
        self._counters = counters
        self._retry_for = retry_for
        self._most_delay = min(MOST_DELAY, start.lease / LEASE_PART)
        self._now = now

    def begin(self, batch: Sequence[bytes], *, has_record: bool) -> None:
        """Take the next batch, whose last one may be a record."""
        self.batch, self._has_record, self._is_unsure = batch, has_record, False

    def append_nowait(self) -> bool:
        """Append the batch in memory. Return whether all of it was appended. Never raises.

        `append` does the rest, and meets any error again.
        """
        if self._owes_gap:
            return False
        try:
            end = self._log.append_nowait(self.batch, self.end)
        except Exception as error:
            self._is_unsure = not isinstance(error, PositionConflictError)
            return False
        self._note_end(end)
        if self.batch:
            return False
        self.appended_at = self._now()
        return True

    async def append(self) -> None:
        """Append the batch. Raises EndedError, and BrokerUnavailableError after retries."""
        try:
            await self._append_batch()
        except (PositionConflictError, BrokerUnavailableError):
            while self.batch:
                await retry_unavailable(self._append_again, self._retry_for, self._most_delay)
        self.appended_at = self._now()

    async def look(self) -> None:
        """Read what follows in the log. Raises EndedError, and BrokerUnavailableError after retries."""
        await retry_unavailable(self._catch_up, self._retry_for, self._most_delay)

    async def _append_again(self) -> None:
        """Append after what others have appended."""
        await self._catch_up()
        with suppress(PositionConflictError):
            await self._append_batch()

    async def _append_batch(self) -> None:
        if self._owes_gap:
            # A second one, if the answer to the first was lost, does no harm.
            self.end = await self._log.append(self.start.make("gap", count=self.count), self.end)
            self._owes_gap = False
        while self.batch:
            was_unsure, self._is_unsure = self._is_unsure, True
            try:
                end = await self._log.append_batch(self.batch, self.end)
            except PositionConflictError:
                # This call has appended nothing.
                self._is_unsure = was_unsure
                raise
            self._is_unsure = False
            self._note_end(end)

    def _note_end(self, end: Position) -> None:
        """Note that the log ends there, behind what it has taken of the batch."""
        number, self.end = end.offset - self.end.offset, end
        self._note_appended(number)

    def _note_appended(self, number: int) -> None:
        """Note that the log has so many more of the batch."""
        batch = self.batch
        if number < len(batch):
            self.batch = batch[number:]
        else:
            self.batch = ()
            number -= self._has_record
        self.count += number
        self._counters.published += number

    async def _catch_up(self) -> None:
        """Read what follows in the log, and go on after it. The batch may be there, if its answer was lost.

        Raises EndedError if the attempt has ended.
        """
        while True:
            page = await self._log.after(self.end.offset)
            if page.locate(self.end) is None:
                await self._find_place()
                return
            for record in page.records:
                self._check(record_in(record.payload))
            self._find_batch(page.records)
            self.end = Position(page.epoch, page.records[-1].offset if page.records else page.last)
            if self.end.offset >= page.last:
                return

    def _find_batch(self, records: Sequence[Record]) -> None:
        """Note what of the batch is among the records that follow in the log."""
        if not self._is_unsure or not records:
            return
        found = 0
        for place, record in enumerate(records):
            at = record.offset - self.end.offset - 1
            # The log may have dropped the first of the batch already.
            if at >= len(self.batch) or record.payload != self.batch[at] or (place and at != found):
                # The rest of the batch cannot arrive late: another event has its place.
                self._is_unsure = False
                break
            found = at + 1
        if found:
            self._note_appended(found)

    def _check(self, record: RunRecord | None) -> None:
        attempt = self.start.attempt
        if record is None:
            return
        if record.attempt == attempt and record.kind == "end":
            raise EndedError(record.state)
        if record.attempt == attempt and record.kind == "start":
            # The answer to this one was lost.
            self.start = replace(self.start, begin=record.begin)
        if record.attempt != attempt and record.kind != "end":
            raise EndedError

    async def _find_place(self) -> None:
        """Go on in a log that was lost, or has lost its end: readers are told of a gap there.

        Raises EndedError if the attempt has ended, or may have.
        """
        state, end = await self._log.state()
        if state is None:
            await self._begin_again(end)
            return
        if state.attempt != self.start.attempt:
            raise EndedError
        if state.ended:
            raise EndedError(state.state)
        self._find_batch((await self._log.after(self.end.offset)).records)
        # Readers that come later would not notice that events are missing here.
        self._owes_gap |= end.offset < self.end.offset or state.count < self.count
        self.end = end

    async def _begin_again(self, end: Position) -> None:
        """Append a start record to a log that has none, which says how many events are missing before it."""
        if self._now() - self.appended_at > self.start.lease:
            # Another attempt may have begun and ended meanwhile.
            raise EndedError
        start = replace(self.start, begin=end.offset + 1)
        try:
            end = await self._log.append(start.make("start", count=self.count), end)
        except PositionConflictError:
            # The caller reads what was appended instead.
            return
        self.start, self.end = start, end
