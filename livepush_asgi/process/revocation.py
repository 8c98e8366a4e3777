"""What a revocation is, which decisions it outdates, and what `disconnect` returns. Values alone."""

from collections import deque
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from ..grant import Grant, check_channel, check_slot_key

# How many revocations are remembered. A decision that began before the oldest of them is made again.
REMEMBERED = 1000

#: The request that `authorize` is deciding about. A revocation by that call does not outdate its own grant.
deciding: ContextVar[object] = ContextVar("livepush_deciding", default=None)


class Disconnected(NamedTuple):
    """The result of `disconnect`: `streams` that ended in this process, and `processes` that confirmed.

    This process counts among `processes` if it runs. A process that did not confirm could not be reached in
    time: it ends its streams, or authorizes them again, when it is back.
    """

    streams: int
    processes: int


@dataclass(frozen=True, slots=True)
class Revocation:
    """Names streams that have to end: by slot key, by channel, or both. Raises for what no Grant can have."""

    slot_key: str | None = None
    channel: str | None = None

    def __post_init__(self) -> None:
        if self.slot_key is None and self.channel is None:
            raise TypeError("disconnect needs a slot_key or a channel")
        if self.slot_key is not None:
            check_slot_key(self.slot_key)
        if self.channel is not None:
            check_channel(self.channel)

    def matches(self, grant: Grant) -> bool:
        """Return whether a stream with this grant has to end."""
        return (self.slot_key is None or grant.slot_key == self.slot_key) and (
            self.channel is None or self.channel in grant.channel_names
        )


class RevocationLog:
    """The newest revocations, numbered. Note `number` before a decision; call `outdates` after it."""

    def __init__(self) -> None:
        #: The number of the newest revocation.
        self.number = 0
        # Each with the request whose `authorize` revoked. None stands for revocations that may be lost.
        self._newest: deque[tuple[Revocation | None, object]] = deque(maxlen=REMEMBERED)

    def add(self, revocation: Revocation | None, by: object = None) -> None:
        """Remember a revocation; None where some may be lost.

        `by` is the request whose `authorize` revokes.
        """
        self.number += 1
        self._newest.append((revocation, by))

    def outdates(self, number: int, grant: Grant, request: object = None) -> bool:
        """Return whether a grant was revoked since `number`, other than by the decision about `request`."""
        missed = self.number - number
        if missed > len(self._newest):
            return True
        return any(
            (by is None or by is not request) and (revocation is None or revocation.matches(grant))
            for revocation, by in islice(reversed(self._newest), missed)
        )
