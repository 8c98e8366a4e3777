"""Revocation, RevocationLog and Disconnected: the values of `LivePush.disconnect`."""

from collections import deque
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from ..grant import Grant, check_channel, check_slot_key

# How many revocations the log keeps. A decision that began before the oldest of them is made again.
REMEMBERED = 1000

#: The request that `authorize` is deciding about. A call of `disconnect` inside of `authorize` does not
#: outdate the grant which that `authorize` returns.
deciding: ContextVar[object] = ContextVar("livepush_deciding", default=None)


class Disconnected(NamedTuple):
    """The result of `disconnect`.

    `processes` is how many processes confirmed, and `streams` how many streams ended in them. Both include
    this process if it runs.

    `missing` is how many processes did not confirm in time, although this process knows them or the broker
    counts them. Revoked streams may still be open there: the process stands still, or has lost the broker. It
    ends its streams, or authorizes them again, when it goes on or has reconnected.
    """

    streams: int
    processes: int
    missing: int


@dataclass(frozen=True, slots=True)
class Revocation:
    """The streams that have to end: those of a slot key, on a channel, or both. Validates the names."""

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


def can_be_revoked(grant: Grant) -> bool:
    """Return whether a revocation can match a stream with this grant: it has a slot key or a channel."""
    return grant.slot_key is not None or bool(grant.channel_names)


class RevocationLog:
    """The newest revocations, numbered. Read `number` before a decision, and call `outdates` after it."""

    def __init__(self) -> None:
        #: The number of the newest revocation.
        self.number = 0
        # Each revocation, and the request whose `authorize` called `disconnect`, if any. A revocation of None
        # says that revocations may have been lost.
        self._newest: deque[tuple[Revocation | None, object]] = deque(maxlen=REMEMBERED)

    def add(self, revocation: Revocation | None, by: object = None) -> None:
        """Add a revocation, or None if revocations may have been lost.

        `by` is the request whose `authorize` revokes.
        """
        self.number += 1
        self._newest.append((revocation, by))

    def outdates(self, number: int, grant: Grant, request: object = None) -> bool:
        """Return whether a grant may be revoked since `number`, except by the decision about `request`."""
        missed = self.number - number
        if missed > len(self._newest):
            return True
        return any(
            (by is None or by is not request) and (revocation is None or revocation.matches(grant))
            for revocation, by in islice(reversed(self._newest), missed)
        )
