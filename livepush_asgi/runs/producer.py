"""Producer: runs the iterator of one run, and appends what it yields, as long as the log is its own."""

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import replace
from math import inf

import anyio

from ..brokers import Record
from ..brokers.backoff import retry_unavailable
from ..errors import BrokerUnavailableError, PositionConflictError
from ..process.process import Process
from ..process.statistics import Counters
from ..runtime.event_loop import Sleep, pause, wake
from ..runtime.failure_log import fields
from ..runtime.scheduler import Timer
from ..wire.cursor import Position
from ..wire.event import PAYLOAD_MARK
from ..wire.reasons import EndReason, RunState
from ..wire.run_record import RunRecord, record_in
from .log import LogState, RunLog

# A record is appended in this part of a lease, and after so many events or bytes; a batch has no more. One
# has to be in the log at all times, so a log that keeps less has them more often.
RENEWALS, ALIVE_EVENTS, ALIVE_BYTES = 3, 100, 256 * 1024
# In memory, an iterator that yields again so soon after an append, in seconds, is busy. What it yields in the
# next turns of the loop is appended together, for as long as each turn brings more, and within these bounds.
BUSY, COLLECT_FOR, COLLECT_EVENTS = 0.015, 0.02, 32
# How much an iterator may be ahead of the broker, in bytes, but for its last item.
AHEAD_BYTES = 1024 * 1024
# How long appending the end may take when the process stops, in seconds.
END_TIMEOUT = 5.0


class EndedError(Exception):
    """Raised when the log says that this attempt has ended: it was cancelled, or found lost."""

    def __init__(self, state: RunState = RunState.LOST) -> None:
        super().__init__(state)
        self.state = state


