"""A slot that was given back is free for the next take, on a real server."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import pytest
import redis

from livepush_asgi import Grant, LivePush, MemoryBroker, SlotCap
from livepush_asgi.slots import Lease, OnFull
from livepush_asgi.testing import Client

from .own_slots import OwnSlotCap
from .serving import WireStream, uvicorn
from .valkey import ValkeyProcess, until

KEY = "tenant"

pytestmark = pytest.mark.real_time


@pytest.fixture
async def cap(valkey: ValkeyProcess) -> AsyncIterator[OwnSlotCap]:
    async with valkey.client() as client:
        cap = OwnSlotCap(client, cap=1)
        yield cap
        await cap.aclose()


@pytest.fixture
def admin(valkey: ValkeyProcess) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(valkey.url, decode_responses=True) as client:
        yield client


def live(admin: redis.Redis, slot_key: str = KEY) -> list[str]:
    return [str(id_) for id_ in admin.zrange(f"livepush:slot:{{{slot_key}}}", 0, -1)]


async def test_a_released_slot_can_be_acquired_at_once(cap: OwnSlotCap, admin: redis.Redis) -> None:
    assert await cap.acquire(KEY)
    for _ in range(200):
        await cap.release(KEY)
        assert live(admin) == []
        assert await cap.acquire(KEY)
        assert len(live(admin)) == 1
    assert not await cap.acquire(KEY)
    await cap.release(KEY)


async def test_a_lease_that_was_given_back_is_free_for_the_next_take(
    cap: OwnSlotCap, admin: redis.Redis
) -> None:
    lease = await cap.acquire_lease(KEY)
    for _ in range(200):
        lease.release()
        lease = await cap.acquire_lease(KEY)
    assert live(admin) == [lease.id]
    assert cap.statistics().refused == 0


async def test_a_slot_that_is_released_while_an_acquire_is_under_way_is_free_for_it(
    cap: OwnSlotCap, admin: redis.Redis
) -> None:
    lease = await cap.acquire_lease(KEY)
    for _ in range(20):
        acquiring = asyncio.create_task(cap.acquire_lease(KEY))
        # Its call has left by now, without the release.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        lease.release()
        lease = await acquiring
    assert live(admin) == [lease.id]
    assert cap.statistics().refused == 0


async def test_fifty_holders_that_give_back_and_take_at_once_are_never_refused(
    valkey: ValkeyProcess, admin: redis.Redis
) -> None:
    async with valkey.client() as client:
        cap = OwnSlotCap(client, cap=50)
        leases = [await cap.acquire_lease(KEY) for _ in range(50)]

        async def reopen(number: int) -> None:
            for _ in range(20):
                leases[number].release()
                if number % 3 == 0:
                    await asyncio.sleep(0)
                leases[number] = await cap.acquire_lease(KEY)

        await asyncio.gather(*map(reopen, range(50)))
        assert sorted(live(admin)) == sorted(lease.id for lease in leases)
        assert cap.statistics().refused == 0
        await cap.aclose()


async def test_a_thousand_slots_of_a_key_that_are_given_back_are_free_for_as_many_takes(
    valkey: ValkeyProcess, admin: redis.Redis
) -> None:
    async with valkey.client() as client:
        cap = OwnSlotCap(client, cap=1000)
        for _ in range(3):
            leases = await asyncio.gather(*(cap.acquire_lease(KEY) for _ in range(1000)))
            assert len(live(admin)) == 1000
            for lease in leases:
                lease.release()
        assert cap.statistics().refused == 0
        await until(lambda: live(admin) == [])
        await cap.aclose()


async def test_a_slot_that_was_given_back_is_not_replaced(valkey: ValkeyProcess, admin: redis.Redis) -> None:
    told: list[str] = []
    async with valkey.client() as client, valkey.client() as another:
        cap = OwnSlotCap(client, cap=2, on_full="replace_oldest")
        elsewhere = OwnSlotCap(another, cap=2, on_full="replace_oldest")
        first = await elsewhere.acquire_lease(KEY, lambda: told.append("first"))
        second = await cap.acquire_lease(KEY, lambda: told.append("second"))
        for number in range(100):
            second.release()
            second = await cap.acquire_lease(KEY, lambda number=number: told.append(f"{number}"))  # type: ignore[misc]
            assert second.replaced == ()
        assert sorted(live(admin)) == sorted([first.id, second.id])
        # Now there is one too many.
        third = await cap.acquire_lease(KEY)
        assert third.replaced == (first.id,)
        # What was replaced and is given back by its holder costs nobody a slot.
        elsewhere.replaced(third.replaced)
        assert told == ["first"]
        fourth = await elsewhere.acquire_lease(KEY)
        assert fourth.replaced == (second.id,)
        await cap.aclose()
        await elsewhere.aclose()


@pytest.mark.parametrize("on_full", ["refuse", "replace_oldest"])
async def test_release_and_acquire_by_key_alone_at_every_policy(
    valkey: ValkeyProcess, admin: redis.Redis, on_full: OnFull
) -> None:
    async with valkey.client() as client:
        cap = OwnSlotCap(client, cap=1, on_full=on_full)
        assert await cap.acquire(KEY)
        for _ in range(200):
            await cap.release(KEY)
            assert await cap.acquire(KEY)
        assert len(live(admin)) == 1
        assert cap.statistics().replaced == 0
        await cap.release(KEY)
        assert (live(admin), cap.statistics().held) == ([], 0)
        await cap.aclose()


async def test_release_waits_for_the_server_and_for_no_longer_than_the_timeout(
    own_valkey: ValkeyProcess,
) -> None:
    async with own_valkey.client() as client:
        cap = OwnSlotCap(client, cap=1, timeout=0.5, on_error="closed")
        assert await cap.acquire(KEY)
        own_valkey.pause()
        started = time.monotonic()
        await cap.release(KEY)
        assert 0.4 < time.monotonic() - started < 1.0
        assert cap.statistics().owed == 1
        # It is known to be away now: there is nothing to wait for.
        await until(lambda: cap.statistics().away)
        started = time.monotonic()
        await cap.release(KEY)
        assert time.monotonic() - started < 0.1
        own_valkey.resume()
        await until(lambda: cap.statistics().owed == 0 and not cap.statistics().away)
        assert await cap.acquire(KEY)
        await cap.release(KEY)
        await cap.aclose()


async def test_a_release_that_is_cancelled_has_released(cap: OwnSlotCap, admin: redis.Redis) -> None:
    assert await cap.acquire(KEY)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await cap.release(KEY)
    assert await cap.acquire(KEY)
    await cap.release(KEY)
    assert live(admin) == []


async def test_takes_that_are_cancelled_free_their_slots_for_the_next_take(
    cap: OwnSlotCap, admin: redis.Redis
) -> None:
    for turns in range(30):
        take = asyncio.create_task(cap.acquire_lease(KEY))
        # It is cancelled before its call left, on the way, and when its reply is there.
        for _ in range(turns % 15):
            await asyncio.sleep(0)
        take.cancel()
        (outcome,) = await asyncio.gather(take, return_exceptions=True)
        if isinstance(outcome, Lease):
            outcome.release()
        lease = await cap.acquire_lease(KEY)
        assert live(admin) == [lease.id]
        lease.release()
    await until(lambda: cap.statistics().owed == 0)
    assert live(admin) == []


@pytest.fixture
async def push(valkey: ValkeyProcess) -> AsyncIterator[LivePush]:
    async with valkey.client() as client:
        slots = SlotCap(client, cap=1)
        push = LivePush(
            MemoryBroker(),
            lambda request: Grant(channels="news", slot_key=request.query["page"]),
            slots=slots,
        )
        async with push.lifespan():
            yield push


async def test_pages_that_close_and_reopen_at_once_are_never_refused(
    push: LivePush, admin: redis.Redis
) -> None:
    async def reload(number: int) -> list[int]:
        statuses = []
        for _ in range(5):
            async with Client(push).open("/", query={"page": str(number)}.items()) as stream:
                statuses.append(stream.status)
        return statuses

    statuses = await asyncio.gather(*map(reload, range(50)))
    assert {status for of_page in statuses for status in of_page} == {200}
    await until(lambda: admin.keys("*") == [])


async def test_over_real_connections_a_page_that_reloads_is_never_refused(
    valkey: ValkeyProcess, tmp_path: Path
) -> None:
    environment = {"REDIS_URL": valkey.url, "CAP": "1"}

    async def reload(port: int, number: int) -> list[int]:
        statuses = []
        for _ in range(5):
            stream = await WireStream.open(port, f"/events?key={number}")
            statuses.append(stream.status)
            stream.close()
        return statuses

    async with uvicorn("tests.apps.push:app", tmp_path / "log", environment=environment) as server:
        statuses = await asyncio.gather(*(reload(server.port, number) for number in range(50)))
    assert {status for of_page in statuses for status in of_page} == {200}
