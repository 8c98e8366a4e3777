"""Producer: runs the iterator of one run, and appends what it yields, as long as the log is its own."""

import logging
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial

import anyio

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
from ..wire.run_record import RunRecord, record_in
from .log import LogState, RunLog

# A record is appended in this part of a lease, and after so many events and bytes.
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
        # What the iterator has yielded and the broker has not taken.
        self._waiting: deque[bytes] = deque()
        self._ahead = ahead
        self._source = process.make_source(items)
        self._retry_for = retry_for
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
        source, waiting = self._source, self._waiting
        source.start(self._take)
        while not self._stopping:
            if waiting or (block := source.take()):
                await self._append_item(to_payload(waiting.popleft() if waiting else block))
            elif source.end_reason is not None:
                return RunState.DONE if source.end_reason is EndReason.FINISHED else RunState.FAILED
            elif not (self._must_look or self._must_renew):
                self._sleep = self._process.context.make_sleep()
                await self._sleep
            if self._must_look:
                self._must_look = False
                await retry_unavailable(partial(self._catch_up, None), self._retry_for)
            if self._must_renew or self._events >= ALIVE_EVENTS or self._bytes >= ALIVE_BYTES:
                await self._renew()
        return RunState.LOST

    def _take(self) -> None:
        """Take what the iterator has yielded, and let it run on. Called by the source, also at its end."""
        if len(self._waiting) < self._ahead and (block := self._source.take()):
            self._waiting.append(block)
        wake(self._sleep)

    async def _append_item(self, payload: bytes) -> None:
        await self._append(payload)
        self._counters.published += 1
        self._count += 1
        self._events += 1
        self._bytes += len(payload)

    async def _renew(self) -> None:
        self._must_renew, self._events, self._bytes = False, 0, 0
        await self._append(self._start.make("alive", count=self._count).encode())
        self._renewal.cancel()
        self._renewal = self._set_renewal()

    def _set_renewal(self) -> Timer:
        return self._process.scheduler.call_later(self._start.lease / RENEWALS, self._renew_soon)

    def _renew_soon(self) -> None:
        self._must_renew = True
        wake(self._sleep)

    async def _append(self, payload: bytes) -> None:
        """Append after the last position. Raises EndedError, and BrokerUnavailableError after retries."""
        try:
            self._end = await self._log.append(payload, self._end)
        except PositionConflictError:
            await self._append_again(payload, unsure=False)
        except BrokerUnavailableError:
            await self._append_again(payload, unsure=True)
        self._appended_at = self._now()

    async def _append_again(self, payload: bytes, *, unsure: bool) -> None:
        """Append after what others have appended. `unsure` says that the payload may be in the log."""

        async def attempt() -> bool:
            nonlocal unsure
            if await self._catch_up(payload if unsure else None):
                return True
            try:
                self._end = await self._log.append(payload, self._end)
            except PositionConflictError:
                return False
            except BrokerUnavailableError:
                unsure = True
                raise
            return True

        while not await retry_unavailable(attempt, self._retry_for):
            pass

    async def _catch_up(self, sent: bytes | None) -> bool:
        """Read what follows in the log, and go on after it. Return whether it begins with `sent`.

        Raises EndedError if the attempt has ended.
        """
        while True:
            page = await self._log.after(self._end.offset)
            placed = page.locate(self._end)
            if placed is None:
                return await self._find_place(sent)
            for record in page.records:
                self._check(record_in(record.payload))
            if sent is not None and page.records and page.records[0] == (placed.offset + 1, sent):
                self._end = placed.next()
                return True
            sent = None
            self._end = Position(page.epoch, page.records[-1].offset if page.records else page.last)
            if self._end.offset >= page.last:
                return False

    def _check(self, record: RunRecord | None) -> None:
        attempt = self._start.attempt
        if record is None:
            return
        if (record.attempt == attempt) if record.kind == "end" else (record.attempt != attempt):
            raise EndedError

    async def _find_place(self, sent: bytes | None) -> bool:
        """Go on in a log that was lost, or has lost its end: readers are told of a gap there.

        Returns whether `sent` is the last event. Raises EndedError if the attempt has ended, or may have.
        """
        state, end = await self._log.state()
        if state is None:
            await self._begin_again(end)
            return False
        if state.ended or state.attempt != self._start.attempt:
            raise EndedError
        self._end = end
        records = (await self._log.after(end.offset - 1)).records
        return sent is not None and bool(records) and records[0] == (end.offset, sent)

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
            end = self._start.make("end", state, self._count)
            error = self._source.error if state is RunState.FAILED else None
            await self._append(replace(end, error=error).encode())
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
