"""Producer: runs the iterator of one run, and appends what it yields, as long as the log is its own."""

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import replace

import anyio

from ..brokers import Record
from ..brokers.backoff import retry_unavailable
from ..errors import BrokerUnavailableError, PositionConflictError
from ..process.run import Run as Process
from ..process.statistics import Counters
from ..runtime.event_loop import Sleep, wake
from ..runtime.failure_log import fields
from ..runtime.scheduler import Timer
from ..wire.cursor import Position
from ..wire.event import to_payload
from ..wire.reasons import EndReason, RunState
from ..wire.run_record import RunRecord, has_record, record_in
from .log import LogState, RunLog

# A record is appended in this part of a lease, and after so many events or bytes; a batch has no more.
RENEWALS, ALIVE_EVENTS, ALIVE_BYTES = 3, 100, 256 * 1024
# How long appending the end may take when the process stops, in seconds.
END_TIMEOUT = 5.0


class EndedError(Exception):
    """Raised when the log says that this attempt has ended: it was cancelled, or found lost."""


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
        self._log = log
        self._start = start
        self._process = process
        self._counters = counters
        self._now = process.scheduler.now
        # The payloads that the iterator has yielded and the broker has not taken, those on their way too.
        self._waiting: list[bytes] = []
        self._ahead = ahead
        self._source = process.make_source(items)
        self._retry_for = retry_for
        # What is being appended and not known to be in the log, and whether some of it may be there.
        self._batch: Sequence[bytes] = ()
        self._is_unsure = False
        # The position of what this attempt, or another publisher, has appended last.
        self._end = start.end
        self._count = start.count
        # When the broker last took something, by the loop's clock.
        self._appended_at = self._now()
        # Events and bytes since the last record.
        self._events = self._bytes = 0
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
            state = await self._produce()
        except EndedError:
            state = None
        except Exception as error:
            self._process.context.failures.log(
                logging.WARNING,
                "the run on %r was given up, and its readers will find it lost: %s",
                self._log.channel,
                error,
                extra=fields("run_given_up", channel=self._log.channel, error=str(error)),
            )
            state = None
        finally:
            self._renewal.cancel()
            self._source.stop()
            with anyio.CancelScope(shield=True):
                with anyio.move_on_after(END_TIMEOUT):
                    await self._append_end(state)
                await self._source.wait_closed()
            self.closed.set()

    async def _produce(self) -> RunState:
        source = self._source
        source.start(self._take)
        while not self._stopping:
            if self._waiting or self._must_renew:
                await self._append_waiting()
            elif source.end_reason is not None:
                return RunState.DONE if source.end_reason is EndReason.FINISHED else RunState.FAILED
            elif not self._must_look:
                self._sleep = self._process.context.make_sleep()
                await self._sleep
            if self._must_look:
                self._must_look = False
                await retry_unavailable(self._catch_up, self._retry_for)
        return RunState.LOST

    def _take(self) -> None:
        """Take what the iterator has yielded, and let it run on. Called by the source, also at its end."""
        if len(self._waiting) < self._ahead and (block := self._source.take()):
            self._waiting.append(to_payload(block))
        wake(self._sleep)

    async def _append_waiting(self) -> None:
        """Append what waits, up to the next record, and the record if it is due."""
        items = self._waiting[: ALIVE_EVENTS - self._events]
        self._bytes += sum(map(len, items))
        while len(items) > 1 and self._bytes > ALIVE_BYTES:
            self._bytes -= len(items.pop())
        self._events += len(items)
        if not self._must_renew and self._events < ALIVE_EVENTS and self._bytes < ALIVE_BYTES:
            await self._append(items)
        else:
            self._must_renew, self._events, self._bytes = False, 0, 0
            record = self._start.make("alive", count=self._count + len(items))
            await self._append([*items, record.encode()])
            self._renewal.cancel()
            self._renewal = self._set_renewal()
        del self._waiting[: len(items)]
        # The iterator may wait for this room.
        self._take()

    def _set_renewal(self) -> Timer:
        return self._process.scheduler.call_later(self._start.lease / RENEWALS, self._renew_soon)

    def _renew_soon(self) -> None:
        self._must_renew = True
        wake(self._sleep)

    async def _append(self, payloads: Sequence[bytes]) -> None:
        """Append after the last position. Raises EndedError, and BrokerUnavailableError after retries."""
        self._batch, self._is_unsure = payloads, False
        with suppress(PositionConflictError, BrokerUnavailableError):
            await self._append_batch()
        while self._batch:
            await retry_unavailable(self._append_again, self._retry_for)
        self._appended_at = self._now()

    async def _append_again(self) -> None:
        """Append after what others have appended."""
        await self._catch_up()
        with suppress(PositionConflictError):
            await self._append_batch()

    async def _append_batch(self) -> None:
        while self._batch:
            was_unsure, self._is_unsure = self._is_unsure, True
            try:
                end = await self._log.append_batch(self._batch, self._end)
            except PositionConflictError:
                # This call has appended nothing.
                self._is_unsure = was_unsure
                raise
            number, self._end, self._is_unsure = end.offset - self._end.offset, end, False
            self._note_appended(number)

    def _note_appended(self, number: int) -> None:
        """Note that the log has so many more of the batch. No more than the last is a record."""
        done, self._batch = self._batch[:number], self._batch[number:]
        events = len(done) - (bool(done) and has_record(done[-1]))
        self._count += events
        self._counters.published += events

    async def _catch_up(self) -> None:
        """Read what follows in the log, and go on after it. The batch may be there, if its answer was lost.

        Raises EndedError if the attempt has ended.
        """
        sent = self._batch if self._is_unsure else ()
        known, found = self._end, 0
        while True:
            page = await self._log.after(self._end.offset)
            if page.locate(self._end) is None:
                found = max(found, await self._find_place(known, sent))
                break
            for record in page.records:
                self._check(record_in(record.payload))
            found = _found_in(page.records, known, sent, found)
            self._end = Position(page.epoch, page.records[-1].offset if page.records else page.last)
            if self._end.offset >= page.last:
                break
        self._note_appended(found)

    def _check(self, record: RunRecord | None) -> None:
        attempt = self._start.attempt
        if record is None:
            return
        if (record.attempt == attempt) if record.kind == "end" else (record.attempt != attempt):
            raise EndedError

    async def _find_place(self, known: Position, sent: Sequence[bytes]) -> int:
        """Go on in a log that was lost, or has lost its end: readers are told of a gap there.

        Returns how many of `sent` are behind the `known` position. Raises EndedError if the attempt has
        ended, or may have.
        """
        state, end = await self._log.state()
        if state is None:
            await self._begin_again(end)
            return 0
        if state.ended or state.attempt != self._start.attempt:
            raise EndedError
        self._end = end
        page = await self._log.after(known.offset, len(sent))
        return _found_in(page.records, known, sent)

    async def _begin_again(self, end: Position) -> None:
        """Append a start record to a log that has none, which says how many events are missing before it."""
        if self._now() - self._appended_at > self._start.lease:
            # Another attempt may have begun and ended meanwhile.
            raise EndedError
        start = replace(self._start, begin=end.offset + 1)
        self._end = end
        try:
            self._end = await self._log.append(start.make("start", count=self._count), end)
        except PositionConflictError:
            # The caller reads what was appended instead.
            return
        self._start = start

    async def _append_end(self, state: RunState | None) -> None:
        if state is None:
            return
        try:
            if self._batch:
                # This task was cancelled while it appended.
                await retry_unavailable(self._catch_up, self._retry_for)
            await self._append([self._start.make("end", state, self._count).encode()])
        except EndedError:
            return
        except Exception as error:
            self._process.context.failures.log(
                logging.WARNING,
                "the end of the run on %r cannot be published, so its readers will find it lost: %s",
                self._log.channel,
                error,
                extra=fields("run_end_unpublished", channel=self._log.channel, error=str(error)),
            )


def _found_in(records: Sequence[Record], known: Position, sent: Sequence[bytes], found: int = 0) -> int:
    """Return how many of `sent` were appended right behind a position, if `found` of them are known to be.

    The log may have dropped the first of them already.
    """
    is_first = not found
    for record in records:
        place = record.offset - known.offset - 1
        if not (is_first or place == found) or place >= len(sent) or record.payload != sent[place]:
            break
        is_first, found = False, place + 1
    return found
