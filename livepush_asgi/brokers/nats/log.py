"""The logs of all channels in one stream: appends, and reads by offset.

The stream numbers the messages of all subjects together, but the offsets of a log must have no holes. So each
event carries its position, and is added on the condition that the subject's last message is still the one
before it. If another publisher was first, the server refuses; the publisher reads the log's new end and tries
again with the next offset. Offsets and sequences both grow along a log: a read searches for its offset.

JetStream drops every message in the end, also the last one of a channel, and then the log is forgotten.
While the log is read, a *mark* prevents that: a message that is no event and carries the log's last position.
A mark also begins a log that is read before its first event.
"""

import asyncio
from collections import OrderedDict
from hashlib import sha256

from nats.errors import Error as NatsError

from ...errors import PositionConflictError
from ...wire.cursor import Position, new_epoch
from .. import Page, Record
from ..backoff import Backoff
from .stream import FOREIGN, MARK, POSITION, Entry, Stream
from .subjects import subject_of

# The most logs whose ends are remembered, and the most places in logs. To find one again costs requests.
_MAX_REMEMBERED = 10_000
# Between two attempts to append, in seconds.
_FIRST_PAUSE, _MAX_PAUSE = 0.001, 0.05
# How often a read starts again because the log changed between two requests.
_MAX_READS = 10
# The most bytes of a request, and the bytes of a message beside its payload: its subject and its headers. A
# page may be shorter than its limits.
_PAGE_SIZE, _MESSAGE_COST = 4 * 1024 * 1024, 512
# A search ends at most this many messages before the wanted event, since to read a few more costs less than
# to search on.
_NEAR = 16


