"""PullBroker: the least that the port asks for, as an adapter of somebody else's may be. Every message is
asked for with `get_message`; nothing forwards.
"""

import math

import anyio

from livepush_asgi import MemoryBroker
from livepush_asgi.broker import ForwardingSubscription, Subscription
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


class PositionedSubscription:
    """Gives with `get_message` what a sink gets, positions and all."""

    def __init__(self, inner: ForwardingSubscription) -> None:
        self._inner = inner
        self._send, self._receive = anyio.create_memory_object_stream[bytes](math.inf)
        inner.forward(self)

    def deliver(self, payload: bytes, /) -> None:
        self._send.send_nowait(payload)

    def lost(self) -> None:
        raise AssertionError("nothing is lost in memory")

    async def get_message(self, *, timeout: float) -> bytes | None:
        with anyio.move_on_after(timeout):
            return await self._receive.receive()
        return None

    async def close(self) -> None:
        await self._inner.close()
        self._send.close()
        self._receive.close()


class PullHistoryBroker(MemoryBroker):
    """The same with history."""

    async def subscribe(self, channel: str) -> Subscription:
        subscription = await super().subscribe(channel)
        assert isinstance(subscription, ForwardingSubscription)
        return PositionedSubscription(subscription)
