"""Logs: the logs of all channels in one stream.

The stream numbers the messages of all subjects together. So each event carries its position, and is added
on the condition that the subject's last message is the one that it was counted from: whoever comes second
is refused, looks again, and counts from there.

A message is let go one day, the last one of a channel too, and with it the log is forgotten. For as long
as somebody reads, that is put off: a *mark* says again where the log is. It also begins a log that is read
before anything was added.
"""

import asyncio
import random
from collections import OrderedDict
from hashlib import sha256
from typing import NamedTuple

from ...broker import Page
from ...cursor import Position, new_epoch
from ...errors import PositionConflictError
from .entry import MARK, POSITION
from .failures import FAILURES
from .pages import Pages, Range
from .stream import JetStreamError, Stream
from .turns import Turns

# Of as many channels is remembered where their logs end. To forget costs a question.
_MOST_HEADS = 10_000
# Half of it is random, so that those who were refused together do not come back together: seconds.
_FIRST_PAUSE, _MOST_PAUSE = 0.001, 0.05
# What has changed between two questions is asked for again, so many times.
_MOST_LOOKS = 10


class Head(NamedTuple):
    """Where a log ends: its position, the sequence of the message that says so, and whether that is old."""

    position: Position
    sequence: int
    is_old: bool = False


class Logs:
    """Adds to logs and reads them. Raises one of FAILURES."""

    def __init__(self, stream: Stream, events: int) -> None:
        self._stream = stream
        self._pages = Pages(stream, events)
        self._turns = Turns(*FAILURES)
        #: How far each log is known to have come.
        self._heads: OrderedDict[str, Head] = OrderedDict()

    async def append(
        self, channel: str, subject: str, payload: bytes, key: str | None, expected: Position | None
    ) -> Position:
        """Add an event and return its position. See `broker.HistoryBroker`."""
        async with self._turns.of(subject):
            attempt = 0
            while True:
                headers, known = await self._recall(subject, key)
                if known is not None:
                    return known
                # The first attempt trusts to memory: if that is wrong, nothing is added.
                head = self._heads.get(subject) if attempt == 0 else None
                if head is None or not _is_end(expected, head):
                    head = await self._find(subject) or Head(Position(new_epoch(), 0), 0)
                if not _is_end(expected, head):
                    raise PositionConflictError(channel, head.position)
                position = Position(head.position.epoch, head.position.offset + 1)
                headers[POSITION] = str(position)
                if await self._store(subject, payload, headers, head, position):
                    return position
                pause = min(_MOST_PAUSE, _FIRST_PAUSE * 2.0 ** min(attempt, 10))
                attempt += 1
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))

    async def read(self, subject: str, after: int, limit: int, max_bytes: int) -> Page:
        """Return a part of a log. See `broker.HistoryBroker`."""
        for _ in range(_MOST_LOOKS):
            head, oldest = await asyncio.gather(self._find(subject), self._stream.oldest(subject))
            if head is None:
                await self._mark(subject, Head(Position(new_epoch(), 0), 0))
                continue
            if head.is_old:
                await self._mark(subject, head)
            page = await self._pages.read(
                subject, head.position, head.sequence, oldest, Range(after, limit, max_bytes)
            )
            if page is not None:
                return page
        raise JetStreamError("the log changes faster than it can be read")

    async def _find(self, subject: str) -> Head | None:
        """Ask where a log ends; return None if there is none. What is no log any more is cleared away."""
        # What is known now, the answer must know too. What comes meanwhile, it may miss.
        known = self._heads.get(subject)
        entry = await self._stream.last(subject)
        if entry is None:
            self._heads.pop(subject, None)
            return None
        if entry.position is None or (known is not None and _is_behind(entry.position, known.position)):
            # Something foreign is in it, or the server has lost its end. To go on counting would give the
            # positions that clients have already to other events.
            await self._stream.clear(subject, entry.sequence)
            self._heads.pop(subject, None)
            return None
        return Head(entry.position, entry.sequence, self._stream.is_old(entry))

    async def _recall(self, subject: str, key: str | None) -> tuple[dict[str, str], Position | None]:
        """Return the headers that have an event remembered by its key, and where it is if it is already."""
        if key is None:
            return {}, None
        idempotency = sha256(f"{subject} {key}".encode(errors="surrogatepass")).hexdigest()
        sequence = await self._stream.known(subject, idempotency)
        if sequence is None:
            return {"Nats-Msg-Id": idempotency}, None
        entry = await self._stream.at(sequence)
        # The event may be let go while its key is still remembered. Then it is added once more, without.
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
        # If something else comes first, that is as good a mark.
        await self._store(subject, b"", {MARK: str(head.position)}, head, head.position)


def _is_end(expected: Position | None, head: Head) -> bool:
    if expected is None:
        return True
    if expected.offset == 0:
        return head.position.offset == 0
    return expected == head.position


def _is_behind(position: Position, known: Position) -> bool:
    return position.epoch == known.epoch and position.offset < known.offset
