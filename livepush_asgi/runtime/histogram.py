"""Histogram: how many values fell into each of several ranges. The ranges are fixed when it is made."""

from bisect import bisect_left
from collections.abc import Callable
from typing import TypedDict


class HistogramData(TypedDict):
    """The counts of a histogram. JSON can encode it."""

    #: The upper bounds of the ranges, in ascending order. A range includes its bound.
    bounds: list[float]
    #: How many values each range has. The last count, which has no bound, is of the values above all bounds.
    counts: list[int]
    #: The sum of all values.
    sum: float


class Histogram:
    """Counts values by range. Adding a value is a search and two additions."""

    __slots__ = ("_bounds", "_counts", "_sum", "also")

    def __init__(self, *bounds: float) -> None:
        self._bounds = tuple(map(float, bounds))
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        #: Called with each value too. They return at once and do not raise.
        self.also: tuple[Callable[[float], object], ...] = ()

    def add(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value
        for also in self.also:
            also(value)

    def data(self) -> HistogramData:
        """Return a copy of the counts."""
        return {"bounds": list(self._bounds), "counts": list(self._counts), "sum": self._sum}
