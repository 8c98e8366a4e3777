"""A server that is full and evicts nothing: it is not written past its limit, and it is not the end."""

from pathlib import Path

import pytest
import redis

from livepush_asgi import BrokerUnavailableError, Grant, LivePush, RedisStreamsBroker
from livepush_asgi.testing import Client

from .valkey import ValkeyProcess

LIMIT = 8 * 1024 * 1024
# What commands and connections need while they run.
SLACK = 1024 * 1024

pytestmark = pytest.mark.real_time


def used(admin: redis.Redis) -> int:
    return int(admin.info("memory")["used_memory"])


async def refusal(push: LivePush, channel: str, size: int) -> str:
    """Publish so many bytes and return why that was refused."""
    try:
        await push.publish(channel, "x" * size)
    except BrokerUnavailableError as error:
        return str(error)
    return ""


async def test_a_full_server_is_not_written_past_its_limit(tmp_path: Path) -> None:
    options = (f"maxmemory {LIMIT}", "maxmemory-policy noeviction")
    with (
        ValkeyProcess(tmp_path / "valkey", *options) as server,
        redis.Redis.from_url(server.url) as admin,
    ):
        async with server.client() as client:
            broker = RedisStreamsBroker(client)
            push = LivePush(broker, lambda request: Grant(channels=("news",)))
            async with push.lifespan(), Client(push) as pages, pages.open("/") as stream:
                begin = (await stream.next_event(10, control=True)).id
                ids = [await push.publish("news", "before")]
                refusals = [
                    await refusal(push, f"room {size} {number}", size)
                    for size in (100_000, 1000, 1)
                    for number in range(400)
                ]
                assert refusals.count("") < 150
                assert all("the server is full: raise its maxmemory" in text for text in refusals if text)
                assert used(admin) < LIMIT + SLACK
                # Far below what it has, so that no buffer that is freed makes room.
                admin.config_set("maxmemory", LIMIT // 2)
                assert "the server is full" in await refusal(push, "news", 1)
                for number in range(1000):
                    with pytest.raises(BrokerUnavailableError, match="the server is full"):
                        await broker.read(f"asked for {number}", 0, 10)
                assert used(admin) < LIMIT + SLACK
                async with pages.open("/", last_event_id=begin) as again:
                    assert (await again.next_event(10)).data == "before"
                admin.config_set("maxmemory", "64mb")
                ids.append(await push.publish("news", "after"))
                heard = [await stream.next_event(10, control=True) for _ in range(2)]
                assert [(event.data, event.id) for event in heard] == list(
                    zip(["before", "after"], ids, strict=True)
                )
