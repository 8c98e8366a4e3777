"""Clients that are cut at random and come back with their last id, while publishers run.

On real uvicorn every client gets every event once and in order, whatever happens to the broker's server.
"""

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from livepush_asgi import History, JetStreamBroker, LivePush, RedisStreamsBroker, Refusal

from .nats_server import NatsProcess
from .serving import Serving, uvicorn
from .test_uvicorn import APP, publish
from .valkey import ValkeyProcess

CHANNELS = ["a", "b", "c"]
CLIENTS, EVENTS = 60, 300
Publish = Callable[[str, object], Awaitable[object]]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Reader:
    """A client on all channels that gives up its connection now and then."""

    def __init__(self, server: Serving, seed: int) -> None:
        self._server = server
        self._random = random.Random(seed)
        self._last_id = ""
        self.began = asyncio.Event()
        self.seen: dict[str, list[int]] = {channel: [] for channel in CHANNELS}
        self.gaps: list[str] = []
        self.connections = 0

    async def run(self) -> None:
        while any(not numbers or numbers[-1] != EVENTS - 1 for numbers in self.seen.values()):
            try:
                await self._follow(self._random.randint(1, 200))
            except (EOFError, OSError):
                continue

    async def _follow(self, most: int) -> None:
        query = "&".join(f"channel={channel}" for channel in CHANNELS)
        stream = await self._server.open(f"/events?{query}&last_event_id={self._last_id}")
        self.connections += 1
        try:
            for _ in range(most):
                event = await stream.next_event(anything=True, timeout=30)
                self._last_id = event.last_event_id or self._last_id
                self._take(event.event, event.data)
                if all(numbers and numbers[-1] == EVENTS - 1 for numbers in self.seen.values()):
                    return
        finally:
            stream.abort()

    def _take(self, name: str, data: str) -> None:
        if name == "livepush.open":
            self.began.set()
        elif name == "livepush.gap":
            self.gaps.append(data)
        elif name == "message":
            channel, number = json.loads(data)
            self.seen[channel].append(number)


def faults(numbers: list[int]) -> list[str]:
    """Name where the numbers leave 0, 1, 2 …, which says more than the two lists do."""
    pairs = zip([-1, *numbers], [*numbers, EVENTS], strict=True)
    return [f"{number} after {before}" for before, number in pairs if number != before + 1]


async def storm(server: Serving, publish_to: Publish) -> None:
    readers = [Reader(server, seed) for seed in range(CLIENTS)]

    async def publish_all(channel: str) -> None:
        for number in range(EVENTS):
            await publish_to(channel, [channel, number])

    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        for reader in readers:
            tasks.create_task(reader.run())
        await asyncio.gather(*(reader.began.wait() for reader in readers))
        for channel in CHANNELS:
            tasks.create_task(publish_all(channel))
    for reader in readers:
        assert reader.gaps == []
        assert {channel: faults(numbers) for channel, numbers in reader.seen.items()} == {
            channel: [] for channel in CHANNELS
        }
    assert sum(reader.connections for reader in readers) > 2 * CLIENTS


async def test_in_memory_every_client_has_every_event_once(tmp_path: Path) -> None:
    async with uvicorn(APP, tmp_path / "log", environment={"CAP": "1000"}) as server:

        async def publish_to(channel: str, data: object) -> None:
            await publish(server, json.dumps(data), f"channel={channel}")

        await storm(server, publish_to)


def nobody(request: object) -> Refusal:
    return Refusal(404)


@pytest.mark.parametrize(
    "trouble", ["none", "connections are killed", "the server is paused", "the server is killed"]
)
async def test_over_redis_streams_two_workers_lose_and_double_nothing(trouble: str, tmp_path: Path) -> None:
    with ValkeyProcess(tmp_path / "valkey", persistent=True) as valkey:
        environment = {"CAP": "1000", "REDIS_URL": valkey.url, "HISTORY": "1"}
        async with (
            uvicorn(APP, tmp_path / "log", "--workers", "2", environment=environment) as server,
            valkey.client() as redis,
        ):
            push = LivePush(RedisStreamsBroker(redis, history=History(events=5000)), nobody)
            published = 0

            async def publish_to(channel: str, data: object) -> None:
                nonlocal published
                await push.publish(channel, data, idempotency_key=json.dumps(data), patience=30)
                published += 1
                if published == EVENTS:
                    await cause(trouble, valkey)

            await storm(server, publish_to)


async def test_over_jetstream_two_workers_lose_and_double_nothing(
    nats_server: NatsProcess, tmp_path: Path
) -> None:
    environment = {"CAP": "1000", "NATS_URL": nats_server.url}
    async with uvicorn(APP, tmp_path / "log", "--workers", "2", environment=environment) as server:
        push = LivePush(JetStreamBroker(nats_server.url), nobody)

        async def publish_to(channel: str, data: object) -> None:
            await push.publish(channel, data, idempotency_key=json.dumps(data), patience=30)

        await storm(server, publish_to)


async def cause(trouble: str, valkey: ValkeyProcess) -> None:
    match trouble:
        case "connections are killed":
            async with valkey.client() as redis:
                await redis.client_kill_filter(_type="pubsub")
        case "the server is paused":
            valkey.pause()
            await asyncio.sleep(OUTAGE)
            valkey.resume()
        case "the server is killed":
            valkey.kill()
            await asyncio.sleep(OUTAGE)
            valkey.start()


# How long the server is away, in seconds: nothing is waited for but the time itself.
OUTAGE = 2.0
