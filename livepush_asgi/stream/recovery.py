"""RecoveryState: where one client is in the logs of its channels. Plain synchronous code, no input or output.

A channel of a stream is in one of two states. *Live*: what the hub delivers is queued. *Behind*: nothing is
queued, for the history has it; the stream reads on from there at the pace of its client, and is live again
at the moment when it has all that the hub has delivered. Resuming begins behind; so does a client that was
too slow for its outbox. There is no third state, and so no seam at which an event could be missed or doubled.

`resumption.py` asks the logs for the positions of a client that comes back; `history_reader.py` reads on.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from ..brokers import Page
from ..grant import Replay
from ..hub.delivery import Delivery
from ..wire.cursor import Position, event_id
from ..wire.reasons import GapReason
from .resumption import Ends, Resumption

ChannelGap = tuple[str, GapReason]

# Most streams have none of most things below. This one is shared, so each change makes a new mapping.
_NONE: Mapping[str, Position] = MappingProxyType({})


class PageSlice(NamedTuple):
    """What a page of history adds to a stream: a gap, if any, and the records that follow `start`."""

    gap: GapReason | None
    start: Position
    records: tuple[tuple[Position, bytes], ...]


class RecoveryState:
    """The positions of one stream. `resumption` is None if the client is new."""

    __slots__ = (
        "_ahead",
        "_channels",
        "_cursor",
        "_guaranteed",
        "_most_replayed",
        "_replay",
        "_sent",
        "_start_ends",
        "_unstarted",
        "behind",
        "read_at",
        "resumption",
        "settled",
    )

    def __init__(
        self, channels: tuple[str, ...], resumption: Resumption | None, replay: Replay, most_replayed: int
    ) -> None:
        #: Whether every channel is live and nothing live can be a repeat: then all that comes is admitted.
        self.settled = False
        #: When history may be read, by the loop's clock.
        self.read_at = 0.0
        #: What a client that comes back has brought. None for a new client, and when every channel has begun.
        self.resumption = resumption
        self._cursor = None if resumption is None else resumption.cursor
        self._channels = channels
        self._replay = replay
        self._most_replayed = most_replayed
        # Where the logs ended when the stream began to listen.
        self._start_ends = _NONE
        # Up to where the client has been sent each channel.
        self._sent: dict[str, Position] = {}
        # The channels that the stream has not begun in. A tuple, because an empty set is 216 bytes.
        self._unstarted = channels
        # Where history has gone further than the hub: what the hub delivers up to there are repeats.
        self._ahead = _NONE
        #: The channels that are read from history, in turn.
        self.behind: tuple[str, ...] = ()
        # From where on the client has a claim to every event; a replay may begin before that.
        self._guaranteed = _NONE

    @property
    def must_seek(self) -> bool:
        """Whether the resumption has to `seek` for deferred channels before more history is read."""
        resumption = self.resumption
        if resumption is None or not resumption.deferred:
            return False
        return resumption.is_due or not self.behind

    @property
    def id(self) -> str:
        """The event id that names where the client is, in all channels.

        Every channel is in it. A channel that has no position, or that the stream has not begun in, has an
        entry without one, or the one that the client brought: without one the next stream tells of a gap.
        """
        if len(self._channels) == 1 and not self._unstarted:
            (channel,) = self._channels
            return event_id(channel, self._sent.get(channel))
        entries = [entry for channel in self._channels for entry in self._entries_of(channel)]
        # Two channels with one tag may carry the same positions.
        return ",".join(dict.fromkeys(entries))

    def _entries_of(self, channel: str) -> Iterable[str]:
        if self.resumption is not None and channel in self._unstarted:
            cursor_positions = self.resumption.cursor_positions(channel)
            if cursor_positions:
                return [event_id(channel, place) for place in cursor_positions]
        return (event_id(channel, self._sent.get(channel)),)

    def has_cursor(self, id: str) -> bool:
        """Return whether the client has brought this id."""
        return self._cursor is not None and str(self._cursor) == id

    @property
    def has_state(self) -> bool:
        """Whether the client, by its id, was sent the whole state of every channel of this stream."""
        cursor = self._cursor
        return cursor is not None and not cursor.state_owed and all(map(cursor.knows, self._channels))

    def record_start(self, channel: str, end: Position | None) -> None:
        """Take note of where the log ends when the stream begins to listen: a new client begins here."""
        if end is not None:
            self._start_ends = _with(self._start_ends, channel, end)

    def start_channels(self, ends: Ends, *, late: bool = False) -> list[ChannelGap]:
        """Begin in channels whose logs end so, None for no log. Return the gaps to tell.

        What the hub has delivered before does not count: the log has it. Channels whose logs have to be asked
        first are deferred. `late` channels came to be subscribed only after the stream had opened.
        """
        if self.resumption is not None:
            ends, self.read_at = self.resumption.defer(ends), self.resumption.read_at
        self._unstarted = tuple([name for name in self._unstarted if name not in ends])
        gaps = [(channel, self._start_channel(channel, end, late)) for channel, end in ends.items()]
        self._settle()
        return [(channel, gap) for channel, gap in gaps if gap is not None]

    def _start_channel(self, channel: str, end: Position | None, late: bool) -> GapReason | None:
        resumption = self.resumption
        if end is not None:
            if resumption is not None:
                place = resumption.place_of(channel, end)
                if place is not None:
                    # It may be ahead of this process: another one, which had heard more, has served it.
                    return self._start_at(channel, end, place)
                place = resumption.after_loss(channel)
                if place is not None:
                    return self._start_at(channel, end, place) or GapReason.EPOCH
            self._start_new(channel, end)
        if resumption is not None and resumption.knows(channel):
            return GapReason.UNKNOWN
        # The channel is new to the client, which has missed nothing before this stream.
        return GapReason.BROKER if late else None

    def _start_new(self, channel: str, end: Position) -> None:
        """Begin where a client does that brings no position of its own for this log."""
        if self._replay == "new" and self._start_ends.get(channel) is end:
            # Nothing was delivered since the stream began to listen: the case of nearly all.
            self._sent[channel] = end
            return
        begun = self._start_ends.get(channel, end)
        claimed = begun.offset if begun.epoch == end.epoch else end.offset
        first = max(0, claimed - self._replayed())
        self._start_at(channel, end, end if first == end.offset else end.at(first))
        if self._sent[channel].offset < claimed:
            self._guaranteed = _with(self._guaranteed, channel, end.at(claimed))

    def _replayed(self) -> int:
        """Return how many events a new client is sent from before its stream."""
        match self._replay:
            case "new":
                return 0
            case "last":
                return 1
            case "all":
                return self._most_replayed
            case number:
                return min(number, self._most_replayed)

    def _start_at(self, channel: str, end: Position, place: Position) -> GapReason | None:
        gap = None
        if end.offset - place.offset > self._most_replayed:
            gap, place = GapReason.OVERFLOW, end.at(end.offset - self._most_replayed)
        self._sent[channel] = place
        if place != end:
            self.behind += (channel,)
        return gap

    def admits(self, delivery: Delivery) -> bool:
        """Return whether what the hub delivers, a gap too, is to be queued.

        It is where the channel is live and this is no repeat; what a channel that is behind has missed is in
        the history, gaps too.
        """
        position, channel = delivery.position, delivery.channel
        if position is None:
            return True
        if channel in self._unstarted or channel in self.behind:
            return False
        return channel not in self._ahead or self._is_new(channel, position)

    def _is_new(self, channel: str, position: Position) -> bool:
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
            if channel not in self.behind:
                self.behind += (channel,)
            self._ahead = _without(self._ahead, channel)
        self._settle()

    def next_behind(self) -> tuple[str, Position]:
        """Return the channel to read next, and the position after which; each has its turn."""
        channel, *others = self.behind
        self.behind = (*others, channel)
        return channel, self._sent[channel]

    def take_page(self, channel: str, page: Page, live_end: Position) -> PageSlice:
        """Go through a page of history, and be live again if it reaches what was delivered live.

        To be called at once when the page has come, with the live end of that moment.
        """
        page = page.seen_from(self._sent[channel])
        gap, start = self._compare(channel, self._sent[channel], page)
        # In a log begun anew this page may start anywhere: the next one starts at the beginning.
        found = () if gap is GapReason.EPOCH else page.records
        records = tuple([(start.at(offset), payload) for offset, payload in found if offset > start.offset])
        self._sent[channel] = start
        end = records[-1][0] if records else start
        if end.epoch == live_end.epoch and end.offset >= live_end.offset:
            self.behind = tuple(name for name in self.behind if name != channel)
            if end.offset > live_end.offset:
                self._ahead = _with(self._ahead, channel, end)
            self._settle()
        # From now on its place is its claim.
        self._guaranteed = _without(self._guaranteed, channel)
        return PageSlice(gap, start, records)

    def _compare(self, channel: str, place: Position, page: Page) -> tuple[GapReason | None, Position]:
        """Return what is missing between a place and a page, and where the client goes on in the page."""
        placed = page.place_of(place)
        if placed is None:
            return GapReason.EPOCH, page.start_after_loss(place)
        if placed.offset >= page.first - 1:
            return None, placed
        claimed = page.place_of(self._guaranteed.get(channel, place))
        is_missing = claimed is None or claimed.offset < page.first - 1
        return GapReason.EXPIRED if is_missing else None, Position(page.epoch, page.first - 1)

    def _settle(self) -> None:
        if not self._unstarted:
            self.resumption, self._start_ends = None, _NONE
        self.settled = not (self._unstarted or self.behind or self._ahead)


def _with(places: Mapping[str, Position], channel: str, place: Position) -> Mapping[str, Position]:
    if not isinstance(places, dict):
        return {channel: place}
    places[channel] = place
    return places


def _without(places: Mapping[str, Position], channel: str) -> Mapping[str, Position]:
    if channel not in places:
        return places
    return {name: place for name, place in places.items() if name != channel} or _NONE
