"""A SlotCap for tests that are its only user."""

from collections.abc import Callable

from livepush_asgi import SlotCap
from livepush_asgi.slots import Lease


class OwnSlotCap(SlotCap):
    """Gives back all that was taken when it is closed, as the holders of the leases do otherwise."""

    async def acquire_lease(self, slot_key: str, on_replaced: Callable[[], None] | None = None) -> Lease:
        """Take a slot and remember its lease."""
        lease = await super().acquire_lease(slot_key, on_replaced)
        self.__dict__.setdefault("given", []).append(lease)
        return lease

    async def aclose(self) -> None:
        """Give back every lease, and close."""
        for lease in self.__dict__.get("given", []):
            lease.release()
        await super().aclose()
