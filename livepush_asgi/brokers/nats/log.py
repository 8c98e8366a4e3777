"""The logs of all channels in one stream: appends, and where each log ends.

The stream numbers the messages of all subjects together, but the offsets of a log must have no holes. So each
event carries its position, and is added on the condition that the subject's last message is still the one
before it. If another publisher was first, the server refuses; the publisher reads the log's new end and tries
again with the next offset.

JetStream drops every message in the end, also the last one of a channel, and then the log is forgotten.
While the log is read, a *mark* prevents that: a message that is no event and carries the log's last position.
A mark also begins a log that is read before its first event.
"""

import asyncio
import itertools
import random
from collections import OrderedDict
from hashlib import sha256
from typing import NamedTuple

from ...errors import PositionConflictError
from ...wire.cursor import Position, new_epoch
from .. import Page
from .pages import PageReader, Range
from .stream import MARK, POSITION, JetStreamError, Stream

# The most logs whose ends are remembered. To find an end again costs a request.
_MOST_HEADS = 10_000
# In seconds. Half of each pause is random, so that publishers that were refused together try again apart.
_FIRST_PAUSE, _MOST_PAUSE = 0.001, 0.05
# How often a read starts again because the log changed between two requests.
_MOST_READS = 10


class Head(NamedTuple):
    """The end of a log: its position, the sequence of the message there, and whether that message is old."""

    position: Position
    sequence: int
    is_old: bool = False


class Logs:
    """Appends to logs and reads them. Raises one of FAILURES. The caller sets the deadline."""

    def __init__(self, stream: Stream, events: int) -> None:
        self._stream = stream
        self._pages = PageReader(stream, events)
        #: The last known end of each log.
        self._heads: OrderedDict[str, Head] = OrderedDict()

    async def append(
        self, channel: str, subject: str, payload: bytes, key: str | None, expected_position: Position | None
    ) -> Position:
        """Add an event and return its position. See `HistoryBroker`."""
        async with self._stream.lock(subject):
            for attempt in itertools.count():
                headers, known = await self._recall(subject, key)
                if known is not None:
                    return known
                # The first attempt trusts the remembered end. If it is wrong, the server refuses.
                head = self._heads.get(subject) if attempt == 0 else None
                if head is None or not _is_end(expected_position, head):
                    head = await self._find(subject) or _new_head()
                if not _is_end(expected_position, head):
                    raise PositionConflictError(channel, head.position)
                position = Position(head.position.epoch, head.position.offset + 1)
                headers[POSITION] = str(position)
                if await self._store(subject, payload, headers, head, position):
                    return position
                pause = min(_MOST_PAUSE, _FIRST_PAUSE * 2.0 ** min(attempt, 10))
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))
        raise AssertionError("the loop ends with a return or an exception")

    async def read(self, subject: str, after: int, limit: int, max_bytes: int) -> Page:
        """Return a part of a log. See `HistoryBroker`."""
        for _ in range(_MOST_READS):
            head, oldest = await asyncio.gather(self._find(subject), self._stream.oldest(subject))
            if head is None:
                await self._mark(subject, _new_head())
                continue
            if head.is_old:
                await self._mark(subject, head)
            range_ = Range(after + 1, limit, max_bytes)
            page = await self._pages.read(subject, head.position, head.sequence, oldest, range_)
            if page is not None:
                return page
        raise JetStreamError("the log changes faster than it can be read")

    async def _find(self, subject: str) -> Head | None:
        """Return the end of a log, None if there is no log. Removes a log that cannot be continued."""
        # Read before the request: the server must still have this event, but not one that is added meanwhile.
        known = self._heads.get(subject)
        entry = await self._stream.last(subject)
        if entry is None:
            self._heads.pop(subject, None)
            return None
        if entry.position is None or (known is not None and _is_behind(entry.position, known.position)):
            # Another program has added a message, or the server has lost the end of the log. To continue
            # would give new events positions that clients have already seen.
            await self._stream.clear(subject, entry.sequence)
            self._heads.pop(subject, None)
            return None
        return Head(entry.position, entry.sequence, self._stream.is_old(entry))

    async def _recall(self, subject: str, key: str | None) -> tuple[dict[str, str], Position | None]:
        """Return the headers that make the server remember the key, and the position of a known key."""
        if key is None:
            return {}, None
        message_id = sha256(f"{subject} {key}".encode(errors="surrogatepass")).hexdigest()
        sequence = await self._stream.known(subject, message_id)
        if sequence is None:
            return {"Nats-Msg-Id": message_id}, None
        entry = await self._stream.at(sequence)
        # The log may have dropped the event while the key is remembered. Then it is added again, without key.
        return {}, None if entry is None else entry.position

    async def _store(
        self, subject: str, payload: bytes, headers: dict[str, str], head: Head, position: Position
    ) -> bool:
        sequence = await self._stream.store(subject, payload, headers, head.sequence)
        if sequence is None:
            return False
        self._heads[subject] = Head(position, sequence)
        self._heads.move_to_end(subject)
        if len(self._heads) > _MOST_HEADS:
            self._heads.popitem(last=False)
        return True

    async def _mark(self, subject: str, head: Head) -> None:
        # If another message is first, the log needs no mark.
        await self._store(subject, b"", {MARK: str(head.position)}, head, head.position)


def _new_head() -> Head:
    return Head(Position(new_epoch(), 0), 0)


def _is_end(expected_position: Position | None, head: Head) -> bool:
    if expected_position is None:
        return True
    if expected_position.offset == 0:
        return head.position.offset == 0
    return expected_position == head.position


def _is_behind(position: Position, known: Position) -> bool:
    return position.epoch == known.epoch and position.offset < known.offset
