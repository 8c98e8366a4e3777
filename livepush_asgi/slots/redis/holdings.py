"""Holdings: the leases that this process holds, by id and by slot key. Nothing here knows of a server."""

import time
from collections.abc import Iterator

from .. import Lease


class Held:
    """A held lease. `since` is when it was taken, by the monotonic clock.

    It is `sent` when a message that takes or renews it may have reached the server, and `sure` when the
    server is known to have it as it is here, with no such message still on its way.
    """

    __slots__ = ("lease", "sent", "since", "sure")

    def __init__(self, lease: Lease, *, sent: bool, sure: bool) -> None:
        self.lease = lease
        self.since = time.monotonic()
        self.sent = sent
        self.sure = sure


class Holdings:
    """Leases in the order in which they were taken."""

    def __init__(self) -> None:
        self._by_id: dict[str, Held] = {}
        self._by_key: dict[str, dict[str, Held]] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Held]:
        return iter(list(self._by_id.values()))

    def get(self, lease_id: str) -> Held | None:
        """Return a lease that is held, or None."""
        return self._by_id.get(lease_id)

    def add(self, held: Held) -> None:
        """Hold a lease."""
        self._by_id[held.lease.id] = held
        self._by_key.setdefault(held.lease.slot_key, {})[held.lease.id] = held

    def pop(self, lease_id: str) -> Held | None:
        """Hold a lease no more, and return it if it was held."""
        held = self._by_id.pop(lease_id, None)
        if held is not None:
            leases = self._by_key[held.lease.slot_key]
            del leases[lease_id]
            if not leases:
                del self._by_key[held.lease.slot_key]
        return held

    def of(self, slot_key: str) -> list[Held]:
        """Return the leases of a slot key, the oldest first."""
        return list(self._by_key.get(slot_key, {}).values())

    def slot_keys(self) -> list[str]:
        """Return the slot keys that have leases."""
        return list(self._by_key)
