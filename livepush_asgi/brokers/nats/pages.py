"""Reading a log by offset, in a stream that knows sequences only.

Both grow along a log, so the sequence of an offset is found by a search. It interpolates first, as if the
messages of other channels were spread evenly, and halves in between. The end of the last page is remembered.
"""

from collections import OrderedDict
from typing import NamedTuple

from ...wire.cursor import Position
from .. import Page, Record
from .stream import Entry, Stream

# The most bytes of a request, and the bytes of a message beside its payload: its subject and its headers. A
# page may be shorter than its limits.
_PAGE_SIZE, _MESSAGE_COST = 4 * 1024 * 1024, 512
# A search ends at most this many messages before the wanted event, since to read a few more costs less than
# to search on. Between the events of a page may be as many marks.
_NEAR = 16
_MOST_REMEMBERED = 10_000


class Range(NamedTuple):
    """A part of a log: the events from offset `start` on, at most `limit` of them and `max_bytes` bytes."""

    start: int
    limit: int
    max_bytes: int


class _Place(NamedTuple):
    offset: int
    sequence: int


class PageReader:
    """Reads pages of logs. Each log keeps `events` events."""

    def __init__(self, stream: Stream, events: int) -> None:
        self._stream = stream
        self._events = events
        #: By subject and position, a sequence from which on the event is found.
        self._sequences: OrderedDict[tuple[str, Position], int] = OrderedDict()

    async def read(
        self, subject: str, end: Position, end_sequence: int, oldest: Entry | None, range_: Range
    ) -> Page | None:
        """Return a page of the log that ends at `end`; None if it was not the same log throughout."""
        first = self._first(end, oldest)
        if first is None:
            return None
        # The log may have gone on between the two requests.
        last = max(end.offset, first - 1)
        wanted = range_._replace(start=max(range_.start, first))
        records: tuple[Record, ...] = ()
        if range_.limit > 0 and wanted.start <= end.offset and oldest and oldest.position:
            low, high = _Place(oldest.position.offset, oldest.sequence), _Place(end.offset, end_sequence)
            place = await self._locate(subject, end.epoch, wanted.start, low, high)
            if place is None:
                return None
            records = await self._records(subject, end.epoch, place, wanted)
        if records:
            # The server may have dropped events since the first request.
            first = records[0].offset if records[0].offset > range_.start else first
            last = max(last, records[-1].offset)
        return Page(end.epoch, first, last, records)

    def _first(self, end: Position, oldest: Entry | None) -> int | None:
        """Return the first offset that is kept, None if the oldest message is of another log."""
        if oldest is None:
            return end.offset + 1
        if oldest.position is None or oldest.position.epoch != end.epoch:
            return None
        first = oldest.position.offset + (not oldest.is_event)
        return max(first, end.offset - self._events + 1)

    async def _locate(
        self, subject: str, epoch: str, wanted: int, low: _Place, high: _Place
    ) -> _Place | None:
        """Return a place at or shortly before an event; None if the log has changed meanwhile."""
        known = self._sequences.get((subject, Position(epoch, wanted)))
        if known is not None:
            return _Place(wanted, known)
        evenly = True
        while wanted - low.offset > _NEAR and high.sequence - low.sequence > 1:
            span = high.sequence - low.sequence
            share = (wanted - _NEAR // 2 - low.offset) / (high.offset - low.offset) if evenly else 0.5
            # Interpolation alone may take very long if the messages are spread unevenly.
            evenly = not evenly
            middle = low.sequence + min(span - 1, max(1, int(span * share)))
            entry = await self._stream.next(subject, middle)
            if entry is None or entry.position is None or entry.position.epoch != epoch:
                return None
            # A mark comes after the event whose offset it has.
            if entry.position.offset < wanted + entry.is_event:
                low = _Place(entry.position.offset, entry.sequence)
            else:
                high = _Place(entry.position.offset, middle)
        return low

    async def _records(self, subject: str, epoch: str, place: _Place, wanted: Range) -> tuple[Record, ...]:
        many = wanted.limit + max(0, wanted.start - place.offset) + _NEAR
        size = min(_PAGE_SIZE, wanted.max_bytes + _MESSAGE_COST * many)
        sequence = place.sequence
        while entries := await self._stream.page(subject, sequence, many, size):
            events = _events_in(entries, epoch, wanted)
            if events:
                self._remember(subject, epoch, events[-1])
                return tuple(Record(offset, entry.payload) for offset, entry in events)
            # Messages before the wanted one have filled the answer.
            sequence = entries[-1].sequence + 1
        return ()

    def _remember(self, subject: str, epoch: str, event: tuple[int, Entry]) -> None:
        offset, entry = event
        self._sequences[subject, Position(epoch, offset + 1)] = entry.sequence + 1
        if len(self._sequences) > _MOST_REMEMBERED:
            self._sequences.popitem(last=False)


def _events_in(entries: list[Entry], epoch: str, wanted: Range) -> list[tuple[int, Entry]]:
    """Return the wanted events with their offsets, up to the first hole between two offsets."""
    events: list[tuple[int, Entry]] = []
    size = 0
    for entry in entries:
        position = entry.position
        if (
            position is None
            or position.epoch != epoch
            or not entry.is_event
            or position.offset < wanted.start
        ):
            continue
        size += len(entry.payload)
        is_over = len(events) == wanted.limit or size > wanted.max_bytes
        if events and (is_over or position.offset != events[-1][0] + 1):
            break
        events.append((position.offset, entry))
    return events
