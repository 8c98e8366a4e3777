"""The delivery lag and the reconnects, on real servers: how old an event is, and how often they came back."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial

import anyio
import pytest

from livepush_asgi import (
    DrainPolicy,
    History,
    HistoryBroker,
    JetStreamBroker,
    LivePush,
    NatsBroker,
    Position,
    PostgresBroker,
    RedisBroker,
    RedisStreamsBroker,
    public,
)
from livepush_asgi.testing import Client

from .nats_server import NatsProcess
from .postgres_server import PostgresProcess
from .valkey import ValkeyProcess, until
from .valkey_cluster import ValkeyCluster

pytestmark = pytest.mark.real_time

DRAIN = DrainPolicy(window=0.1, signals=False)
Make = Callable[..., AbstractAsyncContextManager[JetStreamBroker | PostgresBroker | RedisStreamsBroker]]


@pytest.fixture(params=["redis", "nats", "postgres"])
def make(request: pytest.FixtureRequest, prefix: str) -> Make:
    @asynccontextmanager
    async def redis(server: ValkeyProcess, **options: object) -> AsyncIterator[RedisStreamsBroker]:
        async with server.client() as client:
            broker = RedisStreamsBroker(client, key_prefix=f"{prefix}:", **options)  # type: ignore[arg-type]
            yield broker
            await broker.aclose()

    @asynccontextmanager
    async def nats(server: NatsProcess, **options: object) -> AsyncIterator[JetStreamBroker]:
        yield JetStreamBroker(server.url, prefix=prefix, **options)  # type: ignore[arg-type]

    @asynccontextmanager
    async def postgres(server: PostgresProcess, **options: object) -> AsyncIterator[PostgresBroker]:
        async with PostgresBroker(server.dsn, prefix=f"t{prefix[-12:]}", **options) as broker:  # type: ignore[arg-type]
            yield broker

    if request.param == "postgres":
        return partial(postgres, request.getfixturevalue("postgres_server"))
    if request.param == "redis":
        return partial(redis, request.getfixturevalue("valkey"))
    return partial(nats, request.getfixturevalue("nats_server"))


async def test_how_old_an_event_is(make: Make) -> None:
    async with make(history=History(events=50)) as broker:
        assert isinstance(broker, HistoryBroker)
        first = time.time()
        positions = [await broker.append("news", b"%d" % number) for number in range(100)]
        await anyio.sleep(0.2)
        ages = [await broker.event_age("news", position) for position in positions]
        since = time.time() - first
        # JetStream and PostgreSQL drop some events later than the broker does.
        assert ages[:40] == [None] * 40
        kept = [age for age in ages[50:] if age is not None]
        assert len(kept) == 50
        # To a millisecond, which is all that an id has, and what two clocks of one machine differ by.
        assert all(0.19 < age < since + 0.05 for age in kept)
        assert await broker.event_age("news", positions[-1].next()) is None
        assert await broker.event_age("nobody's", Position("any", 1)) is None


@pytest.mark.slow
async def test_how_old_an_event_of_a_cluster_is(cluster: ValkeyCluster) -> None:
    async with cluster.client() as client:
        broker = RedisStreamsBroker(client)
        for channel in ("a", "b", "c", "d{e}"):
            position = await broker.append(channel, b"x")
            age = await broker.event_age(channel, position)
            assert age is not None
            assert 0 <= age < 1
        await broker.aclose()


@pytest.mark.parametrize("namespace", [None, "staging"])
async def test_the_lag_of_live_events(make: Make, namespace: str | None) -> None:
    async with make() as broker:
        push = LivePush(broker, public("news"), namespace=namespace, drain=DRAIN)
        async with push.lifespan(), Client(push) as client, client.open("/") as stream:
            await push.publish("news", "hello")
            await stream.next_event(5)
            await until(lambda: sum(push.statistics()["delivery_lag_seconds"]["counts"]) == 1)
            assert 0 <= push.statistics()["delivery_lag_seconds"]["sum"] < 1
            assert push.statistics()["publish_duration_seconds"]["sum"] > 0


@pytest.mark.parametrize("kind", [RedisBroker, RedisStreamsBroker])
async def test_reconnects_to_redis(own_valkey: ValkeyProcess, kind: type[RedisBroker]) -> None:
    async with own_valkey.client() as client:
        broker = kind(client)
        push = LivePush(broker, public("news"), drain=DRAIN)
        async with push.lifespan(), Client(push) as visitor, visitor.open("/"):
            for count in (1, 2):
                own_valkey.kill()
                await until(lambda: not push.healthy)
                own_valkey.start()
                await until(lambda: push.healthy)
                assert push.statistics()["broker_reconnects"] == count
        await broker.aclose()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [NatsBroker, JetStreamBroker])
async def test_reconnects_to_nats(own_nats: NatsProcess, kind: type[NatsBroker]) -> None:
    broker = kind(own_nats.url, linger=0.1)
    push = LivePush(broker, public("news"), drain=DRAIN)
    async with push.lifespan(), Client(push) as visitor, visitor.open("/"):
        own_nats.kill()
        await until(lambda: not push.healthy)
        own_nats.start()
        await until(lambda: push.statistics()["broker_reconnects"] == 1)
    # It counts on over the connections that it has one after the other.
    async with push.lifespan(), Client(push) as visitor, visitor.open("/"):
        assert push.statistics()["broker_reconnects"] == 1


@pytest.mark.slow
async def test_reconnects_to_postgres() -> None:
    with PostgresProcess() as server:
        broker = PostgresBroker(server.dsn)
        push = LivePush(broker, public("news"), drain=DRAIN)
        async with push.lifespan(), Client(push) as visitor, visitor.open("/") as stream:
            await stream.next_event(10, control=True)
            for count in (1, 2):
                server.kill()
                await until(lambda: not push.healthy)
                server.start()
                await until(lambda: push.healthy)
                assert push.statistics()["broker_reconnects"] == count
        await broker.aclose()
        assert push.statistics()["broker_reconnects"] == 2
