"""Fault: why a process does not receive every event, and since when."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Why this process does not receive every event now. `str` makes a sentence of it.

    A broker of your own may have the attribute `faults`, a sequence of them that is empty while its `healthy`
    is True.
    """

    #: What is wrong, with the likely fix. It may name addresses, but no password.
    cause: str
    #: How long it has been so without an interruption, in seconds.
    seconds: float
    #: The server, such as "Redis at 10.0.0.5:6379"; "" if only the cause names it.
    where: str = ""
    #: How many channels of this process it affects; 0 if that is not known.
    channels: int = 0
    #: The name of one of these channels.
    channel: str = ""
    #: Whether the server is there, and refuses these channels only.
    refused: bool = False

    def __str__(self) -> str:
        where = f"{self.where}: " if self.where else ""
        others = f" and {self.channels - 1} more" if self.channels > 1 else ""
        affected = f" (channel {self.channel!r:.100}{others})" if self.channels else ""
        return f"{where}{self.cause}, for {self.seconds:.1f} s{affected}"


class Failing(NamedTuple):
    """A channel that fails since a time, and why."""

    since: float
    channel: str
    where: str
    cause: str
    refused: bool


def grouped(failing: Iterable[Failing], now: float) -> tuple[Fault, ...]:
    """Return one Fault for all channels that fail at the same server for the same reason."""
    groups: dict[tuple[str, str, bool], list[Failing]] = {}
    for each in failing:
        groups.setdefault((each.where, each.cause, each.refused), []).append(each)
    return tuple(
        Fault(
            cause=cause,
            seconds=max(0.0, now - min(members).since),
            where=where,
            channels=len(members),
            channel=min(members).channel,
            refused=refused,
        )
        for (where, cause, refused), members in groups.items()
    )
