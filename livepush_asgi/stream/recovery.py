"""Places: where one client is in the logs of its channels. Plain synchronous code, no input or output.

A channel of a stream is in one of two ways. *Live*: what the hub delivers is queued. *Behind*: nothing is
queued, for the history has it; the stream reads on from there at the pace of its client, and is live again
at the moment when it has all that the hub has delivered. Resuming begins behind; so does a client that was
too slow for its outbox. There is no third way, and so no seam at which an event could be missed or doubled.
"""

from collections.abc import Container, Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple, TypeVar

from ..brokers import Page
from ..grant import Replay
from ..hub.coalescing import Delivery
from ..wire.cursor import Cursor, Position, event_id
from ..wire.reasons import GapReason

ChannelGap = tuple[str, GapReason]
P = TypeVar("P", bound=Position | None)

# What most streams have of most things below. It is shared, so what changes is a mapping made anew.
_NONE: Mapping[str, Position] = MappingProxyType({})
_NOWHERE: Mapping[str, Position | None] = MappingProxyType({})


class Stretch(NamedTuple):
    """What a page of history adds to a stream: a gap before it, if any, and the records that follow."""

    gap: GapReason | None
    start: Position
    records: tuple[tuple[Position, bytes], ...]


class Places:
    """The positions of one stream. `last_event_id` is text from outside, None if the client is new."""

    __slots__ = (
        "_after_loss",
        "_ahead",
        "_begun",
        "_behind",
        "_brought",
        "_channels",
        "_claimed",
        "_cursor",
        "_found",
        "_most_replayed",
        "_replay",
        "_resuming",
        "_sent",
        "_unplaced",
        "settled",
    )

    def __init__(
        self, channels: tuple[str, ...], last_event_id: str | None, replay: Replay, most_replayed: int
    ) -> None:
        #: Whether every channel is live and nothing live can be a repeat: then all that comes is admitted.
        self.settled = False
        self._cursor = None if last_event_id is None else Cursor.parse(last_event_id)
        self._resuming = last_event_id is not None
        self._channels = channels
        self._replay = replay
        self._most_replayed = most_replayed
        # The positions in the cursor of each channel that was asked for, parsed once.
        self._brought: dict[str, tuple[Position, ...]] | None = None
        #: Where the client is in the logs that were asked; None where it is not in the log any more.
        self._found = _NOWHERE
        #: Where the logs go on for a client that had events which they have lost.
        self._after_loss = _NONE
        #: Where the logs ended when the stream began to listen.
        self._begun = _NONE
        #: Up to where the client has been sent each channel.
        self._sent: dict[str, Position] = {}
        #: The channels that the stream has not begun in. A tuple, because an empty set is 216 bytes.
        self._unplaced = channels
        #: Where history has gone further than the hub: what the hub delivers up to there are repeats.
        self._ahead = _NONE
        #: The channels that are read from history, in turn.
        self._behind: tuple[str, ...] = ()
        #: From where on the client has a claim to every event; a replay may begin before that.
        self._claimed = _NONE

    def begin(self, channel: str, end: Position | None) -> None:
        """Take note of where the log ends when the stream begins to listen: a new client begins here."""
        if end is not None:
            self._begun = _with(self._begun, channel, end)

    @property
    def behind(self) -> bool:
        """Whether any channel is to be read from history."""
        return bool(self._behind)

    @property
    def count_behind(self) -> int:
        """How many channels are to be read from history."""
        return len(self._behind)

    def is_behind(self, channel: str) -> bool:
        """Whether a channel is read from history."""
        return channel in self._behind

    @property
    def id(self) -> str:
        """The event id that names where the client is, in all channels.

        Every channel is in it. A channel that has no position, or that the stream has not begun in, has an
        entry without one, or the one that the client brought: without one the next stream tells of a gap.
        """
        if len(self._channels) == 1 and not self._unplaced:
            (channel,) = self._channels
            return event_id(channel, self._sent.get(channel))
        entries = [entry for channel in self._channels for entry in self._entries_of(channel)]
        # Two channels with one tag may carry the same positions.
        return ",".join(dict.fromkeys(entries))

    def _entries_of(self, channel: str) -> Iterable[str]:
        if self._cursor is not None and channel in self._unplaced:
            carried = self._brought_in(channel)
            if carried:
                return [event_id(channel, place) for place in carried]
        return (event_id(channel, self._sent.get(channel)),)

    def came_with(self, id: str) -> bool:
        """Return whether the client has brought this id."""
        return self._cursor is not None and str(self._cursor) == id

    @property
    def has_state(self) -> bool:
        """Whether the client, by its id, was sent the whole state of every channel of this stream."""
        cursor = self._cursor
        return cursor is not None and not cursor.state_owed and all(map(cursor.knows, self._channels))

    def place_of(self, channel: str, end: Position) -> Position | None:
        """Return where the client is in the log that ends at `end`, as far as that is known here."""
        if channel in self._found:
            return self._found[channel]
        return next((place for place in self._brought_in(channel) if place.epoch == end.epoch), None)

    def must_ask(self, channel: str, end: Position) -> bool:
        """Return whether only the log can tell whether the client is in it, and has missed what is gone."""
        if channel in self._found or not self._brought_in(channel):
            return False
        return self.place_of(channel, end) != end

    def find_in(self, channel: str, page: Page) -> bool:
        """Find the client in a page of a log; return whether all that came after it is there."""
        found = None
        for place in self._brought_in(channel):
            if page.has(place):
                # If events after it may be lost, the client stays there and is told when it reads on.
                found = page.seen_from(place).place_of(place) or place
                break
            # The client is told of a loss, and goes on as a stream does that is open at that moment.
            self._after_loss = _with(self._after_loss, channel, page.start_after_loss(place))
        self._found = _with(self._found, channel, found)
        if found is None:
            return False
        placed = page.place_of(found)
        return placed is not None and placed.offset >= page.first - 1

    def _brought_in(self, channel: str) -> tuple[Position, ...]:
        """Return the positions that the client has brought for a channel."""
        if self._cursor is None:
            return ()
        if self._brought is None:
            self._brought = {}
        if channel not in self._brought:
            self._brought[channel] = self._cursor.positions_in(channel)
        return self._brought[channel]

    def next_behind(self) -> tuple[str, Position]:
        """Return the channel to read next, and the position after which; each has its turn."""
        channel, *others = self._behind
        self._behind = (*others, channel)
        return channel, self._sent[channel]

    def place_new(self, ends: Mapping[str, Position | None]) -> None:
        """Begin in channels whose logs end so, None for no log; a client that is new has missed nothing."""
        self._unplaced = tuple([name for name in self._unplaced if name not in ends])
        for channel, end in ends.items():
            if end is not None:
                self._begin_in(channel, end)
        self._settle()

    def place(self, ends: Mapping[str, Position | None], late: Container[str]) -> list[ChannelGap]:
        """Begin in channels whose logs end so; None has no log. Return the gaps to tell.

        What the hub has delivered before does not count: the log has it.
        `late` channels came to be subscribed only after the stream had opened.
        """
        self._unplaced = tuple([name for name in self._unplaced if name not in ends])
        told = []
        for channel, end in ends.items():
            gap = self._place(channel, end, GapReason.BROKER if channel in late else None)
            told += [] if gap is None else [(channel, gap)]
        self._settle()
        return told

    def _place(self, channel: str, end: Position | None, unknown: GapReason | None) -> GapReason | None:
        if end is not None:
            found = self.place_of(channel, end)
            if found is not None:
                # It may be ahead of this process: another one, which had heard more, has served it before.
                return self._start(channel, end, found)
            if channel in self._after_loss:
                return self._start(channel, end, self._after_loss[channel]) or GapReason.EPOCH
            self._begin_in(channel, end)
        if not self._resuming or (self._cursor is not None and not self._cursor.knows(channel)):
            # The channel is new to the client, which has missed nothing before this stream.
            return unknown
        if self._cursor is None or end is None or not self._brought_in(channel):
            return GapReason.UNKNOWN
        return GapReason.EPOCH

    def _begin_in(self, channel: str, end: Position) -> None:
        """Begin where a client does that brings no position of its own for this log."""
        if self._replay == "new" and self._begun.get(channel) is end:
            # Nothing was delivered since the stream began to listen: the case of nearly all.
            self._sent[channel] = end
            return
        first = self._first_of(channel, end)
        self._start(channel, end, end if first == end.offset else Position(end.epoch, first))
        begun = self._begun_in(channel, end)
        if self._sent[channel].offset < begun:
            self._claimed = _with(self._claimed, channel, Position(end.epoch, begun))

    def admits(self, delivery: Delivery) -> bool:
        """Return whether a delivery is to be queued: the channel is live, and it is no repeat."""
        position, channel = delivery.position, delivery.channel
        if position is None:
            return True
        if channel in self._unplaced or channel in self._behind:
            return False
        return channel not in self._ahead or self._is_news(channel, position)

    def hears_gap(self, channel: str, position: Position | None) -> bool:
        """Return whether a gap is to be queued; a channel that is behind will find it in the history."""
        if position is None:
            return True
        if channel in self._behind or channel in self._unplaced:
            return False
        return channel not in self._ahead or self._is_news(channel, position)

    def _is_news(self, channel: str, position: Position) -> bool:
        """Return whether what the hub delivers is beyond what history had already brought."""
        ahead = self._ahead[channel]
        if ahead.epoch != position.epoch:
            # The log goes on under another epoch. What of it the client has, only the log can say.
            self.fall_behind([channel])
            return False
        if position.offset <= ahead.offset:
            return False
        self._ahead = _without(self._ahead, channel)
        self._settle()
        return True

    def mark_sent(self, channel: str, position: Position) -> None:
        """Take note that the client was sent a channel up to here."""
        self._sent[channel] = position

    def fall_behind(self, channels: Iterable[str]) -> None:
        """Read these channels from history, from where the client is."""
        for channel in channels:
            if channel not in self._behind:
                self._behind += (channel,)
            self._ahead = _without(self._ahead, channel)
        self._settle()

    def take_page(self, channel: str, page: Page, live_end: Position) -> Stretch:
        """Go through a page of history, and be live again if it reaches what was delivered live.

        To be called at once when the page has come, with the live end of that moment.
        """
        page = page.seen_from(self._sent[channel])
        gap, place = self._compare(channel, self._sent[channel], page)
        # In a log begun anew this page may start anywhere: the next one starts at the beginning.
        found = () if gap is GapReason.EPOCH else page.records
        origin, after = Position(page.epoch, 0), place.offset
        records = tuple([(origin.at(offset), payload) for offset, payload in found if offset > after])
        self._sent[channel] = place
        start, end = place, records[-1][0] if records else place
        if end.epoch == live_end.epoch and end.offset >= live_end.offset:
            self._behind = tuple(name for name in self._behind if name != channel)
            if end.offset > live_end.offset:
                self._ahead = _with(self._ahead, channel, end)
            self._settle()
        # From now on its place is its claim.
        self._claimed = _without(self._claimed, channel)
        return Stretch(gap, start, records)

    def _compare(self, channel: str, place: Position, page: Page) -> tuple[GapReason | None, Position]:
        placed = page.place_of(place)
        if placed is None:
            return GapReason.EPOCH, page.start_after_loss(place)
        if placed.offset >= page.first - 1:
            return None, placed
        claimed = page.place_of(self._claimed.get(channel, place))
        hurt = claimed is None or claimed.offset < page.first - 1
        return GapReason.EXPIRED if hurt else None, Position(page.epoch, page.first - 1)

    def _start(self, channel: str, end: Position, place: Position) -> GapReason | None:
        gap = None
        if end.offset - place.offset > self._most_replayed:
            gap, place = GapReason.OVERFLOW, Position(end.epoch, end.offset - self._most_replayed)
        self._sent[channel] = place
        if place != end:
            self._behind += (channel,)
        return gap

    def _first_of(self, channel: str, end: Position) -> int:
        offset = self._begun_in(channel, end)
        match self._replay:
            case "new":
                return offset
            case "last":
                return max(0, offset - 1)
            case "all":
                return max(0, offset - self._most_replayed)
            case number:
                return max(0, offset - min(number, self._most_replayed))

    def _begun_in(self, channel: str, end: Position) -> int:
        begun = self._begun.get(channel, end)
        return begun.offset if begun.epoch == end.epoch else end.offset

    def _settle(self) -> None:
        if not self._unplaced:
            # Of use only until every channel has begun.
            self._found, self._after_loss, self._begun, self._brought = _NOWHERE, _NONE, _NONE, None
        self.settled = not (self._unplaced or self._behind or self._ahead)


def _with(places: Mapping[str, P], channel: str, place: P) -> Mapping[str, P]:
    if not isinstance(places, dict):
        return {channel: place}
    places[channel] = place
    return places


def _without(places: Mapping[str, Position], channel: str) -> Mapping[str, Position]:
    if channel not in places:
        return places
    return {name: place for name, place in places.items() if name != channel} or _NONE
