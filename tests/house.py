"""A service with one slot, for the routes of frameworks."""

from livepush_asgi import Grant, MemorySlotCap, SSEStreamService
from livepush_asgi.testing import MockBroker

from .valkey import until


class House:
    """A service with one slot, and what happened to it."""

    def __init__(self, *channels: str) -> None:
        self.broker = MockBroker()
        self.slots = MemorySlotCap(1)
        self.service = SSEStreamService(self.broker, self.slots)
        self.log: list[str] = []
        self.expires_at: float | None = None
        self._channels = channels or ("c",)

    def grant(self) -> Grant:
        return Grant(channels=self._channels, slot_key="k", expires_at=self.expires_at)

    async def until_free(self) -> None:
        await until(lambda: self.slots.held("k") == 0, within=1)