class Logs:
    """Appends to logs and reads them. Raises one of FAILURES. The caller sets the deadline."""

    def __init__(self, stream: Stream, events: int) -> None:
        self._stream = stream
        self._events = events
        #: The last known end of each log.
        self._heads: OrderedDict[str, Entry] = OrderedDict()
        #: By subject and position, a sequence from which on the event is found: where a page has ended.
        self._sequences: OrderedDict[tuple[str, Position], int] = OrderedDict()

    async def append(
        self, channel: str, payload: bytes, key: str | None, expected_position: Position | None
    ) -> Position:
        """Add an event and return its position. See `HistoryBroker`."""
        subject = subject_of(self._stream.log_prefix, channel)
        backoff = Backoff(_FIRST_PAUSE, _MAX_PAUSE)
        async with self._stream.lock(subject):
            # The first attempt trusts the remembered end. If it is wrong, the server refuses.
            head = self._heads.get(subject)
            while True:
                headers, known = await self._recall(subject, key)
                if known is not None:
                    return known.position
                if head is None or not _is_end(expected_position, head.position):
                    head = await self._find(subject) or _new_head()
                if not _is_end(expected_position, head.position):
                    raise PositionConflictError(channel, head.position)
                position = head.position.at(head.position.offset + 1)
                headers[POSITION] = str(position)
                if await self._store(subject, payload, headers, head, position):
                    return position
                head = None
                await asyncio.sleep(backoff.next_delay())

    async def read(self, channel: str, after: int, limit: int, max_bytes: int) -> Page:
        """Return a part of a log. See `HistoryBroker`."""
        subject = subject_of(self._stream.log_prefix, channel)
        for _ in range(_MAX_READS):
            head, oldest = await asyncio.gather(self._find(subject), self._stream.oldest(subject))
            if head is None or oldest is None:
                # No message is young enough to be kept. If another one comes first, the log needs no mark.
                head = head or _new_head()
                await self._store(subject, b"", {MARK: str(head.position)}, head, head.position)
                continue
            page = await self._page(subject, head, oldest, after, limit, max_bytes)
            if page is not None:
                return page
        raise NatsError("the log changes faster than it can be read")

    async def age(self, channel: str, position: Position) -> float | None:
        """Return how long ago an event was added, in seconds; None if the log has dropped it."""
        subject = subject_of(self._stream.log_prefix, channel)
        head, oldest = await asyncio.gather(self._stream.last(subject), self._stream.oldest(subject))
        if head is None or oldest is None:
            return None
        sequence = await self._search(subject, position, oldest, head)
        if sequence is None:
            return None
        entries = await self._stream.get(next_by_subj=subject, seq=sequence, batch=2 * _NEAR)
        found = [entry for entry in entries if entry.is_event and entry.position == position]
        return self._stream.age_of(found[0]) if found else None

    # --- the end of a log ---

    async def _find(self, subject: str) -> Entry | None:
        """Return the end of a log, None if there is no log. Removes a log that cannot be continued."""
        # Read before the request: the server must still have this event, but not one that is added meanwhile.
        known = self._heads.get(subject)
        entry = await self._stream.last(subject)
        if entry is not None:
            position, end = entry.position, (known or entry).position
            if position != FOREIGN and (position.epoch != end.epoch or position.offset >= end.offset):
                return entry
            # Another program has added a message, or the server has lost the end of the log. To continue
            # would give new events positions that clients have already seen.
            await self._stream.clear(subject, entry.sequence)
        self._heads.pop(subject, None)
        return None

    async def _recall(self, subject: str, key: str | None) -> tuple[dict[str, str], Entry | None]:
        """Return the headers that make the server remember the key, and the event of a known key."""
        if key is None:
            return {}, None
        message_id = sha256(f"{subject} {key}".encode(errors="surrogatepass")).hexdigest()
        headers = {"Nats-Msg-Id": message_id}
        # JetStream compares ids before it looks at this condition, which no stream can meet.
        answer = await self._stream.add(subject, b"", {**headers, "Nats-Expected-Last-Msg-Id": "-"})
        if answer is None:
            return headers, None
        # The log may have dropped the event while the key is remembered. Then it is added again, without key.
        found = await self._stream.get(seq=answer["seq"])
        return {}, found[0] if found else None

    async def _store(
        self, subject: str, payload: bytes, headers: dict[str, str], head: Entry, position: Position
    ) -> bool:
        """Add a message behind the head. Return False if another message was first, or the same one."""
        condition = {"Nats-Expected-Last-Subject-Sequence": str(head.sequence)}
        answer = await self._stream.add(subject, payload, {**headers, **condition})
        if answer is None or answer.get("duplicate"):
            return False
        self._heads[subject] = Entry(position, answer["seq"])
        self._heads.move_to_end(subject)
        if len(self._heads) > _MAX_REMEMBERED:
            self._heads.popitem(last=False)
        return True

    # --- the events of a log ---

    async def _page(
        self, subject: str, head: Entry, oldest: Entry, after: int, limit: int, max_bytes: int
    ) -> Page | None:
        """Return a page; None if it was not the same log throughout."""
        end = head.position
        if oldest.position.epoch != end.epoch:
            return None
        first = max(oldest.position.offset + (not oldest.is_event), end.offset - self._events + 1)
        # The log may have gone on between the two requests.
        last = max(end.offset, first - 1)
        start = max(after + 1, first)
        records: list[Record] = []
        if limit > 0 and start <= end.offset:
            sequence = await self._search(subject, end.at(start), oldest, head)
            if sequence is None:
                return None
            records = await self._records(subject, end.at(start), sequence, limit, max_bytes)
        if records:
            # The server may have dropped events since the first request.
            first = records[0].offset if records[0].offset > after + 1 else first
            last = max(last, records[-1].offset)
        return Page(end.epoch, first, last, tuple(records))

    async def _search(self, subject: str, wanted: Position, low: Entry, high: Entry) -> int | None:
        """Return a sequence at or shortly before an event; None if the log has changed meanwhile.

        Interpolates, as if the messages of other channels were spread evenly, and halves in between:
        interpolation alone may take very long if they are not.
        """
        known = self._sequences.get((subject, wanted))
        if known is not None:
            return known
        evenly = True
        while wanted.offset - low.position.offset > _NEAR and high.sequence - low.sequence > 1:
            span, offsets = high.sequence - low.sequence, high.position.offset - low.position.offset
            share = (wanted.offset - _NEAR // 2 - low.position.offset) / offsets if evenly else 0.5
            evenly = not evenly
            middle = low.sequence + min(span - 1, max(1, int(span * share)))
            found = await self._stream.get(next_by_subj=subject, seq=middle)
            if not found or found[0].position.epoch != wanted.epoch:
                return None
            (entry,) = found
            # A mark comes after the event whose offset it has.
            if entry.position.offset < wanted.offset + entry.is_event:
                low = entry
            else:
                high = entry._replace(sequence=middle)
        return low.sequence

    async def _records(
        self, subject: str, start: Position, sequence: int, limit: int, max_bytes: int
    ) -> list[Record]:
        many = limit + _NEAR
        size = min(_PAGE_SIZE, max_bytes + _MESSAGE_COST * many)
        events: list[Entry] = []
        while not events:
            entries = await self._stream.get(next_by_subj=subject, seq=sequence, batch=many, max_bytes=size)
            if not entries:
                return []
            events = _events_in(entries, start, limit, max_bytes)
            # Without events, messages before the wanted one have filled the answer.
            sequence = (events or entries)[-1].sequence + 1
        end = events[-1].position
        self._sequences[subject, end.at(end.offset + 1)] = sequence
        if len(self._sequences) > _MAX_REMEMBERED:
            self._sequences.popitem(last=False)
        return [Record(event.position.offset, event.payload) for event in events]


def _events_in(entries: list[Entry], start: Position, limit: int, max_bytes: int) -> list[Entry]:
    """Return the events from `start` on, up to the first hole between two offsets."""
    events: list[Entry] = []
    size = 0
    for entry in entries:
        epoch, offset = entry.position.epoch, entry.position.offset
        if epoch == start.epoch and entry.is_event and offset >= start.offset:
            size += len(entry.payload)
            is_over = len(events) == limit or size > max_bytes
            if events and (is_over or offset != events[-1].position.offset + 1):
                break
            events.append(entry)
    return events


def _new_head() -> Entry:
    return Entry(Position(new_epoch(), 0), 0)


def _is_end(expected_position: Position | None, end: Position) -> bool:
    if expected_position is not None and expected_position.offset == 0:
        return end.offset == 0
    return expected_position is None or expected_position == end
