"""An ordinary wrapper around a broker with history, such as a prefix, that only has `get_message`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from livepush_asgi import Grant, LivePush, MemoryBroker, RedisStreamsBroker
from livepush_asgi.brokers import READ_BYTES, HistoryBroker, Page, Subscription
from livepush_asgi.testing import Client
from livepush_asgi.wire.cursor import Position

from .pull_broker import PullSubscription
from .valkey import ValkeyProcess


class Prefixed:
    """Puts a prefix before the names of channels."""

    def __init__(self, inner: HistoryBroker) -> None:
        self._inner = inner

    async def publish(self, channel: str, payload: str | bytes) -> int:
        return await self._inner.publish(f"staging:{channel}", payload)

    async def subscribe(self, channel: str) -> Subscription:
        return PullSubscription(await self._inner.subscribe(f"staging:{channel}"))

    async def append(
        self,
        channel: str,
        payload: bytes,
        *,
        idempotency_key: str | None = None,
        expected_position: Position | None = None,
    ) -> Position:
        return await self._inner.append(
            f"staging:{channel}",
            payload,
            idempotency_key=idempotency_key,
            expected_position=expected_position,
        )

    async def read(self, channel: str, after: int, limit: int, *, max_bytes: int = READ_BYTES) -> Page:
        return await self._inner.read(f"staging:{channel}", after, limit, max_bytes=max_bytes)


async def check_delivery(broker: HistoryBroker) -> None:
    push = LivePush(broker, lambda request: Grant(channels=("news",)))
    async with push.lifespan(), Client(push) as client:
        async with client.open("/") as stream:
            await stream.next_event(10, control=True)
            ids = [await push.publish("news", number) for number in range(20)]
            heard = await stream.events(20, 10)
            assert [event.data for event in heard] == [str(number) for number in range(20)]
            assert [event.id for event in heard] == ids
            ids.append(await push.publish("news", "last"))
            last = await stream.next_event(10)
            assert (last.data, last.id) == ("last", ids[-1])
        async with client.open("/", last_event_id=ids[9]) as stream:
            heard = await stream.events(11, 10)
            assert [event.id for event in heard] == ids[10:]


async def test_a_wrapper_of_the_memory_broker_delivers_each_event_once_with_its_id() -> None:
    await check_delivery(Prefixed(MemoryBroker()))


@pytest.mark.real_time
class TestOnAServer:
    @asynccontextmanager
    async def _broker(self, valkey: ValkeyProcess) -> AsyncIterator[HistoryBroker]:
        async with valkey.client() as client:
            yield Prefixed(RedisStreamsBroker(client))

    async def test_a_wrapper_of_the_redis_streams_broker_delivers_each_event_once_with_its_id(
        self, valkey: ValkeyProcess
    ) -> None:
        async with self._broker(valkey) as broker:
            await check_delivery(broker)
