"""Returns: the leases that were given back here and that the server still has to be told of."""

import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from . import Lease

# Each is forgotten by the server after `ttl` anyway; this bounds the memory while it is away.
MOST_RETURNS = 100_000
# So many leases go into one call.
LEASES_PER_CALL = 200


class Group(NamedTuple):
    """Leases of one slot key to be told of in one call; `sure` as in `Held`."""

    slot_key: str
    sure: bool
    lease_ids: tuple[str, ...]


class _Return(NamedTuple):
    lease: Lease
    sure: bool
    until: float


class Returns:
    """Bounded in number and, as a lease expires by itself, in time: `ttl` seconds each."""

    def __init__(self, ttl: float) -> None:
        #: How many were never told.
        self.dropped = 0
        self._ttl = ttl
        self._due: dict[str, _Return] = {}

    def __len__(self) -> int:
        return len(self._due)

    def add(self, lease: Lease, *, sure: bool) -> None:
        """Remember a lease. The oldest is dropped when there are too many."""
        while len(self._due) >= MOST_RETURNS:
            self._drop(next(iter(self._due)))
        self._due[lease.id] = _Return(lease, sure, time.monotonic() + self._ttl)

    def done(self, lease_ids: Iterable[str]) -> None:
        """Forget leases that the server was told of."""
        for lease_id in lease_ids:
            self._due.pop(lease_id, None)

    def drop_expired(self) -> None:
        """Forget the leases that have expired on the server by now."""
        now = time.monotonic()
        for lease_id in [lease_id for lease_id, due in self._due.items() if due.until <= now]:
            self._drop(lease_id)

    def drop_all(self) -> None:
        """Forget them all; they will expire."""
        for lease_id in list(self._due):
            self._drop(lease_id)

    def groups(self) -> Iterator[Group]:
        """Return what is to be told, as few calls."""
        together: dict[tuple[str, bool], list[str]] = {}
        for lease_id, due in self._due.items():
            together.setdefault((due.lease.slot_key, due.sure), []).append(lease_id)
        for (slot_key, sure), lease_ids in together.items():
            for start in range(0, len(lease_ids), LEASES_PER_CALL):
                yield Group(slot_key, sure, tuple(lease_ids[start : start + LEASES_PER_CALL]))

    def _drop(self, lease_id: str) -> None:
        del self._due[lease_id]
        self.dropped += 1
