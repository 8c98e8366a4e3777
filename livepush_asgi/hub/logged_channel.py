"""LoggedChannel: a channel of a broker with history. It delivers every event in order, or sends a gap.

Live payloads may be lost or repeated on their way; the log has them all. So the channel compares the position
of each live payload with the last one. It delivers the next position, and drops an older one as a repeat. Any
other position shows a loss: the channel then ignores live payloads until it has read the log up to the last
known position. It drops a payload without a position, which is not in the log, and logs the cause.
"""

import logging
from collections.abc import Callable, Sequence

import anyio

from ..brokers import HistoryBroker, Page
from ..brokers.backoff import Backoff
from ..errors import InvalidEventError
from ..runtime.event_loop import BackgroundFunction
from ..runtime.failure_log import fields
from ..wire.cursor import MAX_OFFSET, Position
from ..wire.reasons import GapReason
from .channel import RETRY_FIRST, RETRY_MAX, Channel, Coalescer
from .delivery import LogBatch

# The size of a page when the channel reads its log: events, and bytes of their payloads.
PAGE, PAGE_BYTES = 500, 1024 * 1024
# How long to wait, in seconds, for the log to show an event that was delivered live.
AHEAD_RETRY = 0.1


class LoggedChannel(Channel):
    """A channel with a log. `spawn` starts a task of the process."""

    __slots__ = (
        "_idle",
        "_last_seen",
        "_log",
        "_lost_more",
        "_read_ended",
        "_reading_log",
        "_spawn",
    )

    def __init__(
        self,
        name: str,
        broker: HistoryBroker,
        coalescer: Coalescer,
        on_attempt: Callable[[Channel], None],
        spawn: Callable[[BackgroundFunction], object],
    ) -> None:
        super().__init__(name, broker, coalescer, on_attempt)
        self._log = broker
        self._spawn = spawn
        # While the log is read, live payloads are not delivered; the log is read up to the last one seen.
        self._reading_log = True
        self._last_seen: Position | None = None
        # Whether more may have been lost since the page that is being read was requested.
        self._lost_more = False
        # Whether no live payload was delivered since the last `check`.
        self._idle = True
        # Created for the first task that waits for the end of a read.
        self._read_ended: anyio.Event | None = None

    async def wait_read(self) -> None:
        """Wait until every known event is delivered, or a read of the log has failed."""
        if self._reading_log and self.ready and self.error is None and not self.closed:
            self._read_ended = self._read_ended or anyio.Event()
            await self._read_ended.wait()

    async def close(self) -> None:
        """Close the subscription. Bounded in time; raises only when cancelled."""
        self.closed = True
        self._end_read()
        await super().close()

    def deliver_at(self, position: Position | None, payload: bytes, /) -> None:
        """Deliver a payload if its position is the next; read the log if events are missing before it."""
        if position is None:
            self._refuse()
        elif self._reading_log:
            self._see(position)
        elif self._is_next(position):
            self._idle = False
            self.position = position
            self._dispatch(payload, position)
        elif self._is_ahead(position):
            self.lost()
            self._last_seen = position

    def deliver_after(self, position: Position, payloads: Sequence[bytes], /) -> None:
        """Deliver the payloads that follow a position, as `deliver_at` does each of them."""
        if self._reading_log or position != self.position or not self.counted:
            super().deliver_after(position, payloads)
            return
        batch = None
        # If all listeners read the log, they get these from there.
        if not all(listener.reads_log(self.name) for listener in self.listeners):
            try:
                batch = LogBatch(self.name, position, payloads)
            except InvalidEventError:
                super().deliver_after(position, payloads)
                return
        self._idle = False
        self.position = position.at(position.offset + len(payloads))
        self._coalescer.counts.delivered += len(self._listeners) * len(payloads)
        if batch is not None:
            self._coalescer.add_batch(self, batch)

    def lost(self) -> None:
        """Read lost events from the log. A gap is sent only if the log does not have them."""
        self._lost_more = True
        if not self._reading_log and not self.closed:
            self._reading_log = True
            self._spawn(self._read_log)

    def check(self) -> None:
        """Read the log if no live payload came since the last call: the subscription may be broken."""
        if self._idle:
            self.lost()
        self._idle = True

    async def _catch_up(self) -> None:
        """Read the end of the log, or the events that were published without a subscription."""
        if self.position is not None:
            self.lost()
            return
        self._lost_more = False
        page = await self._log.read(self.name, MAX_OFFSET, 0)
        self.position, self.doubtful = Position(page.epoch, page.last), bool(page.doubtful)
        self._reading_log = False
        if self._lost_more or (self._last_seen is not None and self._is_ahead(self._last_seen)):
            self.lost()

    def _refuse(self) -> None:
        """Log a payload that is not in the log and is dropped: a client that reconnects could not get it."""
        self._coalescer.failures.log(
            logging.ERROR,
            "a payload on %r is refused: it was published past the log, for example with RedisBroker instead"
            " of RedisStreamsBroker; publish with the kind of broker that this application uses",
            self.name,
            about=self.name,
            extra=fields("payload_refused", channel=self.name),
        )

    async def _read_log(self) -> None:
        backoff, failed = Backoff(RETRY_FIRST, RETRY_MAX), False
        while not self.closed:
            try:
                if await self._read_page():
                    if failed:
                        self._attempt_ended(None)
                    return
                backoff.reset()
            except Exception as error:
                failed = True
                self._attempt_ended(error)
                self._end_read()
                await anyio.sleep(backoff.next_delay())

    async def _read_page(self) -> bool:
        """Deliver a page of the log. Return whether the listeners now have every known event."""
        assert self.position is not None
        before, self._lost_more = self.position, False
        page = await self._log.read(self.name, before.offset, PAGE, max_bytes=PAGE_BYTES)
        # From here to the return nothing is awaited, so that no live payload comes in between.
        self._deliver_page(page.seen_from(before))
        arrived = self.position.epoch == page.epoch and self.position.offset >= page.last
        if arrived and self._lost_more:
            return False
        if arrived and not (self._last_seen is not None and self._is_ahead(self._last_seen)):
            self._reading_log, self._last_seen = False, None
            self._end_read()
            return True
        if self.position == before:
            # A live payload is ahead of the log. The log will show it, or has lost it.
            self._last_seen = None
            await anyio.sleep(AHEAD_RETRY)
        return False

    def _deliver_page(self, page: Page) -> None:
        assert self.position is not None
        self.doubtful = bool(page.doubtful)
        placed = page.locate(self.position)
        if placed is None:
            # The log is new, or has lost its end. This page may start anywhere in it; the next page starts at
            # the loss.
            self.position = page.start_after_loss(self.position)
            self._deliver_gap(GapReason.EPOCH, self.position)
            return
        # A log with a new epoch that has lost nothing needs no gap.
        self.position = placed
        if page.first - 1 > placed.offset:
            self.position = placed.at(page.first - 1)
            self._deliver_gap(GapReason.EXPIRED, self.position)
        for record in page.records:
            if record.offset > self.position.offset:
                self.position = placed.at(record.offset)
                self._dispatch(record.payload, self.position)

    def _end_read(self) -> None:
        ended, self._read_ended = self._read_ended, None
        if ended is not None:
            ended.set()

    def _see(self, position: Position) -> None:
        # A repeat of an earlier event must not hide a later one.
        seen = self._last_seen
        if seen is None or position.epoch != seen.epoch or position.offset > seen.offset:
            self._last_seen = position

    def _is_next(self, position: Position) -> bool:
        known = self.position
        return known is not None and position.epoch == known.epoch and position.offset == known.offset + 1

    def _is_ahead(self, position: Position) -> bool:
        """Return whether a position was not delivered yet: it is later, or of another epoch."""
        known = self.position
        return known is None or position.epoch != known.epoch or position.offset > known.offset