class Producer:
    """Produces the output of one attempt. `start` is the state after its start record."""

    def __init__(
        self,
        log: RunLog,
        start: LogState,
        items: AsyncIterator[object],
        process: Process,
        counters: Counters,
        retry_for: float,
        ahead: int,
    ) -> None:
        #: Set when the iterator was closed and the end appended, or when this attempt had ended already.
        self.closed = anyio.Event()
        #: How the attempt has ended: LOST unless something else is known.
        self.state = RunState.LOST
        self._log = log
        self._start = start
        self._process = process
        self._counters = counters
        self._now = process.scheduler.now
        # The payloads that the iterator has yielded and the broker has not taken, those on their way too.
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._ahead = ahead
        # A larger one would push the records out of the log, and then itself.
        self._source = process.make_source(items, log.history.size // 2)
        self._retry_for = retry_for
        history = log.history
        self._alive_events = min(ALIVE_EVENTS, max(1, history.events // 2))
        self._alive_bytes = min(ALIVE_BYTES, history.size // 2)
        self._alive_seconds = min(start.lease / RENEWALS, (history.age or inf) / 2)
        # A watcher counts the silence as soon as the broker answers again.
        self._most_delay = min(2.0, start.lease / RENEWALS)
        # The batch is being appended and not known to be in the log. `_is_unsure`: some of it may be there.
        self._batch: Sequence[bytes] = ()
        self._is_unsure = False
        # Whether a record has to say that events before it are missing.
        self._owes_gap = False
        # How many of what waits are in the batch, and whether it has a record.
        self._items = 0
        self._renews = False
        # Whether `_collect` is to be called, how many waited at its last call, and when it ends.
        self._is_collecting = False
        self._collected = 0
        self._collect_until = 0.0
        self._call_soon = process.context.call_soon
        self._hub = process.hub
        self._is_in_process = log.is_in_process
        # The position of what this attempt, or another publisher, has appended last.
        self._end = start.end
        self._count = start.count
        # When the broker last took something, by the loop's clock.
        self._appended_at = self._now()
        # Events and bytes since the last record.
        self._events = self._bytes = 0
        # Bytes before that, of this attempt, and whether it was logged that the log drops the beginning.
        self._written, self._is_outgrown = 0, False
        self._sleep: Sleep | None = None
        self._must_look = self._must_renew = self._stopping = False
        self._renewal = self._set_renewal()

    def stop(self) -> None:
        """Close the iterator and leave the run as lost, because the process stops. Returns at once."""
        self._stopping = True
        self._source.stop()
        wake(self._sleep)

    def look(self) -> None:
        """Look at the log soon: the run may have been cancelled. Returns at once."""
        self._must_look = True
        wake(self._sleep)

    async def run(self) -> None:
        """Run the iterator to its end, or to the end of the attempt. Raises only when cancelled."""
        state: RunState | None = RunState.LOST
        try:
            self.state = state = await self._produce()
            if not self._stopping:
                # For as long as any other append is tried.
                await self._append_end(state)
                state = None
        except EndedError as ended:
            self.state, state = ended.state, None
        except Exception as error:
            self._process.context.failures.log(
                logging.WARNING,
                "the run on %r was given up, and its readers will find it lost: %s",
                self._log.channel,
                error,
                about=self._log.channel,
                extra=fields("run_given_up", channel=self._log.channel, error=str(error)),
            )
            state = None
        finally:
            self._sleep = None
            self._renewal.cancel()
            self._source.stop()
            with anyio.CancelScope(shield=True):
                with anyio.move_on_after(END_TIMEOUT):
                    await self._append_end(state)
                await self._source.wait_closed()
            self.closed.set()

    async def _produce(self) -> RunState:
        source = self._source
        source.start(self._wake, self._accept)
        while not self._stopping:
            if self._waiting or self._must_renew:
                if not self._batch:
                    self._begin_batch()
                await self._append()
                if self._end_batch():
                    # In this turn the iterator yields what the next batch can take.
                    await pause()
            elif source.end_reason is EndReason.FINISHED:
                return RunState.DONE
            elif source.end_reason is not None:
                self._tell_failure()
                return RunState.FAILED
            elif not self._must_look:
                self._sleep = self._process.context.make_sleep()
                await self._sleep
                self._sleep = None
            if self._must_look:
                self._must_look = False
                await retry_unavailable(self._catch_up, self._retry_for, self._most_delay)
        return RunState.LOST

    def _tell_failure(self) -> None:
        """Log which run has failed. The source has logged the error itself."""
        channel = self._log.channel
        self._process.context.failures.log(
            logging.WARNING,
            "the run on %r has failed, since its iterator raised",
            channel,
            about=channel,
            extra=fields("run_iterator_failed", channel=channel),
        )

    def _wake(self) -> None:
        """Called by the source when it has ended, or waits for room."""
        wake(self._sleep)

    def _accept(self, block: bytes) -> bool:
        """Take what the iterator has yielded, unless too much waits already. Called by the source."""
        if not self._has_room:
            return False
        self._waiting.append(PAYLOAD_MARK + block)
        self._waiting_bytes += len(block)
        sleep = self._sleep
        if self._is_collecting or sleep is None or sleep.done():
            # The task, or `_collect`, sees it.
            return True
        if not self._is_in_process:
            sleep.set_result(True)
        elif self._now() - self._appended_at > BUSY:
            self._append_now()
        else:
            self._is_collecting, self._collected = True, 0
            self._collect_until = self._now() + COLLECT_FOR
            self._call_soon(self._collect)
        return True

    def _fill(self) -> bool:
        """Take a block from the source, if there is one, and room for it."""
        if self._has_room and (block := self._source.take()):
            self._waiting.append(PAYLOAD_MARK + block)
            self._waiting_bytes += len(block)
            return True
        return False

    @property
    def _has_room(self) -> bool:
        return len(self._waiting) < self._ahead and self._waiting_bytes < AHEAD_BYTES

    @property
    def _sleeps(self) -> bool:
        return self._sleep is not None and not self._sleep.done()

    def _collect(self) -> None:
        """Called once in a turn of the loop: append what waits, unless this turn has brought more."""
        # The iterator has let this callback run, so its source need not.
        self._hub.note_turn()
        count = len(self._waiting)
        if self._collected < count < COLLECT_EVENTS and self._now() < self._collect_until:
            self._collected = count
            self._call_soon(self._collect)
        else:
            self._is_collecting = False
            self._append_now()

    def _append_now(self) -> None:
        """Append what waits, in memory. The task does it if it does not sleep, or if this fails."""
        if not self._waiting or not self._sleeps or self._owes_gap:
            wake(self._sleep)
            return
        self._begin_batch()
        try:
            end = self._log.append_now(self._batch, self._end)
        except Exception as error:
            self._is_unsure = not isinstance(error, PositionConflictError)
            wake(self._sleep)
            return
        self._note_appended_to(end)
        if self._batch:
            wake(self._sleep)
            return
        self._appended_at = self._now()
        if self._end_batch() or self._waiting:
            # More waits than fits into one batch, or has come since.
            wake(self._sleep)

    def _begin_batch(self) -> None:
        """Make a batch of what waits, up to the next record, and with the record if it is due."""
        items = self._waiting[: self._alive_events - self._events]
        self._bytes += sum(map(len, items))
        while len(items) > 1 and self._bytes > self._alive_bytes:
            self._bytes -= len(items.pop())
        self._items = len(items)
        self._events += self._items
        self._renews = (
            self._must_renew or self._events >= self._alive_events or self._bytes >= self._alive_bytes
        )
        if self._renews:
            self._written += self._bytes
            self._tell_outgrown()
            self._must_renew, self._events, self._bytes = False, 0, 0
            items.append(self._start.make("alive", count=self._count + self._items).encode())
        self._batch, self._is_unsure = items, False

    def _tell_outgrown(self) -> None:
        """Log once that the log drops the beginning of the output. Of the bytes, records are not counted."""
        history, events = self._log.history, self._end.offset - self._start.begin + 1
        is_large = self._log.bounds_bytes and self._written > history.size
        if self._is_outgrown or not (is_large or events > history.events):
            return
        self._is_outgrown = True
        self._process.context.failures.log(
            logging.WARNING,
            "the output of the run on %r has outgrown its log of %d events and %d bytes, so a reader that "
            "begins now misses the beginning, and is told: give the broker History(events=..., size=...)",
            self._log.channel,
            history.events,
            history.size,
            about=self._log.channel,
            extra=fields("run_outgrown", channel=self._log.channel, events=history.events, size=history.size),
        )

    def _end_batch(self) -> bool:
        """Called when the log has the batch. Return whether the iterator was waiting for its room."""
        size = sum(map(len, self._waiting[: self._items])) - self._items * len(PAYLOAD_MARK)
        self._waiting_bytes -= size
        del self._waiting[: self._items]
        if self._renews:
            self._renewal.cancel()
            self._renewal = self._set_renewal()
        return self._fill()

    def _set_renewal(self) -> Timer:
        return self._process.scheduler.call_later(self._alive_seconds, self._renew_soon)

    def _renew_soon(self) -> None:
        self._must_renew = True
        wake(self._sleep)

    async def _append(self) -> None:
        """Append the batch. Raises EndedError, and BrokerUnavailableError after retries."""
        try:
            await self._append_batch()
        except (PositionConflictError, BrokerUnavailableError):
            while self._batch:
                await retry_unavailable(self._append_again, self._retry_for, self._most_delay)
        self._appended_at = self._now()

    async def _append_again(self) -> None:
        """Append after what others have appended."""
        await self._catch_up()
        with suppress(PositionConflictError):
            await self._append_batch()

    async def _append_batch(self) -> None:
        if self._owes_gap:
            # A second one, if the answer to the first was lost, does no harm.
            self._end = await self._log.append(self._start.make("gap", count=self._count), self._end)
            self._owes_gap = False
        while self._batch:
            was_unsure, self._is_unsure = self._is_unsure, True
            try:
                end = await self._log.append_batch(self._batch, self._end)
            except PositionConflictError:
                # This call has appended nothing.
                self._is_unsure = was_unsure
                raise
            self._is_unsure = False
            self._note_appended_to(end)

    def _note_appended_to(self, end: Position) -> None:
        number, self._end = end.offset - self._end.offset, end
        self._note_appended(number)

    def _note_appended(self, number: int) -> None:
        """Note that the log has so many more of the batch, whose last is a record if it `_renews`."""
        batch = self._batch
        if number < len(batch):
            self._batch = batch[number:]
        else:
            self._batch = ()
            number -= self._renews
        self._count += number
        self._counters.published += number

    async def _catch_up(self) -> None:
        """Read what follows in the log, and go on after it. The batch may be there, if its answer was lost.

        Raises EndedError if the attempt has ended.
        """
        while True:
            page = await self._log.after(self._end.offset)
            if page.locate(self._end) is None:
                await self._find_place()
                return
            for record in page.records:
                self._check(record_in(record.payload))
            self._find_batch(page.records)
            self._end = Position(page.epoch, page.records[-1].offset if page.records else page.last)
            if self._end.offset >= page.last:
                return

    def _find_batch(self, records: Sequence[Record]) -> None:
        """Note what of the batch is among the records that follow in the log."""
        if not self._is_unsure or not records:
            return
        found = 0
        for place, record in enumerate(records):
            at = record.offset - self._end.offset - 1
            # The log may have dropped the first of the batch already.
            if at >= len(self._batch) or record.payload != self._batch[at] or (place and at != found):
                # The rest of the batch cannot arrive late: another event has its place.
                self._is_unsure = False
                break
            found = at + 1
        if found:
            self._note_appended(found)

    def _check(self, record: RunRecord | None) -> None:
        attempt = self._start.attempt
        if record is None:
            return
        if record.attempt == attempt and record.kind == "end":
            raise EndedError(record.state)
        if record.attempt == attempt and record.kind == "start":
            # The answer to this one was lost.
            self._start = replace(self._start, begin=record.begin)
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
        if state.attempt != self._start.attempt:
            raise EndedError
        if state.ended:
            raise EndedError(state.state)
        self._find_batch((await self._log.after(self._end.offset)).records)
        # Readers that come later would not notice that events are missing here.
        self._owes_gap |= end.offset < self._end.offset or state.count < self._count
        self._end = end

    async def _begin_again(self, end: Position) -> None:
        """Append a start record to a log that has none, which says how many events are missing before it."""
        if self._now() - self._appended_at > self._start.lease:
            # Another attempt may have begun and ended meanwhile.
            raise EndedError
        start = replace(self._start, begin=end.offset + 1)
        try:
            end = await self._log.append(start.make("start", count=self._count), end)
        except PositionConflictError:
            # The caller reads what was appended instead.
            return
        self._start, self._end = start, end

    async def _append_end(self, state: RunState | None) -> None:
        if state is None:
            return
        try:
            if self._batch:
                # This task was cancelled while it appended.
                await retry_unavailable(self._catch_up, self._retry_for, self._most_delay)
            end = self._start.make("end", state, self._count)
            error = self._source.error if state is RunState.FAILED else None
            self._batch, self._is_unsure, self._renews = [replace(end, error=error).encode()], False, True
            await self._append()
            self._written += self._bytes
            self._tell_outgrown()
        except EndedError as ended:
            self.state = ended.state
        except Exception as error:
            self.state = RunState.LOST
            self._process.context.failures.log(
                logging.WARNING,
                "the end of the run on %r cannot be published, so its readers will find it lost: %s",
                self._log.channel,
                error,
                about=self._log.channel,
                extra=fields("run_end_unpublished", channel=self._log.channel, error=str(error)),
            )
