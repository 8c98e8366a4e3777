"""Producer: runs the iterator of one run, and appends what it yields, as long as the log is its own."""

import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from math import inf

import anyio

from ..process.process import Process
from ..process.statistics import Counters
from ..runtime.event_loop import Sleep, pause, wake
from ..runtime.failure_log import fields
from ..runtime.scheduler import Timer
from ..wire.reasons import EndReason, RunState
from .attempt import Attempt, EndedError
from .collector import Collector
from .log import LogState, RunLog
from .pending import Pending

# How many records are appended in a lease.
RENEWALS = 3
# In memory, an iterator that yields again so soon after an append, in seconds, is busy. What it yields in the
# next turns of the loop is appended together, for as long as each turn brings more, and within these bounds.
BUSY, COLLECT_FOR, COLLECT_EVENTS = 0.015, 0.05, 32
# How long appending the end may take when the process stops, in seconds.
END_TIMEOUT = 5.0


class Producer:
    """Produces the output of one attempt. `start` is the state after its start record."""

    def __init__(
        self,
        log: RunLog,
        start: LogState,
        items: AsyncIterator[object],
        process: Process,
        collector: Collector,
        counters: Counters,
        retry_for: float,
        ahead: int,
    ) -> None:
        #: Set when the iterator was closed and the end appended, or when this attempt had ended already.
        self.closed = anyio.Event()
        #: How the attempt has ended: LOST unless something else is known.
        self.state = RunState.LOST
        self._log = log
        self._attempt = Attempt(log, start, counters, retry_for, process.scheduler.now)
        self._process = process
        self._now = process.scheduler.now
        self._pending = Pending(log.history, ahead)
        # A larger one would push the records out of the log, and then itself.
        self._source = process.make_source(items, log.history.size // 2)
        self._renewal_interval = min(start.lease / RENEWALS, (log.history.age or inf) / 2)
        self._collector = collector
        # Whether `_still_collects` is to be called, how many waited at its last call, and when it ends.
        self._is_collecting = False
        self._collected = 0
        self._collect_until = 0.0
        self._is_in_process = log.is_in_process
        # Whether it was logged that the log drops the beginning.
        self._is_outgrown = False
        self._sleep: Sleep | None = None
        self._must_look = self._stopping = False
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
            if state is not None:
                with anyio.move_on_after(END_TIMEOUT, shield=True):
                    await self._append_end(state)
            await self._source.wait_closed()
            self.closed.set()

    async def _produce(self) -> RunState:
        source = self._source
        source.start(self._wake, self._accept)
        while not self._stopping:
            if self._attempt.batch or self._pending or self._pending.must_renew:
                if not self._attempt.batch:
                    self._begin_batch()
                await self._attempt.append()
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
            # A batch that `_append_nowait` has left may be in the log. `append` finds out, and drops it.
            if self._must_look and not self._attempt.batch:
                self._must_look = False
                await self._attempt.look()
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
        if not self._pending.accept(block):
            return False
        sleep = self._sleep
        if self._is_collecting or sleep is None or sleep.done():
            # The task, or `_still_collects`, sees it.
            return True
        if not self._is_in_process:
            sleep.set_result(True)
        elif self._now() - self._attempt.appended_at > BUSY:
            self._append_nowait()
        else:
            self._is_collecting, self._collected = True, 0
            self._collect_until = self._now() + COLLECT_FOR
            self._collector.add(self._still_collects)
        return True

    @property
    def _sleeps(self) -> bool:
        return self._sleep is not None and not self._sleep.done()

    def _still_collects(self) -> bool:
        """Called once in a turn of the loop: append what waits, unless this turn has brought more."""
        count = len(self._pending)
        if self._collected < count < COLLECT_EVENTS and self._now() < self._collect_until:
            self._collected = count
            return True
        self._is_collecting = False
        self._append_nowait()
        return False

    def _append_nowait(self) -> None:
        """Append what waits, in memory. The task does it if it does not sleep, or if this fails."""
        if self._pending and self._sleeps:
            self._begin_batch()
            if self._attempt.append_nowait() and not self._end_batch() and not self._pending:
                return
        # Something waits: more than fits into one batch, or what has come since.
        wake(self._sleep)

    def _begin_batch(self) -> None:
        batch = self._pending.make_batch(self._make_record)
        if self._pending.renews:
            self._tell_outgrown()
        self._attempt.begin(batch, has_record=self._pending.renews)

    def _make_record(self, items: int) -> bytes:
        """Return the record that this attempt is alive, for its place behind so many items of a batch."""
        attempt = self._attempt
        return attempt.start.make("alive", count=attempt.count + items).encode()

    def _tell_outgrown(self) -> None:
        """Log once that the log drops the beginning of the output. Of the bytes, records are not counted."""
        attempt, history = self._attempt, self._log.history
        events = attempt.end.offset - attempt.start.begin + 1
        is_large = self._log.bounds_bytes and self._pending.batched_bytes > history.size
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
        self._pending.drop_batch()
        if self._pending.renews:
            self._renewal.cancel()
            self._renewal = self._set_renewal()
        block = self._source.take() if self._pending.has_room else b""
        return bool(block) and self._pending.accept(block)

    def _set_renewal(self) -> Timer:
        return self._process.scheduler.call_later(self._renewal_interval, self._renew_soon)

    def _renew_soon(self) -> None:
        self._pending.must_renew = True
        wake(self._sleep)

    async def _append_end(self, state: RunState) -> None:
        try:
            attempt = self._attempt
            if attempt.batch:
                # This task was cancelled while it appended.
                await attempt.look()
            end = attempt.start.make("end", state, attempt.count)
            error = self._source.error if state is RunState.FAILED else None
            attempt.begin([replace(end, error=error).encode()], has_record=True)
            await attempt.append()
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
