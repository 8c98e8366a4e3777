"""RecoveryState: the position of one client in the logs of its channels. Synchronous code without I/O.

A started channel of a stream is live or behind. *Live*: the deliveries of the hub are queued. *Behind*: they
are not queued, because history has them; the stream reads history at the pace of its client, and the channel
is live again when the stream has read everything that the hub has delivered. The channels of a client that
resumes begin behind, and those of a client that was too slow for its outbox fall behind. There is no third
state, so no transition can lose or repeat an event.

`resumption.py` looks up the positions of a client that reconnects; `history_reader.py` reads history.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from ..brokers import Page
from ..grant import Replay
from ..hub.delivery import Batch, Delivery, gap_delivery
from ..hub.shared_reads import SharedPage
from ..wire.cursor import Position, event_id, log_owed_id
from ..wire.reasons import GapReason
from .resumption import Ends, Resumption

ChannelGap = tuple[str, GapReason]

# Most mappings of most streams are empty. All streams share this empty one, to save memory.
_NONE: Mapping[str, Position] = MappingProxyType({})


class RecoveryState:
    """The positions of one stream.

    `ends` gets the current end of each log when the stream is attached to its channel, if it is subscribed.
    `resumption` is None for a new client.
    """

    __slots__ = (
        "_ahead",
        "_channels",
        "_cursor",
        "_guaranteed",
        "_most_replayed",
        "_replay",
        "_replay_after",
        "_sent",
        "_start_ends",
        "_unstarted",
        "behind",
        "read_at",
        "resumption",
        "settled",
    )

    def __init__(
        self,
        channels: tuple[str, ...],
        ends: dict[str, Position],
        resumption: Resumption | None,
        replay: Replay,
        most_replayed: int,
    ) -> None:
        #: Whether every channel is live and no delivery can be a repeat, so that each delivery is admitted.
        self.settled = False
        #: The earliest time to read history, by the loop's clock.
        self.read_at = 0.0
        #: The positions of a client that reconnects. None for a new client, and after every channel has
        #: started.
        self.resumption = resumption
        self._cursor = None if resumption is None else resumption.cursor
        self._channels = channels
        self._replay = replay
        self._most_replayed = most_replayed
        # The end of each log at the time when the stream was attached to its channel.
        self._start_ends: Mapping[str, Position] = ends
        # The position up to which the client has been sent each channel.
        self._sent: dict[str, Position] = {}
        # The channels that have not started. A tuple, because an empty set takes 216 bytes.
        self._unstarted = channels
        # The position up to which history was read ahead of the hub: deliveries up to it are repeats.
        self._ahead = _NONE
        #: The channels that are behind, in the order in which they are read.
        self.behind: tuple[str, ...] = ()
        # The position after which a missing event is a gap. A replay may start before it.
        self._guaranteed = _NONE
        # Where the first read of a channel begins, for a client that is owed the whole log: `Limits` may
        # skip its oldest events.
        self._replay_after = _NONE

    @property
    def must_seek(self) -> bool:
        """Whether the resumption has to `seek` deferred channels before more history is read."""
        resumption = self.resumption
        if resumption is None or not resumption.deferred:
            return False
        return resumption.is_due or not self.behind

    @property
    def must_seek_first(self) -> bool:
        """Whether logs that were never read may tell of more gaps."""
        resumption = self.resumption
        return resumption is not None and bool(resumption.deferred) and not resumption.sought

    @property
    def id(self) -> str:
        """The event id that encodes the client's position in every channel.

        A channel that has not started has the entries of the client's cursor. A channel without any position
        has an entry without one; the next stream then sends a gap.
        """
        if len(self._channels) == 1 and not self._unstarted:
            return self._entries_of(self._channels[0])
        return join_entries(self.entries())

    def entries(self) -> dict[str, str]:
        """Return the entries of each channel in the id."""
        if not (self._unstarted or self._replay_after):
            return {channel: event_id(channel, self._sent.get(channel)) for channel in self._channels}
        return {channel: self._entries_of(channel) for channel in self._channels}

    def _entries_of(self, channel: str) -> str:
        if self.resumption is not None and channel in self._unstarted:
            entries = self.resumption.entries(channel)
            if entries:
                return ",".join(entries)
        if channel in self._replay_after:
            return log_owed_id(channel, self._sent[channel].epoch)
        return event_id(channel, self._sent.get(channel))

    def has_cursor(self, id: str) -> bool:
        """Return whether this id is the client's cursor."""
        return self._cursor is not None and str(self._cursor) == id

    @property
    def has_state(self) -> bool:
        """Whether the client's cursor says that it has the whole state of every channel of this stream."""
        cursor = self._cursor
        return cursor is not None and not cursor.state_owed and all(map(cursor.knows, self._channels))

    def record_start(self, channel: str, end: Position | None) -> None:
        """Record the end of a log when the stream is attached to its channel: a new client starts here."""
        if end is not None:
            self._start_ends = _with(self._start_ends, channel, end)

    def start_channels(self, ends: Ends, *, late: bool = False) -> list[ChannelGap]:
        """Start channels, given the current end of each log, or None without a log. Return the gaps.

        Earlier deliveries of the hub were not queued; the log has them. Channels whose logs have to be read
        first are deferred. `late` channels were subscribed after the stream had opened.
        """
        if self.resumption is not None:
            ends, self.read_at = self.resumption.defer(ends), self.resumption.read_at
        self._unstarted = tuple([name for name in self._unstarted if name not in ends])
        gaps = []
        for channel, end in ends.items():
            if (gap := self._start_channel(channel, end, late)) is not None:
                gaps.append((channel, gap))
        self._settle()
        return gaps

    def _start_channel(self, channel: str, end: Position | None, late: bool) -> GapReason | None:
        resumption = self.resumption
        if end is not None:
            if resumption is not None:
                position = resumption.known_position(channel, end)
                if position is not None:
                    if resumption.must_tell_doubts(channel, position):
                        self._start_at_beginning(channel, end)
                        return None
                    # The position may be ahead of this process, if another process has received more events.
                    return self._start_at(channel, end, position)
                position = resumption.after_loss(channel)
                if position is not None:
                    return self._start_at(channel, end, position) or GapReason.EPOCH
            self._start_new(channel, end)
        if resumption is not None and resumption.knows(channel):
            return GapReason.UNKNOWN
        # The client's cursor does not have the channel, so the client has missed nothing before this stream.
        return GapReason.BROKER if late else None

    def _start_new(self, channel: str, end: Position) -> None:
        """Start a channel for a client without a position in this log."""
        if self._replay == "new" and self._start_ends.get(channel) is end:
            # Nothing was delivered since the stream was attached: the usual case.
            self._sent[channel] = end
            return
        replayed = self._replayed()
        if replayed is None:
            self._start_at_beginning(channel, end)
            return
        start_end = self._start_ends.get(channel, end)
        guaranteed = start_end.offset if start_end.epoch == end.epoch else end.offset
        first = max(0, guaranteed - replayed)
        self._start_at(channel, end, end if first == end.offset else end.at(first))
        if self._sent[channel].offset < guaranteed:
            self._guaranteed = _with(self._guaranteed, channel, end.at(guaranteed))

    def _replayed(self) -> int | None:
        """Return how many earlier events a new client is sent if the log has them, or None for all."""
        match self._replay:
            case "new":
                return 0
            case "last":
                return 1
            case "all":
                return None
            case number:
                return min(number, self._most_replayed)

    def _start_at_beginning(self, channel: str, end: Position) -> None:
        """Start a channel for a client that is owed every event of the log.

        Its ids say so until its first page has told whether events are missing.
        """
        self._sent[channel] = end.at(0)
        self.behind += (channel,)
        first = max(0, end.offset - self._most_replayed)
        self._replay_after = _with(self._replay_after, channel, end.at(first))

    def _start_at(self, channel: str, end: Position, position: Position) -> GapReason | None:
        gap = None
        if end.offset - position.offset > self._most_replayed:
            gap, position = GapReason.OVERFLOW, end.at(end.offset - self._most_replayed)
            if self.resumption is not None:
                position = self.resumption.skipped_to(channel, position)
        self._sent[channel] = position
        if position != end:
            self.behind += (channel,)
        return gap

    def admits(self, delivery: Delivery) -> bool:
        """Return whether to queue a delivery of the hub, which may be a gap.

        True if the channel is live and the delivery is no repeat. If the channel is behind, the stream reads
        the event from history, and finds a gap there too.
        """
        position, channel = delivery.position, delivery.channel
        if position is None:
            return True
        if self.reads_log(channel):
            return False
        return channel not in self._ahead or self._is_new(channel, position)

    def reads_log(self, channel: str) -> bool:
        """Return whether a channel is behind, or not started: its log has what is delivered live now."""
        return channel in self._unstarted or channel in self.behind

    def _is_new(self, channel: str, position: Position) -> bool:
        """Return whether a delivery of the hub is after the events that were read ahead from history."""
        ahead = self._ahead[channel]
        if ahead.epoch != position.epoch:
            # The log has another epoch. Only the log can tell which of its events the client has.
            self.fall_behind([channel])
            return False
        if position.offset <= ahead.offset:
            return False
        self._ahead = _without(self._ahead, channel)
        self._settle()
        return True

    def mark_sent(self, channel: str, position: Position) -> None:
        """Record that the client has been sent a channel up to this position."""
        self._sent[channel] = position

    def fall_behind(self, channels: Iterable[str]) -> None:
        """Read these channels from history, from the client's position on."""
        for channel in channels:
            if channel not in self.behind:
                self.behind += (channel,)
            self._ahead = _without(self._ahead, channel)
        self._settle()

    def next_behind(self) -> tuple[str, Position]:
        """Return the channel to read next and the position after which to read."""
        channel = self.behind[0]
        return channel, self._read_position(channel)

    def is_at(self, channel: str, position: Position) -> bool:
        """Return whether a channel is still to be read from this position on."""
        return self._read_position(channel) == position

    def _read_position(self, channel: str) -> Position:
        return self._replay_after.get(channel) or self._sent[channel]

    def rotate_behind(self) -> None:
        """Read the other channels that are behind before the first one is read again."""
        self.behind = (*self.behind[1:], self.behind[0])

    def take_page(self, channel: str, shared: SharedPage, live_end: Position) -> Batch:
        """Return the part of a page to send. The channel is live again if the page reaches `live_end`.

        `live_end` is the end of the hub's deliveries at this moment; nothing may be awaited in between.
        """
        position, is_beginning = self._read_position(channel), channel in self._replay_after
        if is_beginning:
            position = shared.page.in_oldest_epoch(position)
        shared = shared.seen_from(position)
        gap, start = self._compare(channel, position, shared.page)
        if is_beginning and gap is None and start.offset:
            gap = GapReason.EXPIRED if start.offset < shared.page.first else GapReason.OVERFLOW
        # In a new log this page may start anywhere; the next page starts at the beginning.
        found = Batch(()) if gap is GapReason.EPOCH else shared.after(start.offset)
        self._sent[channel] = start
        end = found.position or start
        if end.epoch == live_end.epoch and end.offset >= live_end.offset:
            self.behind = tuple([name for name in self.behind if name != channel])
            if end.offset > live_end.offset:
                self._ahead = _with(self._ahead, channel, end)
            self._settle()
        # From now on every event after the client's position counts.
        self._guaranteed = _without(self._guaranteed, channel)
        self._replay_after = _without(self._replay_after, channel)
        if gap is None:
            return found
        return Batch([gap_delivery(channel, gap, start), *found.deliveries], has_gap=True)

    def ends_read(self, ends: Ends) -> dict[str, Position]:
        """Return up to where each started channel was read, given the end of the hub's deliveries."""
        found = {}
        for channel, end in ends.items():
            if end is not None and channel not in self._unstarted:
                ahead = self._ahead.get(channel, end)
                found[channel] = ahead if _is_before(end, ahead) else end
        return found

    def skip(self, ends: Mapping[str, Position], live_ends: Ends) -> None:
        """Go on from these positions: a snapshot has brought the client what was published before.

        `live_ends` is the current end of the hub's deliveries: a channel that is there is live.
        """
        for channel, end in ends.items():
            # Another process may have sent the client more than this one has received.
            if not _is_before(end, self._sent[channel]):
                self._sent[channel] = end
            self._guaranteed = _without(self._guaranteed, channel)
            self._replay_after = _without(self._replay_after, channel)
        self.behind = tuple([name for name in self.behind if self._sent[name] != live_ends.get(name)])
        self._settle()

    def _compare(self, channel: str, position: Position, page: Page) -> tuple[GapReason | None, Position]:
        """Return the gap between a position and a page, if any, and the position where the page goes on."""
        placed = page.locate(position)
        if placed is None:
            return GapReason.EPOCH, page.start_after_loss(position)
        if placed.offset >= page.first - 1:
            return None, placed
        guaranteed = page.locate(self._guaranteed.get(channel, position))
        is_missing = guaranteed is None or guaranteed.offset < page.first - 1
        return GapReason.EXPIRED if is_missing else None, Position(page.epoch, page.first - 1)

    def _settle(self) -> None:
        if not self._unstarted:
            self.resumption, self._start_ends = None, _NONE
        self.settled = not (self._unstarted or self.behind or self._ahead)


def join_entries(entries: Mapping[str, str]) -> str:
    """Return the id with the entries of these channels."""
    # Remove duplicates: two channels with the same tag may have the same positions.
    return ",".join(dict.fromkeys(",".join(entries.values()).split(",")))


def _is_before(position: Position, other: Position) -> bool:
    return position.epoch == other.epoch and position.offset < other.offset


def _with(positions: Mapping[str, Position], channel: str, position: Position) -> Mapping[str, Position]:
    if not isinstance(positions, dict):
        return {channel: position}
    positions[channel] = position
    return positions


def _without(positions: Mapping[str, Position], channel: str) -> Mapping[str, Position]:
    if channel not in positions:
        return positions
    return {name: position for name, position in positions.items() if name != channel} or _NONE
