"""PullBroker: the least that the port asks for, as an adapter of somebody else's may be. Every message is
asked for with `get_message`; nothing forwards.
"""

from livepush_asgi import MemoryBroker
from livepush_asgi.brokers import Subscription
from livepush_asgi.testing import MockBroker


class PullSubscription:
    def __init__(self, inner: Subscription) -> None:
        self._inner = inner

    async def get_message(self, *, timeout: float) -> bytes | None:
        return await self._inner.get_message(timeout=timeout)

    async def close(self) -> None:
        await self._inner.close()


class PullBroker:
    def __init__(self) -> None:
        self.inner = MockBroker()

    async def publish(self, channel: str, payload: str | bytes) -> int:
        return await self.inner.publish(channel, payload)

    async def subscribe(self, channel: str) -> Subscription:
        return PullSubscription(await self.inner.subscribe(channel))


class PullHistoryBroker(MemoryBroker):
    """The same with history."""

    async def subscribe(self, channel: str) -> Subscription:
        return PullSubscription(await super().subscribe(channel))
