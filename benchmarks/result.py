"""Values: what is measured, of whom, and what came of it, in rounds that alternate."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from .load import Figures


@dataclass(frozen=True, slots=True)
class Size:
    """How much: streams, events to each, of so many bytes, at a rate per second (0: at once).

    Without streams it is the events alone.
    """

    streams: int
    events: int = 0
    rate: float = 0
    bytes: int = 200
    seconds: float = 0

    def __str__(self) -> str:
        if not self.streams:
            return f"{self.events:,} events of {self.bytes} bytes"
        parts = [f"{self.streams:,} streams"]
        if self.events:
            pace = f"at {self.rate:g} a second" if self.rate else "at once"
            parts.append(f"{self.events:,} events of {self.bytes} bytes {pace}")
        if self.seconds:
            parts.append(f"{self.seconds:g} s")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Case:
    """One of those that are compared. The first of a scenario is what the others are held against."""

    label: str
    measure: Callable[[], Figures]


@dataclass(frozen=True, slots=True)
class Result:
    """What the rounds of one scenario gave: a list of figures for each label."""

    name: str
    title: str
    size: Size
    shown: tuple[str, ...]
    compared: tuple[str, ...]
    runs: dict[str, list[Figures]]

    @property
    def rounds(self) -> int:
        return len(next(iter(self.runs.values())))

    def median(self, label: str, key: str) -> float:
        return median(figures[key] for figures in self.runs[label])

    def ratios(self, label: str, key: str) -> list[float]:
        """Return the ratio to the first label, round by round, from the smallest on."""
        base = next(iter(self.runs.values()))
        pairs = zip(self.runs[label], base, strict=True)
        return sorted(mine[key] / first[key] if first[key] else float("nan") for mine, first in pairs)
