"""Resumption: checks the positions of a client that reconnects against the logs."""

import logging
from collections.abc import Mapping, Sequence

import anyio

from ..brokers import Page
from ..hub.hub import Hub
from ..wire.cursor import Cursor, Position, event_id, log_owed_id
from ..wire.reasons import GapReason

logger = logging.getLogger("livepush_asgi")

Ends = Mapping[str, Position | None]

# How long the bounds of a log stay valid, in seconds, so that many clients share one read.
BOUNDS_AGE = 0.05
# How long to wait before logs are read again, and how long these reads may take, in seconds.
RETRY, SEEK_TIMEOUT = 0.5, 10.0


class Resumption:
    """The positions of one client, until all channels of its stream have started.

    The bounds of a log *confirm* a position or *refute* it. A position in another epoch, or beyond the events
    that this process has received, may be forged; only the log can tell. The bounds of these logs are read
    before the stream opens: over a network the first one alone, then four, sixteen and so on concurrently,
    until one refutes a position. The other channels are *deferred*: their logs are read later, once for all
    waiting streams. So a hostile id costs one read instead of one for each channel, and a flood of such ids
    shares that read.
    """

    __slots__ = (
        "_after_loss",
        "_channels",
        "_confirmed",
        "_cursor_positions",
        "_hub",
        "_missed",
        "_opened_at",
        "_pages",
        "_seek_at",
        "_suspect",
        "_unread",
        "cursor",
        "deferred",
        "known_gaps",
        "read_at",
        "sought",
    )

    def __init__(self, hub: Hub, channels: tuple[str, ...], last_event_id: str) -> None:
        #: None if the last event id is no cursor.
        self.cursor = Cursor.parse(last_event_id)
        #: The channels that start only after their logs have been read.
        self.deferred: tuple[str, ...] = ()
        #: The gaps after confirmed positions. A stream without a snapshot finds them in history, in place.
        self.known_gaps: dict[str, GapReason] = {}
        #: Whether `seek` was called.
        self.sought = False
        self._hub = hub
        self._channels = channels
        self._cursor_positions: dict[str, tuple[Position, ...]] = {}
        # The confirmed position in each log that was read; None if the log has refuted it.
        self._confirmed: dict[str, Position | None] = {}
        # The position where a log goes on for a client whose position it has refuted.
        self._after_loss: dict[str, Position] = {}
        # The bounds of each doubtful log in which the client's position was looked up.
        self._pages: dict[str, Page] = {}
        # Whether the client has missed an event that its log does not have any more.
        self._missed = False
        # Whether a log has refuted a position of this client, or lately that of another client.
        self._suspect = False
        # The channels whose logs have to be read before the stream opens; None until that is known.
        self._unread: list[str] | None = None
        self._opened_at = hub.now()
        # When to read the logs of the deferred channels.
        self._seek_at = self._opened_at + RETRY
        #: The earliest time to read history: a client with a wrong position that disconnects at once costs no
        #: page.
        self.read_at = self._opened_at

    def knows(self, channel: str) -> bool:
        """Return whether the client may have missed an event of the channel before this stream."""
        return self.cursor is None or self.cursor.knows(channel)

    def cursor_positions(self, channel: str) -> tuple[Position, ...]:
        """Return the positions of a channel in the client's cursor."""
        if channel not in self._cursor_positions:
            self._cursor_positions[channel] = () if self.cursor is None else self.cursor.positions_in(channel)
        return self._cursor_positions[channel]

    def entries(self, channel: str) -> list[str]:
        """Return the entries of a channel in the client's cursor."""
        return [
            log_owed_id(channel, position.epoch)
            if self.owes_log(channel, position)
            else event_id(channel, position)
            for position in self.cursor_positions(channel)
        ]

    def owes_log(self, channel: str, position: Position) -> bool:
        """Return whether the client at this position is owed the channel's whole log."""
        return not position.offset and self.cursor is not None and self.cursor.owes_log(channel)

    def must_tell_doubts(self, channel: str, position: Position) -> bool:
        """Return whether the client is owed a log of which acknowledged events may be missing.

        In any other log, its beginning is a position like each other one.
        """
        return self.owes_log(channel, position) and self._hub.is_doubtful(channel)

    def known_position(self, channel: str, end: Position) -> Position | None:
        """Return the client's position in the log that ends at `end`, if it is known without a read."""
        if channel in self._confirmed:
            return self._confirmed[channel]
        for position in self.cursor_positions(channel):
            if position.epoch == end.epoch:
                return position
        return None

    def after_loss(self, channel: str) -> Position | None:
        """Return the position where the log goes on for a client whose position it has refuted."""
        return self._after_loss.get(channel)

    def skipped_to(self, channel: str, position: Position) -> Position:
        """Return the same place, so that each later end at which events may be missing is after it."""
        page = self._pages.get(channel)
        if page is None or position.offset > page.last:
            return position
        return page.in_oldest_epoch(Position(page.epoch, position.offset))

    def resumable(self) -> bool | None:
        """Return whether history still has every event after the client's positions.

        None if the logs have to be read first: then await `look_up`.
        """
        if self._unread is None:
            beyond, within = self._check_known_bounds(self._channels, self._hub.now() - BOUNDS_AGE)
            self._unread = beyond + within
        if not self._unread:
            return not self._missed
        return False if self._must_defer else None

    async def look_up(self, timeout: float) -> bool:
        """Read the logs of unknown positions. Return `resumable`, or False after `timeout` seconds."""
        unread = self._unread or []
        # Other streams may have read the bounds since.
        beyond, within = self._check_known_bounds(unread, self._hub.now() - BOUNDS_AGE)
        pending = beyond + within
        count = 1 if beyond and not self._hub.history.in_process else len(pending)
        with anyio.move_on_after(timeout):
            while pending and not self._must_defer:
                await self._read_logs(pending[:count])
                pending, count = pending[count:], 4 * count
        self._seek_at = self._hub.now() + RETRY
        return not self._missed and all(channel in self._confirmed for channel in unread)

    def defer(self, ends: Ends) -> Ends:
        """Return the channels that can start, and defer the others.

        A deferred channel gets no gap before its log has been read.
        """
        self.deferred = tuple([name for name in self.deferred if name not in ends])
        unknown = [name for name, end in ends.items() if end is not None and self._is_unknown(name, end)]
        if not unknown:
            return ends
        self.deferred += tuple(unknown)
        return {name: end for name, end in ends.items() if name not in unknown}

    @property
    def is_due(self) -> bool:
        """Whether to read the logs of the deferred channels now."""
        return self._hub.now() >= self._seek_at

    async def seek(self) -> Ends:
        """Wait, read the bounds of the deferred channels' logs, and return the current end of each log.

        A log that cannot be read is read again later. Raises only when cancelled.
        """
        await anyio.sleep(max(0.0, self._seek_at - self._hub.now()))
        deferred, self.sought = self.deferred, True
        with anyio.move_on_after(SEEK_TIMEOUT):
            # Bounds that another stream has read since this one opened are recent enough.
            beyond, within = self._check_known_bounds(deferred, self._opened_at)
            await self._read_logs(beyond + within)
        self._seek_at = self._hub.now() + RETRY
        return self._hub.catch_up(deferred)

    @property
    def _must_defer(self) -> bool:
        return self._suspect and not self._hub.history.in_process

    def _needs_read(self, channel: str, end: Position) -> bool:
        """Return whether only the log can confirm the client's position."""
        if channel in self._confirmed or not self.cursor_positions(channel):
            return False
        position = self.known_position(channel, end)
        return position != end or self.must_tell_doubts(channel, position)

    def _is_unknown(self, channel: str, end: Position) -> bool:
        if not self._needs_read(channel, end):
            return False
        position = self.known_position(channel, end)
        # A position in the log's epoch needs no confirmation: reading on from it finds the gap. But a
        # suspect client could cause a read of its own for each channel, so its channels wait.
        return position is None or (self._suspect and position.offset > end.offset)

    def _check_known_bounds(self, channels: Sequence[str], since: float) -> tuple[list[str], list[str]]:
        """Check positions against the bounds that were read after `since`. Return the unchecked channels.

        The first list has the channels whose position is beyond the events that this process has received.
        """
        within, beyond = list[str](), list[str]()
        for channel in channels:
            end = self._hub.end_of(channel)
            if end is None or not self._needs_read(channel, end):
                continue
            history, position = self._hub.history, self.known_position(channel, end)
            is_beyond = position is None or position.offset > end.offset
            page = history.known_bounds(channel, since)
            # Bounds that were read before the stream opened cannot refute a position, which may be newer,
            # unless only this process writes the log.
            is_new = history.known_bounds(channel, self._opened_at) is not None
            is_new = is_new or (history.in_process and is_beyond)
            if page is not None and (is_new or any(map(page.has, self.cursor_positions(channel)))):
                self._check_position(channel, page)
            elif is_beyond:
                beyond.append(channel)
                self._suspect |= page is not None and history.has_refuted(channel)
            else:
                within.append(channel)
        return beyond, within

    async def _read_logs(self, channels: list[str]) -> None:
        if len(channels) == 1 or self._hub.history.in_process:
            for channel in channels:
                await self._read_log(channel)
        else:
            async with anyio.create_task_group() as readers:
                for channel in channels:
                    readers.start_soon(self._read_log, channel)

    async def _read_log(self, channel: str) -> None:
        try:
            page = await self._hub.history.read_bounds(channel)
        except Exception as error:
            logger.debug("the history of %r cannot be read: %s", channel, error)
        else:
            self._check_position(channel, page)

    def _check_position(self, channel: str, page: Page) -> None:
        """Confirm or refute the client's position, given the bounds of its log."""
        self._hub.refresh(channel, page.epoch)
        cursor_positions, history = self.cursor_positions(channel), self._hub.history
        if page.doubtful:
            self._pages[channel] = page
        position = next((position for position in cursor_positions if page.has(position)), None)
        if position is not None:
            if self.owes_log(channel, position):
                position = page.in_oldest_epoch(position)
            # If events after it may be lost, reading on from there sends the gap.
            position = self._confirmed[channel] = page.seen_from(position).locate(position) or position
            placed = page.locate(position)
            if placed is None or placed.offset < page.first - 1:
                self._missed = True
                self.known_gaps[channel] = GapReason.EPOCH if placed is None else GapReason.EXPIRED
            return
        # The client is sent a gap, and goes on where an open stream would after the loss.
        self._confirmed[channel] = None
        self._after_loss[channel] = page.start_after_loss(cursor_positions[-1])
        self._missed = self._suspect = True
        history.refute(channel)
        if not history.in_process:
            self.read_at = self._hub.now() + BOUNDS_AGE
