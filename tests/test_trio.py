"""What is written for asyncio says so on trio."""

from collections.abc import Awaitable, Callable

import pytest
from redis.asyncio import Redis

from livepush_asgi import JetStreamBroker, NatsBroker, RedisBroker, RedisStreamsBroker, SlotCap

NOBODY = "//127.0.0.1:1"


@pytest.fixture
def anyio_backend() -> str:
    return "trio"


def redis() -> Redis:
    return Redis.from_url(f"redis:{NOBODY}")


CALLS: dict[str, Callable[[], Awaitable[object]]] = {
    "RedisBroker.subscribe": lambda: RedisBroker(redis()).subscribe("c"),
    "RedisBroker.publish": lambda: RedisBroker(redis()).publish("c", b"x"),
    "RedisStreamsBroker.subscribe": lambda: RedisStreamsBroker(redis()).subscribe("c"),
    "RedisStreamsBroker.append": lambda: RedisStreamsBroker(redis()).append("c", b"x"),
    "RedisStreamsBroker.read": lambda: RedisStreamsBroker(redis()).read("c", 0, 1),
    "NatsBroker.subscribe": lambda: NatsBroker(f"nats:{NOBODY}").subscribe("c"),
    "NatsBroker.publish": lambda: NatsBroker(f"nats:{NOBODY}").publish("c", b"x"),
    "JetStreamBroker.subscribe": lambda: JetStreamBroker(f"nats:{NOBODY}").subscribe("c"),
    "JetStreamBroker.append": lambda: JetStreamBroker(f"nats:{NOBODY}").append("c", b"x"),
    "JetStreamBroker.read": lambda: JetStreamBroker(f"nats:{NOBODY}").read("c", 0, 1),
    "SlotCap.take": lambda: SlotCap(redis()).take("k"),
    "SlotCap.held": lambda: SlotCap(redis()).held("k"),
}


@pytest.mark.parametrize("name", CALLS)
async def test_it_names_the_cause_and_the_mend(name: str) -> None:
    with pytest.raises(RuntimeError, match=r"work on asyncio.*take MemoryBroker and MemorySlotCap"):
        await CALLS[name]()
