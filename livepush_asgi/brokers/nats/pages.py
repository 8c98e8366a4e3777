"""Pages: a log read by offset, in a stream that knows sequences only.

Both grow along a log, so the sequence of an offset is found by asking for messages in between, where it
should be if the other channels' messages lay evenly among this one's. Where a page ended is remembered.
"""

from collections import OrderedDict
from typing import NamedTuple

from ...broker import Page, Record
from ...cursor import Position
from .entry import Entry
from .stream import Stream

# So many bytes are asked for at most, and so many for each message beside its payload: its subject and its
# headers. A page may be shorter than its limits.
_PAGE_SIZE, _MESSAGE_COST = 4 * 1024 * 1024, 512
# Marks may lie between events. So many messages too early are read along rather than searched away.
_NEAR = 16
_MOST_PLACES = 10_000


class Range(NamedTuple):
    """A read of a log: the events above an offset, at most so many and so many bytes of them."""

    after: int
    limit: int
    max_bytes: int


class _Place(NamedTuple):
    offset: int
    sequence: int


class Pages:
    """Reads pages of logs of which `events` are kept each."""

    def __init__(self, stream: Stream, events: int) -> None:
        self._stream = stream
        self._events = events
        #: From which sequence on an event is found.
        self._sequences: OrderedDict[tuple[str, str, int], int] = OrderedDict()

    async def read(
        self, subject: str, end: Position, end_sequence: int, oldest: Entry | None, range_: Range
    ) -> Page | None:
        """Return a page of the log that ends at `end`; None if it was not the same log throughout."""
        first = self._first(end, oldest)
        if first is None:
            return None
        # Between the two questions the log may have gone on.
        last = max(end.offset, first - 1)
        wanted = max(range_.after + 1, first)
        if range_.limit <= 0 or wanted > end.offset or oldest is None or oldest.position is None:
            return Page(end.epoch, first, last, ())
        low = _Place(oldest.position.offset, oldest.sequence)
        start = await self._locate(subject, end, wanted, low, _Place(end.offset, end_sequence))
        if start is None:
            return None
        records = await self._records(subject, end.epoch, start, wanted, range_)
        if not records:
            return Page(end.epoch, first, last, ())
        if records[0].offset > range_.after + 1:
            # What was there a moment ago has been let go.
            first = records[0].offset
        return Page(end.epoch, min(first, records[0].offset), max(last, records[-1].offset), records)

    async def _records(
        self, subject: str, epoch: str, start: _Place, wanted: int, range_: Range
    ) -> tuple[Record, ...]:
        many = range_.limit + max(0, wanted - start.offset) + _NEAR
        size = min(_PAGE_SIZE, range_.max_bytes + _MESSAGE_COST * many)
        sequence = start.sequence
        while True:
            entries = await self._stream.page(subject, sequence, many, size)
            records = _records_of(entries, epoch, wanted, range_)
            if records:
                self._remember(subject, epoch, records[-1].offset, entries)
            if records or not entries:
                return records
            # Those before the wanted one filled the answer.
            sequence = entries[-1].sequence + 1

    def _first(self, end: Position, oldest: Entry | None) -> int | None:
        """Return the first offset that is kept, None if the oldest message is of another log."""
        if oldest is None:
            return end.offset + 1
        if oldest.position is None or oldest.position.epoch != end.epoch:
            return None
        first = oldest.position.offset + (not oldest.is_event)
        return max(first, end.offset - self._events + 1)

    async def _locate(
        self, subject: str, end: Position, wanted: int, low: _Place, high: _Place
    ) -> _Place | None:
        """Return a place at or shortly before an event; None if that is in another log."""
        known = self._sequences.get((subject, end.epoch, wanted))
        if known is not None:
            return _Place(wanted, known)
        evenly = True
        while wanted - low.offset > _NEAR and high.sequence - low.sequence > 1:
            span = high.sequence - low.sequence
            share = (wanted - _NEAR // 2 - low.offset) / (high.offset - low.offset) if evenly else 0.5
            # Where the messages lie unevenly, halving is what comes to an end.
            evenly = not evenly
            middle = low.sequence + min(span - 1, max(1, int(span * share)))
            entry = await self._stream.next(subject, middle)
            if entry is None or entry.position is None or entry.position.epoch != end.epoch:
                return None
            # A mark stands behind the event of which it has the offset.
            if entry.position.offset < wanted + entry.is_event:
                low = _Place(entry.position.offset, entry.sequence)
            else:
                high = _Place(entry.position.offset, middle)
        return low

    def _remember(self, subject: str, epoch: str, offset: int, entries: list[Entry]) -> None:
        position = Position(epoch, offset)
        entry = next(entry for entry in entries if entry.is_event and entry.position == position)
        self._sequences[subject, epoch, offset + 1] = entry.sequence + 1
        if len(self._sequences) > _MOST_PLACES:
            self._sequences.popitem(last=False)


def _records_of(entries: list[Entry], epoch: str, wanted: int, range_: Range) -> tuple[Record, ...]:
    """Return events that follow each other, from the first that is wanted or that is there."""
    records: list[Record] = []
    size = 0
    for entry in entries:
        position = entry.position
        if position is None or position.epoch != epoch or not entry.is_event or position.offset < wanted:
            continue
        size += len(entry.payload)
        if records and (
            len(records) == range_.limit
            or size > range_.max_bytes
            or position.offset != records[-1].offset + 1
        ):
            break
        records.append(Record(position.offset, entry.payload))
    return tuple(records)
