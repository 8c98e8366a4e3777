"""What is written for asyncio says so on trio."""

from collections.abc import Awaitable, Callable

import pytest
from redis.asyncio import Redis

from livepush_asgi import (
    JetStreamBroker,
    LivePush,
    MemoryBroker,
    NatsBroker,
    RedisBroker,
    RedisStreamsBroker,
    SlotCap,
    SlotsUnavailableError,
    public,
)
from livepush_asgi.testing import Client

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
    "SlotCap.acquire_lease": lambda: SlotCap(redis()).acquire_lease("k"),
    "SlotCap.held": lambda: SlotCap(redis()).held("k"),
}


@pytest.mark.parametrize("name", CALLS)
async def test_it_names_the_cause_and_the_mend(name: str) -> None:
    # A cap without an answer refuses the stream; it is no fault of the application.
    kind = SlotsUnavailableError if name.startswith("SlotCap") else RuntimeError
    with pytest.raises(kind, match=r"work on asyncio.*take MemoryBroker and MemorySlotCap"):
        await CALLS[name]()


async def test_a_cap_on_the_wrong_loop_refuses_its_streams_and_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cap = SlotCap(redis())
    push = LivePush(MemoryBroker(), public("news", slot_key="k"), slots=cap)
    async with push.lifespan():
        for _ in range(3):
            async with Client(push).open("/") as stream:
                assert stream.status == 503
    await cap.aclose()
    lines = [record.getMessage() for record in caplog.records if record.name == "livepush_asgi"]
    assert len(lines) == 1, lines
    assert "take MemoryBroker and MemorySlotCap" in lines[0]
