"""Several LivePush objects on one cap: what one gives up when it stops, and what it leaves alone."""

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import anyio
import pytest

from livepush_asgi import LivePush, MemoryBroker, MemorySlotCap, SlotCap, Timing, public
from livepush_asgi.slots import Slots
from livepush_asgi.testing import Client, Stream

from .valkey import ValkeyProcess, until


def application(slots: Slots) -> LivePush:
    return LivePush(MemoryBroker(), public("news", slot_key="k"), slots=slots, timing=Timing(linger=0))


async def open_one(stack: AsyncExitStack, push: LivePush) -> Stream:
    return await stack.enter_async_context(Client(push).open("/"))


async def status_of_one_more(push: LivePush) -> int:
    async with Client(push).open("/") as stream:
        return stream.status


async def test_stopping_one_leaves_the_slots_of_the_other_in_memory() -> None:
    cap = MemorySlotCap(2)
    staying, going = application(cap), application(cap)
    async with staying.lifespan(), AsyncExitStack() as streams:
        await open_one(streams, staying)
        async with going.lifespan():
            ended = await open_one(streams, going)
            assert cap.held("k") == 2
            assert await status_of_one_more(staying) == 429
        assert await ended.wait_ended(5) == "drain"
        assert cap.held("k") == 1
        await open_one(streams, staying)
        assert await status_of_one_more(staying) == 429
    assert cap.held("k") == 0


@pytest.mark.real_time
@pytest.mark.slow
class TestOverAServer:
    """The same with leases on a server, which have to be renewed."""

    @pytest.fixture
    async def cap(self, valkey: ValkeyProcess) -> AsyncIterator[SlotCap]:
        async with valkey.client() as client:
            yield SlotCap(client, cap=2, ttl=0.9)

    async def test_stopping_one_leaves_the_slots_of_the_other(
        self, valkey: ValkeyProcess, cap: SlotCap
    ) -> None:
        staying, going = application(cap), application(cap)
        async with staying.lifespan(), AsyncExitStack() as streams:
            await open_one(streams, staying)
            async with going.lifespan():
                ended = await open_one(streams, going)
                assert await cap.held("k") == 2
                assert await status_of_one_more(staying) == 429
            # The server knows what the one that has stopped gave back.
            assert await cap.held("k") == 1
            assert await ended.wait_ended(5) == "drain"
            # The other one's lease is renewed as before.
            end = time.monotonic() + 2.7
            while time.monotonic() < end:
                assert await cap.held("k") == 1
                await anyio.sleep(0.05)
            await open_one(streams, staying)
            assert await status_of_one_more(staying) == 429
        assert await cap.held("k") == 0
        await until(lambda: cap.statistics().held == 0)

    async def test_what_was_acquired_by_key_alone_stays_until_it_is_released(self, cap: SlotCap) -> None:
        assert await cap.acquire("k")
        await cap.aclose()
        end = time.monotonic() + 1.8
        while time.monotonic() < end:
            assert await cap.held("k") == 1
            await anyio.sleep(0.05)
        await cap.release("k")
        assert await cap.held("k") == 0
        await cap.aclose()

    async def test_closing_while_the_server_is_away_gives_up_on_nothing_that_is_held(
        self, own_valkey: ValkeyProcess
    ) -> None:
        async with own_valkey.client() as client:
            cap = SlotCap(client, cap=3, ttl=20, timeout=0.3)
            held, given = await cap.acquire_lease("k"), await cap.acquire_lease("k")
            own_valkey.pause()
            given.release()
            started = time.monotonic()
            await cap.aclose()
            assert 1.5 < time.monotonic() - started < 3
            assert (cap.statistics().owed, cap.statistics().dropped) == (1, 0)
            own_valkey.resume()
            await until(lambda: cap.statistics().owed == 0)
            assert await cap.held("k") == 1
            held.release()
            await cap.aclose()
            assert cap.statistics().owed == 0
