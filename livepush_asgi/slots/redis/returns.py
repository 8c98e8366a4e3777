"""Returns: the leases that were given back here and that the server has not confirmed yet."""

import asyncio
import contextlib
import time
from collections.abc import Iterable

from .. import Lease

# The server forgets each after `ttl` anyway; this bounds the memory while it is away.
MOST_RETURNS = 100_000


class Return:
    """A lease that was given back. It is `sure` as in `Held`."""

    __slots__ = ("confirmed", "lease_id", "slot_key", "sure", "until")

    def __init__(self, lease: Lease, *, sure: bool, until: float) -> None:
        self.lease_id = lease.id
        self.slot_key = lease.slot_key
        self.sure = sure
        #: When the server forgets it by itself, by the monotonic clock.
        self.until = until
        #: Made for the caller that waits for it.
        self.confirmed: asyncio.Future[None] | None = None


class Returns:
    """Bounded in number and, as a lease expires by itself, in time: `ttl` seconds each.

    Each is due when nothing about it is on its way to the server. `take_due` returns the due ones, which
    then are on their way until they are `done` or have `failed`; `retry` makes the failed ones due again.
    """

    def __init__(self, ttl: float) -> None:
        #: How many the server was never told of.
        self.dropped = 0
        self._ttl = ttl
        self._by_id: dict[str, Return] = {}
        self._by_key: dict[str, dict[str, Return]] = {}
        # Slot keys, and whether it is a retry.
        self._due: dict[str, bool] = {}
        self._failed: set[str] = set()

    def __len__(self) -> int:
        return len(self._by_id)

    @property
    def any_due(self) -> bool:
        """Whether a slot key has returns that were never sent."""
        return bool(self._due)

    @property
    def any_failed(self) -> bool:
        """Whether there are returns to be sent again."""
        return bool(self._failed)

    def add(self, lease: Lease, *, sure: bool) -> None:
        """Remember a lease. The oldest is dropped when there are too many."""
        while len(self._by_id) >= MOST_RETURNS:
            self._drop(next(iter(self._by_id)))
        given = Return(lease, sure=sure, until=time.monotonic() + self._ttl)
        self._by_id[given.lease_id] = given
        self._by_key.setdefault(given.slot_key, {})[given.lease_id] = given
        self._due.setdefault(given.slot_key, False)

    def of(self, slot_key: str) -> list[Return]:
        """Return the leases of a slot key, the oldest first."""
        return list(self._by_key.get(slot_key, {}).values())

    def take_due(self) -> dict[str, bool]:
        """Return the slot keys that have returns to be sent now, and whether it is a retry."""
        due, self._due = self._due, {}
        return {slot_key: retry for slot_key, retry in due.items() if slot_key in self._by_key}

    def failed(self, slot_key: str) -> None:
        """Keep what is left of a slot key for the next `retry`."""
        if slot_key in self._by_key:
            self._failed.add(slot_key)

    def retry(self) -> None:
        """Have those that failed sent again, except what has expired by now."""
        self.drop_expired()
        self._due |= dict.fromkeys(self._failed, True)
        self._failed.clear()

    def requeue(self) -> None:
        """Have all of them sent again: what was on its way was lost with its event loop."""
        self._due = dict.fromkeys(self._by_key, True)
        self._failed.clear()

    def done(self, lease_ids: Iterable[str]) -> None:
        """Forget leases that the server has confirmed."""
        for lease_id in lease_ids:
            self._forget(lease_id)

    def drop_expired(self) -> None:
        """Forget the leases that have expired on the server by now."""
        now = time.monotonic()
        while self._by_id:
            oldest = next(iter(self._by_id.values()))
            if oldest.until > now:
                return
            self._drop(oldest.lease_id)

    def drop_all(self) -> None:
        """Forget them all; they will expire."""
        for lease_id in list(self._by_id):
            self._drop(lease_id)

    async def wait(self, lease_ids: Iterable[str], timeout: float) -> None:
        """Wait until the server has confirmed these or they were dropped, for `timeout` seconds at most."""
        loop = asyncio.get_running_loop()
        waiting = set()
        for lease_id in lease_ids:
            given = self._by_id.get(lease_id)
            if given is not None:
                if given.confirmed is None or given.confirmed.get_loop() is not loop:
                    given.confirmed = loop.create_future()
                waiting.add(given.confirmed)
        if waiting:
            await asyncio.wait(waiting, timeout=timeout)

    def ids(self) -> list[str]:
        """Return the ids of all of them."""
        return list(self._by_id)

    def _drop(self, lease_id: str) -> None:
        self._forget(lease_id)
        self.dropped += 1

    def _forget(self, lease_id: str) -> None:
        given = self._by_id.pop(lease_id, None)
        if given is None:
            return
        leases = self._by_key[given.slot_key]
        del leases[lease_id]
        if not leases:
            del self._by_key[given.slot_key]
            self._failed.discard(given.slot_key)
        if given.confirmed is not None and not given.confirmed.done():
            # RuntimeError: the caller waited on an event loop that has ended.
            with contextlib.suppress(RuntimeError):
                given.confirmed.set_result(None)
