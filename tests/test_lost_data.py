"""The server comes back without its data: each stream is told so, for each of its channels, and goes on."""

import asyncio
import json
from pathlib import Path

import pytest

from livepush_asgi import JetStreamBroker, LivePush, RedisStreamsBroker, Refusal
from livepush_asgi.testing import ParsedEvent

from .nats_server import NatsProcess
from .serving import Serving, WireStream, uvicorn
from .test_uvicorn import APP
from .valkey import ValkeyProcess

CHANNELS = [f"c{number}" for number in range(10)]
STREAMS = 100

pytestmark = pytest.mark.real_time


def nobody(request: object) -> Refusal:
    return Refusal(404)


def channels_of(number: int) -> list[str]:
    """One channel for every other stream, and two that lie far apart for the rest."""
    first = CHANNELS[number % len(CHANNELS)]
    return [first] if number % 2 else [first, CHANNELS[(number + 5) % len(CHANNELS)]]


async def open_all(server: Serving) -> list[WireStream]:
    queries = ["&".join(f"channel={name}" for name in channels_of(number)) for number in range(STREAMS)]
    streams = await asyncio.gather(*(server.open(f"/events?{query}") for query in queries))
    await asyncio.gather(*(stream.next_event("livepush.open") for stream in streams))
    return list(streams)


async def publish_all(push: LivePush, words: list[str]) -> None:
    for word in words:
        for channel in CHANNELS:
            await push.publish(channel, f"{channel} {word}", idempotency_key=word, retry_for=60)


async def expect(stream: WireStream, channels: list[str], transcript: list[str]) -> None:
    """Read so many events, and compare what came of each channel."""
    found: dict[str, list[str]] = {channel: [] for channel in channels}
    for _ in range(len(channels) * len(transcript)):
        channel, word = told(await stream.next_event(anything=True, timeout=60))
        found[channel].append(word)
    assert found == dict.fromkeys(channels, transcript)


def told(event: ParsedEvent) -> tuple[str, str]:
    if event.event == "message":
        channel, _, word = event.data.partition(" ")
        return channel, word
    data = json.loads(event.data)
    return data["channel"], f"{event.event} {data['reason']}"


async def lose_everything(server: Serving, backend: ValkeyProcess | NatsProcess, publisher: LivePush) -> None:
    streams = await open_all(server)
    await publish_all(publisher, ["1", "2", "3"])
    async with asyncio.TaskGroup() as readers:
        for number, stream in enumerate(streams):
            readers.create_task(expect(stream, channels_of(number), ["1", "2", "3"]))
    backend.kill()
    backend.lose_data()
    backend.start()
    await publish_all(publisher, ["4", "5"])
    async with asyncio.TaskGroup() as readers:
        for number, stream in enumerate(streams):
            readers.create_task(expect(stream, channels_of(number), ["livepush.gap epoch", "4", "5"]))


async def test_over_redis_streams(tmp_path: Path) -> None:
    with ValkeyProcess(tmp_path / "valkey", persistent=True) as valkey:
        environment = {"CAP": "1000", "HEARTBEAT": "120", "REDIS_URL": valkey.url, "HISTORY": "1"}
        async with (
            uvicorn(APP, tmp_path / "log", "--workers", "2", environment=environment) as server,
            valkey.client() as redis,
        ):
            await lose_everything(server, valkey, LivePush(RedisStreamsBroker(redis), nobody))


async def test_over_jetstream(own_nats: NatsProcess, tmp_path: Path) -> None:
    environment = {"CAP": "1000", "HEARTBEAT": "120", "NATS_URL": own_nats.url}
    async with uvicorn(APP, tmp_path / "log", "--workers", "2", environment=environment) as server:
        await lose_everything(server, own_nats, LivePush(JetStreamBroker(own_nats.url), nobody))
