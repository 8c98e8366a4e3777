"""MemoryLog: the log of one channel in this process, bounded by a History."""

from collections import OrderedDict, deque
from itertools import accumulate, count, islice

from ..wire.cursor import Position, new_epoch
from . import READ_BYTES, Page, Record
from .history import History
from .mailbox import Mailbox

# Bytes that an event takes beside its payload: the objects around the payload and its time.
EVENT_COST = 80


class Kept:
    """How many bytes several logs keep together, payloads and `EVENT_COST` for each event."""

    __slots__ = ("bytes",)

    def __init__(self) -> None:
        self.bytes = 0


class MemoryLog:
    """Events 1, 2, 3 ... of which the newest are kept, and who hears them. Times are seconds of one clock."""

    __slots__ = ("_history", "_kept", "_keys", "_payloads", "_size", "_times", "end", "mailboxes", "used")

    def __init__(self, history: History, now: float, kept: Kept | None = None) -> None:
        #: The position after the newest event.
        self.end = Position(new_epoch(), 0)
        #: When something was last done with it.
        self.used = now
        #: Who hears the channel. A log of which somebody holds positions is not forgotten.
        self.mailboxes: dict[Mailbox, None] = {}
        self._history = history
        self._kept = kept or Kept()
        # Bare, for their offsets follow from where they stand: an object around each would be one more for
        # the garbage collector to walk over, a million times.
        self._payloads: deque[bytes] = deque()
        self._times: deque[float] = deque()
        self._size = 0
        # Made for the first key: most channels never have one.
        self._keys: OrderedDict[str, int] | None = None

    @property
    def last(self) -> int:
        """The offset of the newest event, 0 if there was none."""
        return self.end.offset

    @property
    def is_empty(self) -> bool:
        """Whether it keeps no event."""
        return not self._payloads

    def known(self, key: str) -> Position | None:
        """Return the position of the event that was added with this idempotency key."""
        offset = self._keys.get(key) if self._keys else None
        return None if offset is None else self.end.at(offset)

    def append(self, payload: bytes, now: float, key: str | None = None) -> Position:
        """Add an event, and let go what is beyond the bounds."""
        offset = self.end.offset + 1
        self.end = self.end.at(offset)
        self.used = now
        self._payloads.append(payload)
        self._times.append(now)
        self._size += len(payload)
        self._kept.bytes += len(payload) + EVENT_COST
        if key is not None:
            self._keys = self._keys or OrderedDict()
            self._keys[key] = offset
            # A key is as much a memory of an event as the event: there are no more of them.
            if len(self._keys) > self._history.events:
                self._keys.popitem(last=False)
        self.trim(now)
        return self.end

    def drop_oldest(self, most_kept: int, *, leave: int) -> None:
        """Let go of the oldest events until all logs keep so many bytes, or `leave` events are left."""
        while len(self._payloads) > leave and self._kept.bytes > most_kept:
            self._drop_first()

    def clear(self) -> None:
        """Let go of all events."""
        while self._payloads:
            self._drop_first()

    def page(self, after: int, limit: int, now: float, max_bytes: int = READ_BYTES) -> Page:
        """Return a part of what is kept."""
        self.used = now
        self.trim(now)
        first = self.last - len(self._payloads) + 1
        skipped = min(max(0, after - first + 1), len(self._payloads))
        payloads = tuple(islice(self._payloads, skipped, skipped + limit))
        if sum(map(len, payloads)) > max_bytes:
            fitting = sum(size <= max_bytes for size in accumulate(map(len, payloads)))
            payloads = payloads[: max(1, fitting)]
        records = tuple(map(Record._make, zip(count(first + skipped), payloads, strict=False)))
        return Page(self.end.epoch, first, self.last, records)

    def trim(self, now: float) -> None:
        """Let go of what is beyond the bounds of the channel."""
        history = self._history
        while self._payloads and (
            len(self._payloads) > history.events
            or (self._size > history.size and len(self._payloads) > 1)
            or (history.age is not None and now - self._times[0] > history.age)
        ):
            self._drop_first()

    def _drop_first(self) -> None:
        size = len(self._payloads.popleft())
        self._times.popleft()
        self._size -= size
        self._kept.bytes -= size + EVENT_COST
