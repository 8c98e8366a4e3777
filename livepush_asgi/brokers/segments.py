"""Segments: the events that a log in memory keeps. They cost the garbage collector next to nothing.

A full collection visits every value in a list or a deque: with a million events it would stop the event loop
for 100 ms. A tuple of bytes, or of numbers, is left out once a collection has found it to be such
(https://docs.python.org/3/library/gc.html#gc.is_tracked).
"""

from collections.abc import Sequence
from itertools import chain, repeat

# How many events each tuple has.
SEGMENT = 64


class Segments:
    """A queue of payloads, each with its time. All but its newest and its oldest events are in tuples."""

    __slots__ = (
        "_newest",
        "_newest_times",
        "_older",
        "_older_times",
        "_oldest",
        "_oldest_times",
        "count",
    )

    def __init__(self) -> None:
        #: How many events it has.
        self.count = 0
        # The newest ones: fewer than a tuple has.
        self._newest: list[bytes] = []
        self._newest_times: list[float] = []
        self._older: list[tuple[bytes, ...]] = []
        self._older_times: list[tuple[float, ...]] = []
        # Those that are dropped next, the oldest last.
        self._oldest: list[bytes] = []
        self._oldest_times: list[float] = []

    @property
    def oldest_time(self) -> float:
        """The time of the event that `drop_oldest` removes. Raises IndexError if there is none."""
        if not self._oldest:
            self._find_oldest()
        return self._oldest_times[-1]

    def append(self, payload: bytes, time: float) -> None:
        """Add an event."""
        self.count += 1
        self._newest.append(payload)
        self._newest_times.append(time)
        if len(self._newest) >= SEGMENT:
            self._fill_segments()

    def extend(self, payloads: Sequence[bytes], time: float) -> None:
        """Add events of one time, in order."""
        self.count += len(payloads)
        self._newest += payloads
        self._newest_times += repeat(time, len(payloads))
        if len(self._newest) >= SEGMENT:
            self._fill_segments()

    def drop_oldest(self) -> bytes:
        """Remove the oldest event, and return its payload. Raises IndexError if there is none."""
        if not self._oldest:
            self._find_oldest()
        self.count -= 1
        self._oldest_times.pop()
        return self._oldest.pop()

    def part(self, start: int, end: int) -> tuple[bytes, ...]:
        """Return the payloads from the place `start` on, up to `end`. The oldest one is at 0."""
        end = min(end, self.count)
        if start >= end:
            return ()
        # Count the places as if `_oldest` were full.
        missing = SEGMENT - len(self._oldest)
        start, end = start + missing, end + missing
        first, last = start // SEGMENT, (end - 1) // SEGMENT
        found: list[Sequence[bytes]] = [] if first else [self._oldest[::-1]]
        found += self._older[max(0, first - 1) : last]
        if last > len(self._older):
            found.append(self._newest)
        before = SEGMENT * first if first else missing
        return tuple(chain.from_iterable(found))[start - before : end - before]

    def _fill_segments(self) -> None:
        full = len(self._newest) // SEGMENT * SEGMENT
        for start in range(0, full, SEGMENT):
            self._older.append(tuple(self._newest[start : start + SEGMENT]))
            self._older_times.append(tuple(self._newest_times[start : start + SEGMENT]))
        del self._newest[:full], self._newest_times[:full]

    def _find_oldest(self) -> None:
        if self._older:
            self._oldest = list(self._older.pop(0)[::-1])
            self._oldest_times = list(self._older_times.pop(0)[::-1])
        else:
            self._oldest, self._newest = self._newest[::-1], []
            self._oldest_times, self._newest_times = self._newest_times[::-1], []
