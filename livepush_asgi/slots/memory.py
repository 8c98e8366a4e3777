"""MemorySlotCap: a cap on the streams of one process."""

from collections.abc import Callable

from ..errors import CapExceededError
from . import BaseSlotCap, Lease, OnFull, SlotHook


class MemorySlotCap(BaseSlotCap):
    """At most `cap` open streams for each key, in this process.

    With `on_full="replace_oldest"` a new stream is always let in, and the oldest stream of the key ends with
    the reason `replaced`. Its page has to close it: EventSource comes back otherwise, and replaces the next
    one. `SlotCap` keeps a cap over several processes, through Redis.
    """

    def __init__(
        self,
        cap: int = 20,
        *,
        on_full: OnFull = "refuse",
        on_acquire: SlotHook | None = None,
        on_release: SlotHook | None = None,
    ) -> None:
        super().__init__(cap, on_full, on_acquire, on_release)
        # One bound method for all leases.
        self._released = self._lease_released
        # A dict keeps the order in which the leases were acquired, so the first one is the oldest.
        self._leases: dict[str, dict[Lease, None]] = {}

    @property
    def bounded(self) -> bool:
        """Whether `acquire_lease` never waits: True, except in a subclass that overrides it. See `Slots`."""
        return type(self).acquire_lease is MemorySlotCap.acquire_lease

    def held(self, slot_key: str) -> int:
        """Return how many slots of the key are taken."""
        return len(self._leases.get(slot_key, ()))

    async def acquire_lease(self, slot_key: str, on_replaced: Callable[[], None] | None = None) -> Lease:
        """Acquire a slot. Raises CapExceededError when all are taken and none may be replaced."""
        lease = Lease(slot_key, self._released, on_replaced if self._replaces else None)
        held = self._leases.get(slot_key, {})
        if len(held) >= self._cap:
            if not self._replaces:
                raise CapExceededError(slot_key, self._cap)
            oldest = next(iter(held))
            oldest.release()
            if oldest.on_replaced is not None:
                oldest.on_replaced()
        self._leases.setdefault(slot_key, {})[lease] = None
        if self._on_acquire is not None:
            self._call_hook(self._on_acquire, slot_key)
        return lease

    async def aclose(self) -> None:
        """Do nothing: a slot is free as soon as its holder releases it."""

    def _lease_released(self, lease: Lease) -> None:
        held = self._leases[lease.slot_key]
        del held[lease]
        if not held:
            del self._leases[lease.slot_key]
        if self._on_release is not None:
            self._call_hook(self._on_release, lease.slot_key)
