"""Real uvicorn on real Valkey when things break: connections counted, the server killed under streams."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from .serving import uvicorn
from .test_uvicorn import APP, open_streams, publish, statistics
from .valkey import ValkeyProcess

# How long the server stays away, in seconds: nothing is waited for but the time itself.
OUTAGE = 5.0

pytestmark = [pytest.mark.real_time, pytest.mark.slow]


@pytest.fixture
def redis(own_valkey: ValkeyProcess) -> Iterator[Redis]:
    with Redis.from_url(own_valkey.url) as client:
        yield client


async def test_500_streams_on_500_channels_cost_the_server_three_connections(
    own_valkey: ValkeyProcess, redis: Redis, tmp_path: Path
) -> None:
    environment = {"REDIS_URL": own_valkey.url, "CAP": "1000"}
    async with uvicorn(APP, tmp_path / "log", environment=environment) as server:
        streams = await asyncio.gather(
            *(server.open(f"/events?channel=c{n}&key=k{n % 7}") for n in range(500))
        )
        await asyncio.gather(*(stream.next_event("livepush.open") for stream in streams))
        async with asyncio.TaskGroup() as tasks:
            for number in range(0, 500, 50):
                tasks.create_task(publish(server, str(number), f"channel=c{number}"))
        for number in range(0, 500, 50):
            assert (await streams[number].next_event()).data == str(number)
        own = redis.client_id()
        others = [client for client in redis.client_list() if int(client["id"]) != own]
        assert len(others) <= 3
        assert sum(redis.zcard(f"livepush:slot:{{k{n}}}") for n in range(7)) == 500


async def test_a_server_that_is_killed_and_comes_back_ends_no_stream(
    own_valkey: ValkeyProcess, tmp_path: Path
) -> None:
    environment = {"REDIS_URL": own_valkey.url, "CAP": "1000", "TTL": "6"}
    async with uvicorn(APP, tmp_path / "log", environment=environment) as server:
        streams = await open_streams(server, 100)
        await publish(server, "before")
        assert {(await stream.next_event()).data for stream in streams} == {"before"}
        own_valkey.kill()
        await asyncio.sleep(OUTAGE)
        own_valkey.start()
        gaps = await asyncio.gather(*(stream.next_event("livepush.gap", timeout=15) for stream in streams))
        assert {event.data for event in gaps} == {
            json.dumps({"channel": "c", "reason": "broker"}, separators=(",", ":"))
        }
        await publish(server, "afterwards")
        assert {(await stream.next_event()).data for stream in streams} == {"afterwards"}
        with Redis.from_url(own_valkey.url) as redis:
            async with asyncio.timeout(6):
                while await asyncio.to_thread(redis.zcard, "livepush:slot:{k}") != 100:
                    pass
        found = await statistics(server)
        assert (found["streams"], found["healthy"]) == (100, True)
    lines = [line for line in server.log.splitlines() if "Redis at" in line]
    assert 2 <= len(lines) <= 4, server.log


async def test_a_stream_that_opens_while_the_server_is_away_is_told_when_it_is_back(
    own_valkey: ValkeyProcess, tmp_path: Path
) -> None:
    environment = {"REDIS_URL": own_valkey.url}
    own_valkey.kill()
    async with uvicorn(APP, tmp_path / "log", environment=environment) as server:
        (stream,) = await open_streams(server, 1)
        assert (await statistics(server))["healthy"] is False
        own_valkey.start()
        gap = await stream.next_event("livepush.gap", timeout=15)
        assert json.loads(gap.data)["reason"] == "broker"
        await publish(server, "hello")
        assert (await stream.next_event()).data == "hello"
