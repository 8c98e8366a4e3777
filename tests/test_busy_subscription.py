"""A subscription whose `get_message` always has something gives the other tasks their turn."""

import tracemalloc

import anyio
import anyio.lowlevel
import pytest

from livepush_asgi import Grant, LivePush, MessagesLostError
from livepush_asgi.brokers import Subscription
from livepush_asgi.testing import Client, MockBroker

# More than ever comes in a test that passes, so that one that fails ends.
ENDLESS = 100_000


class BusySubscription:
    """Answers at once, without ever giving up the event loop."""

    def __init__(self, payload: bytes, *, losing: bool = False) -> None:
        self._payload = payload
        self._losing = losing
        self.given = 0

    async def get_message(self, *, timeout: float) -> bytes | None:
        self.given += 1
        if self.given > ENDLESS:
            raise RuntimeError("nobody else had a turn")
        if self._losing:
            raise MessagesLostError("as the test wants it")
        return self._payload

    async def close(self) -> None:
        pass


class BusyBroker(MockBroker):
    def __init__(self, subscription: BusySubscription) -> None:
        super().__init__()
        self._subscription = subscription

    async def subscribe(self, channel: str) -> Subscription:  # type: ignore[override]
        return self._subscription if channel == "busy" else await super().subscribe(channel)


@pytest.mark.parametrize(
    "subscription",
    [
        BusySubscription(b"x"),
        BusySubscription(b"x" * 100_000),
        BusySubscription(b"\xff not text"),
        BusySubscription(b"x", losing=True),
    ],
    ids=["small", "large", "unreadable", "losing"],
)
async def test_other_tasks_run_and_memory_stays_bounded(subscription: BusySubscription) -> None:
    subscription.given = 0
    push = LivePush(BusyBroker(subscription), lambda request: Grant(channels=("busy",)))
    tracemalloc.start()
    try:
        async with push.lifespan(), Client(push) as client, client.open("/") as stream:
            # A quiet neighbour, which a full event loop would keep waiting.
            async with anyio.create_task_group() as tasks:
                turns = 0

                async def neighbour() -> None:
                    nonlocal turns
                    for _ in range(300):
                        await anyio.lowlevel.checkpoint()
                        turns += 1

                tasks.start_soon(neighbour)
            assert turns == 300
            assert (await stream.next_event(name="livepush.open")).event == "livepush.open"
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 0 < subscription.given < ENDLESS
    assert most < 64 * 1024**2
