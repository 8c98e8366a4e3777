"""Two processes' worth of components on one real server: what one does, the other's streams show."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import pytest

from livepush_asgi import EndReason, LivePush, RedisBroker, SlotCap, Timing, public
from livepush_asgi.testing import Client, Stream

from .valkey import ValkeyProcess

# Renewals come after twenty seconds at the earliest: what shows sooner was told, not found out.
TTL = 60.0

pytestmark = pytest.mark.real_time


@asynccontextmanager
async def process(
    valkey: ValkeyProcess, *, on_full: str = "refuse"
) -> AsyncIterator[tuple[LivePush, Client]]:
    """Return a component with a client, a broker and a cap of its own."""
    async with valkey.client() as redis:
        slots = SlotCap(redis, cap=1, ttl=TTL, on_full=on_full)  # type: ignore[arg-type]
        authorize = public("news", slot_key="k")
        push = LivePush(RedisBroker(redis), authorize, slots=slots, timing=Timing(linger=0))
        async with push.lifespan(), Client(push) as client:
            yield push, client


async def opened(stack: AsyncExitStack, client: Client) -> Stream:
    stream = await stack.enter_async_context(client.open("/"))
    await stream.next_event(control=True)
    return stream


async def test_an_event_reaches_the_streams_of_both(valkey: ValkeyProcess) -> None:
    async with AsyncExitStack() as stack:
        here, client = await stack.enter_async_context(process(valkey, on_full="replace_oldest"))
        there, other = await stack.enter_async_context(process(valkey, on_full="replace_oldest"))
        stream = await opened(stack, client)
        await there.publish("news", {"n": 1}, event="x", id=1)
        event = await stream.next_event(5)
        assert (event.event, event.data, event.id) == ("x", '{"n":1}', "1")
        with anyio.fail_after(5):
            await here.disconnect(slot_key="k")
            assert await stream.wait_ended(5) == "revoked"
        another = await opened(stack, other)
        await here.publish("news", 2)
        assert (await another.next_event(5)).data == "2"
        await here.disconnect(channel="news")
        assert await another.wait_ended(5) == "revoked"


async def test_a_newer_stream_in_another_process_replaces_the_oldest_at_once(valkey: ValkeyProcess) -> None:
    async with AsyncExitStack() as stack:
        here, client = await stack.enter_async_context(process(valkey, on_full="replace_oldest"))
        _, other = await stack.enter_async_context(process(valkey, on_full="replace_oldest"))
        older = await opened(stack, client)
        newer = await opened(stack, other)
        assert await older.wait_ended(5) == "replaced"
        assert here.statistics()["ended"][EndReason.REPLACED] == 1
        async with valkey.client() as redis:
            assert await redis.zcard("livepush:slot:{k}") == 1
        await here.publish("news", "for the newer")
        assert (await newer.next_event(5)).data == "for the newer"
        assert newer.end_reason is None


async def test_the_cap_counts_the_streams_of_both(valkey: ValkeyProcess) -> None:
    async with AsyncExitStack() as stack:
        _, client = await stack.enter_async_context(process(valkey))
        _, other = await stack.enter_async_context(process(valkey))
        stream = await opened(stack, client)
        assert (await other.request("GET", "/")).status == 429
        await stream.disconnect()
        async with valkey.client() as redis:
            with anyio.fail_after(1):
                while await redis.zcard("livepush:slot:{k}"):
                    pass
        await opened(stack, other)
