"""LoggedTopic: a topic of a broker with history. What it delivers is contiguous, or it says where it is not.

Live payloads may be lost and repeated on their way; the log has them all. So each live position is held
against the last one. The next in line is delivered, an older one is a repeat, and anything else is a hole:
then nothing live counts until the log has been read up to what is known of it. A payload without a position
is not in the log and is refused, with a log line that names the cause.
"""

import logging
import random
from collections.abc import Callable, Coroutine
from typing import Any

import anyio

from ..brokers import HistoryBroker, Page
from ..errors import InvalidEventError
from ..wire.cursor import MOST_OFFSET, Position
from ..wire.event import split_position
from ..wire.reasons import GapReason
from .channel import RETRY_FIRST, RETRY_MOST, Topic
from .coalescing import Turn

logger = logging.getLogger("livepush_asgi")

# How much is read at once when a hole is filled: events, and bytes of their payloads.
PAGE, PAGE_BYTES = 500, 1024 * 1024


class LoggedTopic(Topic):
    """A channel with a log. `spawn` starts a task that outlives the caller."""

    __slots__ = ("_filling", "_log", "_position", "_quiet", "_refused", "_seen", "_spawn", "bounds")

    def __init__(
        self,
        channel: str,
        broker: HistoryBroker,
        turn: Turn,
        watch: Callable[[Topic], None],
        spawn: Callable[[Callable[[], Coroutine[Any, Any, None]]], object],
    ) -> None:
        super().__init__(channel, broker, turn, watch)
        #: Where the log was seen to begin and end, and until when that may be used.
        self.bounds: tuple[Page, float] | None = None
        self._log = broker
        self._spawn = spawn
        self._position: Position | None = None
        # While the log is read, live payloads only say how far it has to be read.
        self._filling = True
        self._seen: Position | None = None
        self._quiet = True
        self._refused = False

    @property
    def position(self) -> Position | None:
        """Up to where the listeners have been delivered the log."""
        # What this turn has brought counts, so it has to be with them.
        self._turn.flush()
        return self._position

    def deliver(self, payload: bytes, /) -> None:
        """Pass on what is next in line; begin to read the log where something is missing."""
        try:
            position, proper = split_position(payload)
        except InvalidEventError as error:
            self._complain(error)
            self.lost()
            return
        if position is None:
            self._refuse()
        else:
            self.deliver_at(position, proper)

    def deliver_at(self, position: Position, payload: bytes, /) -> None:
        """Pass on what is next in line; begin to read the log where something is missing."""
        if self._filling:
            self._seen = position
        elif self._is_next(position):
            self._quiet = False
            self._position = position
            self.dispatch(payload, position)
        elif not self._is_repeat(position):
            self.lost()
            self._seen = position

    def lost(self) -> None:
        """Read in the log what live payloads may have been lost. Nobody is told of a gap that is filled."""
        if not self._filling and not self.closed:
            self._filling = True
            self._spawn(self._fill)

    def check(self) -> None:
        """Look into the log if nothing came for a while: the live way may be dead without a sign."""
        if self._quiet:
            self.lost()
        self._quiet = True

    async def settle(self) -> None:
        """Find out where the log is, or read what the time without a subscription has brought."""
        if self._position is None:
            self._filling = True
            page = await self._log.read(self.channel, MOST_OFFSET, 0)
            self._position = Position(page.epoch, page.last)
            self._filling = False
            if self._is_ahead(self._seen):
                self.lost()
        else:
            self.lost()

    def _refuse(self) -> None:
        """Drop a payload that is not in the log: clients that reconnect could never get it."""
        if not self._refused:
            self._refused = True
            logger.error(
                "a payload on %r is refused (logged once per channel): it was published past the log, for"
                " example with RedisBroker instead of RedisStreamsBroker; publish with the kind of broker"
                " that this application uses",
                self.channel,
            )

    async def _fill(self) -> None:
        failures = 0
        while not self.closed:
            try:
                if await self._read_page():
                    if failures:
                        self.set_error(None)
                    return
                failures = 0
            except Exception as error:
                failures += 1
                self.set_error(error)
                delay = min(RETRY_MOST, RETRY_FIRST * 2 ** min(failures, 10))
                await anyio.sleep(delay * random.uniform(0.5, 1.0))

    async def _read_page(self) -> bool:
        """Deliver a page of the log. Return whether the listeners now have all that is known of it."""
        assert self._position is not None
        before = self._position
        page = await self._log.read(self.channel, before.offset, PAGE, max_bytes=PAGE_BYTES)
        # From here to the return nothing waits, so that no live payload falls between.
        self._go_through(page.seen_from(before))
        arrived = self._position.epoch == page.epoch and self._position.offset >= page.last
        if arrived and not self._is_ahead(self._seen):
            self._filling, self._seen = False, None
            return True
        if self._position == before:
            # Something live is ahead of the log. Either it comes, or the log has lost it again.
            self._seen = None
            await anyio.sleep(RETRY_FIRST)
        return False

    def _go_through(self, page: Page) -> None:
        assert self._position is not None
        placed = page.place_of(self._position)
        if placed is None:
            # Another log, or one that lost its end. This page may start anywhere in it; the next will
            # start where the loss is.
            self._position = page.start_after_loss(self._position)
            self.tell_gap(GapReason.EPOCH, self._position)
            return
        # Where a log goes on under a new epoch and has lost nothing, nobody is told of that.
        self._position = placed
        start = Position(page.epoch, page.first - 1)
        if start.offset > self._position.offset:
            self._position = start
            self.tell_gap(GapReason.EXPIRED, start)
        for record in page.records:
            if record.offset > self._position.offset:
                self._position = start.at(record.offset)
                self.dispatch(record.payload, self._position)

    def _is_next(self, position: Position) -> bool:
        known = self._position
        return known is not None and position.epoch == known.epoch and position.offset == known.offset + 1

    def _is_ahead(self, position: Position | None) -> bool:
        return position is not None and not self._is_repeat(position)

    def _is_repeat(self, position: Position) -> bool:
        known = self._position
        return known is not None and position.epoch == known.epoch and position.offset <= known.offset
