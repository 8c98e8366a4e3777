"""Resumption: whether the logs have the positions that a client has brought, when it comes back."""

import logging
from collections.abc import Mapping, Sequence

import anyio

from ..brokers import Page
from ..hub.hub import Hub
from ..wire.cursor import Cursor, Position

logger = logging.getLogger("livepush_asgi")

Ends = Mapping[str, Position | None]

# How long the bounds of a log are good for, in seconds, so that a crowd of clients asks for them once. A
# client that comes back with an epoch which began within that time is told of a gap that there is not.
BOUNDS_AGE = 0.05
# How long to wait, in seconds, before logs are asked again, and how long for all their answers.
RETRY, SEEK_TIMEOUT = 0.5, 10.0


class Resumption:
    """The positions of one client, until its stream has begun in all channels.

    A log that is asked *finds* a position or *refutes* it. One in another epoch, or beyond what this process
    has heard, only the log can tell from a forged one. These logs are asked before the stream opens: over a
    network the first one alone, then four, sixteen and so on side by side, until one refutes a position. The
    other channels are *deferred*: their logs are asked a while later, once for all streams that wait. So a
    hostile id costs one read instead of one for each channel, and a flood of them shares it.
    """

    __slots__ = (
        "_after_loss",
        "_channels",
        "_cursor_positions",
        "_found",
        "_hub",
        "_missed",
        "_opened_at",
        "_seek_at",
        "_suspect",
        "_unasked",
        "cursor",
        "deferred",
        "read_at",
    )

    def __init__(self, hub: Hub, channels: tuple[str, ...], last_event_id: str) -> None:
        #: None where the last event id is no cursor.
        self.cursor = Cursor.parse(last_event_id)
        #: The channels that the stream begins in when their logs have been asked.
        self.deferred: tuple[str, ...] = ()
        self._hub = hub
        self._channels = channels
        self._cursor_positions: dict[str, tuple[Position, ...]] = {}
        # By channel, for each log that was asked; None where the client is not in the log any more.
        self._found: dict[str, Position | None] = {}
        # Where the logs go on for a client that had events which they have lost.
        self._after_loss: dict[str, Position] = {}
        # Whether the client has missed what a log has not got any more.
        self._missed = False
        # Whether a log has refuted a position of this client, or lately one of another beyond the same log.
        self._suspect = False
        # The channels whose logs have to be asked before the stream opens; None until that is known.
        self._unasked: list[str] | None = None
        self._opened_at = hub.now()
        # When the deferred channels are due.
        self._seek_at = self._opened_at + RETRY
        #: When history may be read: a client with a wrong position that leaves at once costs no page.
        self.read_at = self._opened_at

    def knows(self, channel: str) -> bool:
        """Return whether the client may have missed something in the channel before this stream."""
        return self.cursor is None or self.cursor.knows(channel)

    def cursor_positions(self, channel: str) -> tuple[Position, ...]:
        """Return the positions that the client has brought for a channel."""
        if channel not in self._cursor_positions:
            self._cursor_positions[channel] = () if self.cursor is None else self.cursor.positions_in(channel)
        return self._cursor_positions[channel]

    def place_of(self, channel: str, end: Position) -> Position | None:
        """Return where the client is in the log that ends at `end`, as far as that is known here."""
        if channel in self._found:
            return self._found[channel]
        for place in self.cursor_positions(channel):
            if place.epoch == end.epoch:
                return place
        return None

    def after_loss(self, channel: str) -> Position | None:
        """Return where the log goes on for a client whose position it has refuted."""
        return self._after_loss.get(channel)

    def resumable(self) -> bool | None:
        """Return whether history still has what the client's cursor asks for, in every channel.

        None if the logs have to be asked first: then await `look_up`.
        """
        if self._unasked is None:
            beyond, within = self._find_in_known_bounds(self._channels, self._hub.now() - BOUNDS_AGE)
            self._unasked = beyond + within
        if not self._unasked:
            return not self._missed
        return False if self._must_defer else None

    async def look_up(self, timeout: float) -> bool:
        """Ask the logs of which that is not known; False if one takes longer than `timeout` seconds."""
        unasked = self._unasked or []
        # Other streams may have asked since.
        beyond, within = self._find_in_known_bounds(unasked, self._hub.now() - BOUNDS_AGE)
        left = beyond + within
        count = 1 if beyond and not self._hub.history.in_process else len(left)
        with anyio.move_on_after(timeout):
            while left and not self._must_defer:
                await self._ask(left[:count])
                left, count = left[count:], 4 * count
        self._seek_at = self._hub.now() + RETRY
        return not self._missed and all(channel in self._found for channel in unasked)

    def defer(self, ends: Ends) -> Ends:
        """Return those channels in which the client's place is known or taken; the others are deferred.

        No gap is told of a deferred channel before its log was asked.
        """
        self.deferred = tuple([name for name in self.deferred if name not in ends])
        unknown = [name for name, end in ends.items() if end is not None and self._is_unknown(name, end)]
        if not unknown:
            return ends
        self.deferred += tuple(unknown)
        return {name: end for name, end in ends.items() if name not in unknown}

    @property
    def is_due(self) -> bool:
        """Whether the time of the deferred channels has come."""
        return self._hub.now() >= self._seek_at

    async def seek(self) -> Ends:
        """Ask the logs of the deferred channels when they are due, and return where these end.

        A log that cannot be asked now is asked again. Never raises but when cancelled.
        """
        await anyio.sleep(max(0.0, self._seek_at - self._hub.now()))
        deferred = self.deferred
        with anyio.move_on_after(SEEK_TIMEOUT):
            # What any stream has read since this one opened is as good as a read of its own.
            beyond, within = self._find_in_known_bounds(deferred, self._opened_at)
            await self._ask(beyond + within)
        self._seek_at = self._hub.now() + RETRY
        return self._hub.catch_up(deferred)

    @property
    def _must_defer(self) -> bool:
        return self._suspect and not self._hub.history.in_process

    def _must_ask(self, channel: str, end: Position) -> bool:
        """Return whether only the log can tell whether the client is in it, and has missed what is gone."""
        if channel in self._found or not self.cursor_positions(channel):
            return False
        return self.place_of(channel, end) != end

    def _is_unknown(self, channel: str, end: Position) -> bool:
        if not self._must_ask(channel, end):
            return False
        place = self.place_of(channel, end)
        # A log that cannot be asked is read on from a position in its epoch. But for a suspect client each of
        # these reads would be its own.
        return place is None or (self._suspect and place.offset > end.offset)

    def _find_in_known_bounds(self, channels: Sequence[str], since: float) -> tuple[list[str], list[str]]:
        """Find the client in logs whose bounds were read since then; return the channels of the others.

        First those in which the position is beyond what this process has heard, then the rest.
        """
        within, beyond = list[str](), list[str]()
        for channel in channels:
            end = self._hub.end_of(channel)
            if end is None or not self._must_ask(channel, end):
                continue
            history, place = self._hub.history, self.place_of(channel, end)
            is_beyond = place is None or place.offset > end.offset
            page = history.known_bounds(channel, since)
            # Bounds that were read before the stream opened say nothing of a position beyond them, unless
            # only this process writes the log.
            is_new = since >= self._opened_at or (history.in_process and is_beyond)
            if page is not None and (place is None or is_new or page.has(place)):
                self._find_position(channel, page)
            elif is_beyond:
                beyond.append(channel)
                self._suspect |= page is not None and history.has_refuted(channel)
            else:
                within.append(channel)
        return beyond, within

    async def _ask(self, channels: list[str]) -> None:
        if len(channels) == 1 or self._hub.history.in_process:
            for channel in channels:
                await self._ask_one(channel)
        else:
            async with anyio.create_task_group() as asking:
                for channel in channels:
                    asking.start_soon(self._ask_one, channel)

    async def _ask_one(self, channel: str) -> None:
        try:
            page = await self._hub.history.read_bounds(channel)
        except Exception as error:
            logger.debug("the history of %r cannot be read: %s", channel, error)
        else:
            self._find_position(channel, page)

    def _find_position(self, channel: str, page: Page) -> None:
        """Find the client in a page of a log that was asked."""
        self._hub.refresh(channel, page.epoch)
        cursor_positions, history = self.cursor_positions(channel), self._hub.history
        place = next((place for place in cursor_positions if page.has(place)), None)
        if place is not None:
            # If events after it may be lost, the client stays there and is told when it reads on.
            place = self._found[channel] = page.seen_from(place).place_of(place) or place
            placed = page.place_of(place)
            self._missed = self._missed or placed is None or placed.offset < page.first - 1
            return
        # The client is told of a loss, and goes on as a stream does that is open at that moment.
        self._found[channel], self._after_loss[channel] = None, page.start_after_loss(cursor_positions[-1])
        self._missed = self._suspect = True
        history.refute(channel)
        if not history.in_process:
            self.read_at = self._hub.now() + BOUNDS_AGE
