"""MemorySlotCap: a cap on the streams of one process."""

from collections.abc import Callable

from ..errors import CapExceededError
from . import Lease, LeasesByKey, OnFull, SlotHook, call_hook, check_cap


class MemorySlotCap:
    """At most `cap` open streams for each key, in this process.

    With `on_full="replace_oldest"` a new stream is always let in, and the oldest stream of the key ends with
    the reason `replaced`. `SlotCap` keeps a cap over several processes, through Redis.
    """

    def __init__(
        self,
        cap: int = 20,
        *,
        on_full: OnFull = "refuse",
        on_acquire: SlotHook | None = None,
        on_release: SlotHook | None = None,
    ) -> None:
        check_cap(cap, on_full)
        self._cap = cap
        self._replaces = on_full == "replace_oldest"
        self._on_acquire = on_acquire
        self._on_release = on_release
        # One bound method for all leases.
        self._on_give_back = self._give_back
        # A dict keeps the order in which the leases were taken, so the first one is the oldest.
        self._leases: dict[str, dict[Lease, None]] = {}
        self._by_key = LeasesByKey()

    @property
    def cap(self) -> int:
        """How many slots each key has."""
        return self._cap

    @property
    def bounded(self) -> bool:
        """Whether `take` never waits: True, except in a subclass that overrides `take`. See `Slots`."""
        return type(self).take is MemorySlotCap.take

    def held(self, slot_key: str) -> int:
        """Return how many slots of the key are taken."""
        return len(self._leases.get(slot_key, ()))

    async def take(self, slot_key: str, on_replaced: Callable[[], None] | None = None) -> Lease:
        """Take a slot. Raises CapExceededError when all are taken and none may be replaced."""
        lease = Lease(slot_key, self._on_give_back, on_replaced if self._replaces else None)
        held = self._leases.get(slot_key, {})
        if len(held) >= self._cap:
            if not self._replaces:
                raise CapExceededError(slot_key, self._cap)
            oldest = next(iter(held))
            oldest.give_back()
            if oldest.on_replaced is not None:
                oldest.on_replaced()
        self._leases.setdefault(slot_key, {})[lease] = None
        if self._on_acquire is not None:
            call_hook(self._on_acquire, slot_key)
        return lease

    async def acquire(self, slot_key: str) -> bool:
        """Take a slot, to be given back by `release`. Return False if all are taken."""
        return await self._by_key.acquire(self.take(slot_key))

    async def release(self, slot_key: str) -> None:
        """Give back the oldest slot that `acquire` took. Does nothing if there is none."""
        self._by_key.release(slot_key)

    async def aclose(self) -> None:
        """Do nothing: a slot is free as soon as its holder gives it back."""

    def _give_back(self, lease: Lease) -> None:
        held = self._leases[lease.slot_key]
        del held[lease]
        if not held:
            del self._leases[lease.slot_key]
        if self._on_release is not None:
            call_hook(self._on_release, lease.slot_key)
