"""Everything works where the event loop starts tasks eagerly (`asyncio.eager_task_factory`, Python 3.12)."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any
from uuid import uuid4

import pytest

from livepush_asgi import (
    Grant,
    JetStreamBroker,
    LivePush,
    MemoryBroker,
    MessagesLostError,
    NatsBroker,
    RedisBroker,
    RedisStreamsBroker,
)
from livepush_asgi.brokers import Broker, HistoryBroker, Subscription
from livepush_asgi.brokers.history import History
from livepush_asgi.testing import BrokerContract, Client, HistoryBrokerContract
from livepush_asgi.wire.event import split_position

from .nats_server import NatsProcess
from .valkey import ValkeyProcess

LONG = 10.0
TEN = History(events=10)


class EagerLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        super().__init__()
        self.set_task_factory(getattr(asyncio, "eager_task_factory"))  # noqa: B009  (3.11 has none)


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": EagerLoop}


class Eager:
    @pytest.fixture
    def anyio_backend(self) -> tuple[str, dict[str, Any]]:
        return "asyncio", {"loop_factory": EagerLoop}


class TestMemoryBroker(Eager, HistoryBrokerContract):
    @pytest.fixture
    def broker(self) -> HistoryBroker:
        return MemoryBroker()

    @pytest.fixture
    def bounded_broker(self) -> HistoryBroker:
        return MemoryBroker(TEN)


class TestRedisBroker(Eager, BrokerContract):
    @pytest.fixture
    async def broker(self, valkey: ValkeyProcess) -> AsyncIterator[Broker]:
        async with valkey.client() as client:
            yield RedisBroker(client)


class TestRedisStreamsBroker(Eager, HistoryBrokerContract):
    @pytest.fixture
    async def broker(self, valkey: ValkeyProcess) -> AsyncIterator[HistoryBroker]:
        async with valkey.client() as client:
            yield RedisStreamsBroker(client)

    @pytest.fixture
    async def bounded_broker(self, valkey: ValkeyProcess) -> AsyncIterator[HistoryBroker]:
        async with valkey.client() as client:
            yield RedisStreamsBroker(client, history=TEN)


class TestNatsBroker(Eager, BrokerContract):
    @pytest.fixture
    def broker(self, nats_server: NatsProcess) -> Broker:
        return NatsBroker(nats_server.url)


class TestJetStreamBroker(Eager, HistoryBrokerContract):
    @pytest.fixture
    def broker(self, nats_server: NatsProcess) -> HistoryBroker:
        return JetStreamBroker(nats_server.url, prefix=f"test-{uuid4().hex}")

    @pytest.fixture
    def bounded_broker(self, nats_server: NatsProcess) -> HistoryBroker:
        return JetStreamBroker(nats_server.url, prefix=f"test-{uuid4().hex}", history=TEN)


async def payload_of(subscription: Subscription) -> bytes:
    payload = await subscription.get_message(timeout=LONG)
    assert payload is not None
    return split_position(payload)[1]


async def check_reconnect(broker: Broker, server: ValkeyProcess | NatsProcess) -> None:
    subscription = await broker.subscribe("news")
    await broker.publish("news", b"before")
    assert await payload_of(subscription) == b"before"
    server.kill()
    server.start()
    with pytest.raises(MessagesLostError):
        await subscription.get_message(timeout=LONG)
    # Whoever comes late, and whoever was there, on a connection that was made again.
    late = await broker.subscribe("news")
    await asyncio.gather(*(broker.publish("news", b"after") for _ in range(300)))
    for each in (subscription, late):
        assert [await payload_of(each) for _ in range(300)] == [b"after"] * 300
        await each.close()
    again = await broker.subscribe("other")
    await broker.publish("other", b"again")
    assert await payload_of(again) == b"again"
    await again.close()


@pytest.mark.parametrize("kind", [RedisBroker, RedisStreamsBroker])
async def test_redis_is_reconnected(
    own_valkey: ValkeyProcess, kind: type[RedisBroker] | type[RedisStreamsBroker]
) -> None:
    async with own_valkey.client() as client:
        await check_reconnect(kind(client), own_valkey)


@pytest.mark.parametrize("kind", [NatsBroker, JetStreamBroker])
async def test_nats_is_reconnected(
    own_nats: NatsProcess, kind: type[NatsBroker] | type[JetStreamBroker]
) -> None:
    await check_reconnect(kind(own_nats.url), own_nats)


@asynccontextmanager
async def in_memory(valkey: ValkeyProcess) -> AsyncIterator[Broker]:
    yield MemoryBroker()


@asynccontextmanager
async def over_redis(valkey: ValkeyProcess) -> AsyncIterator[Broker]:
    async with valkey.client() as client:
        yield RedisStreamsBroker(client)


@pytest.mark.parametrize("make_broker", [in_memory, over_redis])
async def test_a_stream_is_served_and_resumed(
    valkey: ValkeyProcess, make_broker: Callable[[ValkeyProcess], AbstractAsyncContextManager[Broker]]
) -> None:
    async with make_broker(valkey) as broker:
        push = LivePush(broker, lambda request: Grant(channels=("news",)))
        async with push.lifespan(), Client(push) as client:
            async with client.open("/") as stream:
                await stream.next_event(name="livepush.open")
                for number in range(10):
                    await push.publish("news", number)
                assert [event.data for event in await stream.events(10)] == [str(n) for n in range(10)]
            await push.publish("news", "missed")
            async with client.open("/", last_event_id=stream.last_event_id) as again:
                assert (await again.next_event()).data == "missed"
