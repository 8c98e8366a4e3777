"""Storms on real uvicorn and real servers: nothing lost, nothing doubled, whatever happens to the server.

The server is away, paused, or rid of its connections in the middle of each; the publishers go on throughout.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from redis.asyncio import Redis

from livepush_asgi import JetStreamBroker, LivePush, PostgresBroker, RedisStreamsBroker, Refusal

from .nats_server import NatsProcess
from .postgres_server import PostgresProcess
from .serving import Serving, uvicorn
from .storm import FULL, HEARTBEAT, SMALL, Publish, storm
from .test_uvicorn import APP, publish
from .valkey import ValkeyProcess

# How long the server is dead, and how long it is paused, in seconds: nothing is waited for but the time.
OUTAGE, PAUSE = 2.0, 10.0
COMMON = {"CAP": "1000", "HEARTBEAT": str(HEARTBEAT)}

pytestmark = [pytest.mark.real_time, pytest.mark.slow]


@pytest.fixture
def valkey_on_disk(tmp_path: Path) -> Iterator[ValkeyProcess]:
    with ValkeyProcess(tmp_path / "valkey", persistent=True) as server:
        yield server


def nobody(request: object) -> Refusal:
    return Refusal(404)


async def die(server: ValkeyProcess | NatsProcess | PostgresProcess) -> None:
    server.kill()
    await asyncio.sleep(OUTAGE)
    server.start()


async def pause(server: ValkeyProcess | NatsProcess | PostgresProcess) -> None:
    server.pause()
    await asyncio.sleep(PAUSE)
    server.resume()


# In memory.


async def test_in_memory_every_client_has_every_event_once(tmp_path: Path) -> None:
    async with uvicorn(APP, tmp_path / "log", environment=COMMON) as server:

        async def publish_to(channel: str, data: str) -> None:
            await publish(server, data, f"channel={channel}")

        await storm(server, publish_to, FULL)


# Over a log in Valkey, by two workers.


@asynccontextmanager
async def over_redis_streams(
    valkey: ValkeyProcess, log: Path
) -> AsyncIterator[tuple[Serving, Publish, Redis]]:
    environment = {**COMMON, "REDIS_URL": valkey.url, "HISTORY": "1"}
    async with (
        uvicorn(APP, log, "--workers", "2", environment=environment) as server,
        valkey.client() as redis,
    ):
        push = LivePush(RedisStreamsBroker(redis), nobody)

        async def publish_to(channel: str, data: str) -> None:
            await push.publish(channel, data, idempotency_key=data, retry_for=60)

        yield server, publish_to, redis


async def test_over_redis_streams(valkey_on_disk: ValkeyProcess, tmp_path: Path) -> None:
    async with over_redis_streams(valkey_on_disk, tmp_path / "log") as (server, publish_to, _):
        await storm(server, publish_to, FULL)


async def test_over_redis_streams_the_server_is_killed(valkey_on_disk: ValkeyProcess, tmp_path: Path) -> None:
    async with over_redis_streams(valkey_on_disk, tmp_path / "log") as (server, publish_to, _):
        await storm(server, publish_to, SMALL, lambda: die(valkey_on_disk))


async def test_over_redis_streams_the_server_is_paused(valkey_on_disk: ValkeyProcess, tmp_path: Path) -> None:
    async with over_redis_streams(valkey_on_disk, tmp_path / "log") as (server, publish_to, _):
        await storm(server, publish_to, SMALL, lambda: pause(valkey_on_disk))


async def test_over_redis_streams_the_connections_are_killed(
    valkey_on_disk: ValkeyProcess, tmp_path: Path
) -> None:
    async with over_redis_streams(valkey_on_disk, tmp_path / "log") as (server, publish_to, redis):
        killed: list[int] = []

        async def kill() -> None:
            killed.append(await redis.client_kill_filter(_type="pubsub"))

        await storm(server, publish_to, SMALL, kill)
        assert killed == [2]


async def test_over_redis_streams_the_output_buffer_overflows(
    valkey_on_disk: ValkeyProcess, tmp_path: Path
) -> None:
    """Each burst of a channel is more than the server keeps for one connection, so it closes both."""
    bursts = replace(SMALL, burst=60, padding=1024)
    async with over_redis_streams(valkey_on_disk, tmp_path / "log") as (server, publish_to, redis):

        async def limit() -> None:
            await redis.config_set("client-output-buffer-limit", "pubsub 32kb 16kb 1")

        await storm(server, publish_to, bursts, limit)
        assert (await redis.info("stats"))["client_output_buffer_limit_disconnections"] >= 2


# Over JetStream, by two workers.


@asynccontextmanager
async def over_jetstream(nats: NatsProcess, log: Path) -> AsyncIterator[tuple[Serving, Publish]]:
    environment = {**COMMON, "NATS_URL": nats.url}
    async with uvicorn(APP, log, "--workers", "2", environment=environment) as server:
        push = LivePush(JetStreamBroker(nats.url), nobody)

        async def publish_to(channel: str, data: str) -> None:
            await push.publish(channel, data, idempotency_key=data, retry_for=60)

        yield server, publish_to


async def test_over_jetstream(own_nats: NatsProcess, tmp_path: Path) -> None:
    async with over_jetstream(own_nats, tmp_path / "log") as (server, publish_to):
        await storm(server, publish_to, FULL)


async def test_over_jetstream_the_server_is_killed(own_nats: NatsProcess, tmp_path: Path) -> None:
    async with over_jetstream(own_nats, tmp_path / "log") as (server, publish_to):
        await storm(server, publish_to, SMALL, lambda: die(own_nats))


async def test_over_jetstream_the_server_is_paused(own_nats: NatsProcess, tmp_path: Path) -> None:
    async with over_jetstream(own_nats, tmp_path / "log") as (server, publish_to):
        await storm(server, publish_to, SMALL, lambda: pause(own_nats))


# Over PostgreSQL, by two workers.


@asynccontextmanager
async def over_postgres(postgres: PostgresProcess, log: Path) -> AsyncIterator[tuple[Serving, Publish]]:
    environment = {**COMMON, "POSTGRES_URL": postgres.dsn}
    async with (
        uvicorn(APP, log, "--workers", "2", environment=environment) as server,
        PostgresBroker(postgres.dsn) as broker,
    ):
        push = LivePush(broker, nobody)

        async def publish_to(channel: str, data: str) -> None:
            await push.publish(channel, data, idempotency_key=data, retry_for=60)

        yield server, publish_to


@pytest.fixture
def postgres() -> Iterator[PostgresProcess]:
    with PostgresProcess() as server:
        yield server


async def test_over_postgres_the_server_is_killed(postgres: PostgresProcess, tmp_path: Path) -> None:
    async with over_postgres(postgres, tmp_path / "log") as (server, publish_to):
        await storm(server, publish_to, SMALL, lambda: die(postgres))
