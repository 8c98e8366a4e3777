"""LoggedChannel: a channel of a broker with history. It delivers without holes, or says where there is one.

Live payloads may be lost and repeated on their way; the log has them all. So each live position is held
against the last one. The next in line is delivered, an older one is a repeat, and anything else is a hole:
then nothing live counts until the log has been read up to what is known of it. A payload without a position
is not in the log and is refused, with a log line that names the cause.
"""

import logging
from collections.abc import Callable

import anyio

from ..brokers import HistoryBroker, Page
from ..brokers.backoff import Backoff
from ..runtime.event_loop import BackgroundFunction
from ..wire.cursor import MOST_OFFSET, Position
from ..wire.reasons import GapReason
from .channel import RETRY_FIRST, RETRY_MOST, Channel, Coalescer

logger = logging.getLogger("livepush_asgi")

# How much is read at once when a hole is filled: events, and bytes of their payloads.
PAGE, PAGE_BYTES = 500, 1024 * 1024
# How long to wait, in seconds, for the log to show what was delivered live.
AHEAD_RETRY = 0.1


class LoggedChannel(Channel):
    """A channel with a log. `spawn` starts a task that outlives the caller."""

    __slots__ = ("_filling", "_log", "_lost_more", "_quiet", "_refused", "_seen", "_spawn")

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
        # While the log is read, live payloads only say how far it has to be read: up to the last one seen.
        self._filling = True
        self._seen: Position | None = None
        # Whether more may have been lost since the page was asked for that is being read.
        self._lost_more = False
        # Whether nothing was delivered since the last `check`.
        self._quiet = True
        self._refused = False

    def deliver_at(self, position: Position | None, payload: bytes, /) -> None:
        """Pass on what is next in line; begin to read the log where something is missing."""
        if position is None:
            self._refuse()
        elif self._filling:
            self._see(position)
        elif self._is_next(position):
            self._quiet = False
            self.position = position
            self._dispatch(payload, position)
        elif self._is_ahead(position):
            self.lost()
            self._seen = position

    def lost(self) -> None:
        """Read in the log what live payloads may have been lost. No gap is told that can be filled."""
        self._lost_more = True
        if not self._filling and not self.closed:
            self._filling = True
            self._spawn(self._fill)

    def check(self) -> None:
        """Look into the log if nothing came for a while: the live way may be dead without a sign."""
        if self._quiet:
            self.lost()
        self._quiet = True

    async def _catch_up(self) -> None:
        """Find out where the log is, or read what the time without a subscription has brought."""
        if self.position is not None:
            self.lost()
            return
        self._lost_more = False
        page = await self._log.read(self.name, MOST_OFFSET, 0)
        self.position = Position(page.epoch, page.last)
        self._filling = False
        if self._lost_more or (self._seen is not None and self._is_ahead(self._seen)):
            self.lost()

    def _refuse(self) -> None:
        """Drop a payload that is not in the log: clients that reconnect could never get it."""
        if not self._refused:
            self._refused = True
            logger.error(
                "a payload on %r is refused (logged once per channel): it was published past the log, for"
                " example with RedisBroker instead of RedisStreamsBroker; publish with the kind of broker"
                " that this application uses",
                self.name,
            )

    async def _fill(self) -> None:
        backoff, failed = Backoff(RETRY_FIRST, RETRY_MOST), False
        while not self.closed:
            try:
                if await self._read_page():
                    if failed:
                        self._note(None)
                    return
                backoff.reset()
            except Exception as error:
                failed = True
                self._note(error)
                await anyio.sleep(backoff.next_delay())

    async def _read_page(self) -> bool:
        """Deliver a page of the log. Return whether the listeners now have all that is known of it."""
        assert self.position is not None
        before, self._lost_more = self.position, False
        page = await self._log.read(self.name, before.offset, PAGE, max_bytes=PAGE_BYTES)
        # From here to the return nothing waits, so that no live payload falls between.
        self._go_through(page.seen_from(before))
        arrived = self.position.epoch == page.epoch and self.position.offset >= page.last
        if arrived and self._lost_more:
            return False
        if arrived and not (self._seen is not None and self._is_ahead(self._seen)):
            self._filling, self._seen = False, None
            return True
        if self.position == before:
            # Something live is ahead of the log. Either it comes, or the log has lost it again.
            self._seen = None
            await anyio.sleep(AHEAD_RETRY)
        return False

    def _go_through(self, page: Page) -> None:
        assert self.position is not None
        placed = page.place_of(self.position)
        if placed is None:
            # Another log, or one that lost its end. This page may start anywhere in it; the next will
            # start where the loss is.
            self.position = page.start_after_loss(self.position)
            self._tell_gap(GapReason.EPOCH, self.position)
            return
        # Where a log goes on under a new epoch and has lost nothing, no gap is told.
        self.position = placed
        if page.first - 1 > placed.offset:
            self.position = placed.at(page.first - 1)
            self._tell_gap(GapReason.EXPIRED, self.position)
        for record in page.records:
            if record.offset > self.position.offset:
                self.position = placed.at(record.offset)
                self._dispatch(record.payload, self.position)

    def _see(self, position: Position) -> None:
        # A repeat of an earlier one does not hide it.
        seen = self._seen
        if seen is None or position.epoch != seen.epoch or position.offset > seen.offset:
            self._seen = position

    def _is_next(self, position: Position) -> bool:
        known = self.position
        return known is not None and position.epoch == known.epoch and position.offset == known.offset + 1

    def _is_ahead(self, position: Position) -> bool:
        """Return whether a position is none of those delivered: it is later, or of another epoch."""
        known = self.position
        return known is None or position.epoch != known.epoch or position.offset > known.offset
