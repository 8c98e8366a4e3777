"""What an hour of real life does to a cap: pauses, steps of the clock, answers that come too late, churn."""

import asyncio
import time
from threading import Thread

import anyio
import pytest
import redis

from livepush_asgi.errors import CapExceededError, SlotsUnavailableError
from livepush_asgi.slots import Lease
from livepush_asgi.slots.redis import OnError

from .own_slots import OwnSlotCap
from .valkey import ValkeyProcess, until

KEY = "tenant"

pytestmark = [pytest.mark.real_time, pytest.mark.slow]


def live(admin: redis.Redis, slot_key: str = KEY) -> list[str]:
    seconds, microseconds = admin.time()
    now = seconds * 1_000_000 + microseconds
    return [str(id_) for id_ in admin.zrangebyscore(f"livepush:slot:{{{slot_key}}}", f"({now}", "+inf")]


def stand_still_while_another_process_takes(server: ValkeyProcess, count: int) -> None:
    """Block this event loop until its leases have expired and another loop has taken the slots."""

    async def take() -> None:
        async with server.client() as client:
            cap = OwnSlotCap(client, cap=2, ttl=30)
            while cap.statistics().acquired < count:
                try:
                    await cap.acquire_lease(KEY)
                except CapExceededError:
                    await asyncio.sleep(0.05)

    thread = Thread(target=lambda: asyncio.run(take()))
    thread.start()
    thread.join()


@pytest.mark.parametrize("on_error", ["open", "closed"])
async def test_a_process_that_stood_still_for_longer_than_its_leases_lived(
    own_valkey: ValkeyProcess, admin: redis.Redis, on_error: OnError
) -> None:
    told: list[str] = []
    async with own_valkey.client() as client:
        cap = OwnSlotCap(client, cap=2, ttl=0.5, on_error=on_error)
        first = await cap.acquire_lease(KEY, lambda: told.append("first"))
        second = await cap.acquire_lease(KEY, lambda: told.append("second"))
        stand_still_while_another_process_takes(own_valkey, 1)
        if on_error == "closed":
            # One slot was taken meanwhile, and one of the two streams has to go.
            await until(lambda: len(told) == 1)
            assert [first.released, second.released] == [name in told for name in ("first", "second")]
        else:
            # Nobody who was let in is thrown out: they are counted, all three.
            await until(lambda: len(live(admin)) == 3)
            assert not told
        await anyio.sleep(0.7)
        assert len(live(admin)) == (2 if on_error == "closed" else 3)
        with pytest.raises(CapExceededError):
            await cap.acquire_lease(KEY)
        await cap.aclose()


async def test_leases_from_before_a_step_of_the_servers_clock_end(
    own_valkey: ValkeyProcess, admin: redis.Redis
) -> None:
    async with own_valkey.client() as client:
        cap = OwnSlotCap(client, cap=2, ttl=1)
        mine = await cap.acquire_lease(KEY)
        # The server's clock stepped back by an hour: the lease of a crashed process has the time of before.
        in_an_hour = (int(admin.time()[0]) + 3600) * 1_000_000
        admin.zadd(f"livepush:slot:{{{KEY}}}", {"crashed": in_an_hour})
        admin.zadd(f"livepush:slot:{{{KEY}}}:since", {"crashed": in_an_hour})
        with pytest.raises(CapExceededError):
            await cap.acquire_lease(KEY)
        await until(lambda: live(admin) == [mine.id], within=2)
        await cap.acquire_lease(KEY)
        assert admin.pttl(f"livepush:slot:{{{KEY}}}") <= 1001
        await cap.aclose()


async def test_leases_survive_a_step_of_the_servers_clock_ahead(
    own_valkey: ValkeyProcess, admin: redis.Redis
) -> None:
    async with own_valkey.client() as client:
        cap = OwnSlotCap(client, cap=2, ttl=1)
        leases = [await cap.acquire_lease(KEY) for _ in range(2)]
        # All of them are in the past at once.
        an_hour_ago = (int(admin.time()[0]) - 3600) * 1_000_000
        admin.zadd(f"livepush:slot:{{{KEY}}}", {lease.id: an_hour_ago for lease in leases})
        await until(lambda: sorted(live(admin)) == sorted(lease.id for lease in leases), within=1)
        with pytest.raises(CapExceededError):
            await cap.acquire_lease(KEY)
        await cap.aclose()


@pytest.mark.parametrize("on_error", ["open", "closed"])
async def test_a_timeout_shorter_than_the_way_to_the_server(
    own_valkey: ValkeyProcess, admin: redis.Redis, caplog: pytest.LogCaptureFixture, on_error: OnError
) -> None:
    async with own_valkey.client() as client:
        cap = OwnSlotCap(client, cap=3, ttl=1, timeout=0.0004, on_error=on_error)
        outcomes = []
        for _ in range(30):
            outcomes += await asyncio.gather(
                *(cap.acquire_lease(KEY) for _ in range(3)), return_exceptions=True
            )
            await asyncio.sleep(0.02)
        leases = [outcome for outcome in outcomes if isinstance(outcome, Lease)]
        assert len(leases) <= 3
        assert {type(outcome) for outcome in outcomes} <= {Lease, CapExceededError, SlotsUnavailableError}
        for lease in leases:
            lease.release()
        # Whatever the server was told of it, nothing is left.
        await until(lambda: live(admin) == [], within=5)
        await until(lambda: cap.statistics().owed == 0, within=5)
        await cap.aclose()
    assert len(caplog.records) <= 4


async def test_churn_while_the_server_is_away_costs_no_memory(own_valkey: ValkeyProcess) -> None:
    async with own_valkey.client() as client:
        cap = OwnSlotCap(client, cap=5, ttl=20, timeout=0.3)
        counted = [await cap.acquire_lease(KEY) for _ in range(3)]
        own_valkey.kill()
        for lease in counted:
            lease.release()
        await until(lambda: cap.statistics().away)
        for _ in range(2000):
            (await cap.acquire_lease(KEY)).release()
        # What the server never heard of it need not be told.
        assert cap.statistics().failed_open == 2000
        assert cap.statistics().owed == 3
        own_valkey.start()
        await until(lambda: cap.statistics().owed == 0 and not cap.statistics().away)
        await cap.aclose()


async def test_churn_over_many_keys_does_not_delay_that_a_server_is_back(own_valkey: ValkeyProcess) -> None:
    async with own_valkey.client() as client:
        cap = OwnSlotCap(client, cap=5, ttl=20, timeout=0.3)
        held = await cap.acquire_lease(KEY)
        own_valkey.kill()
        await cap.acquire_lease("the server is known to be away now")
        for number in range(500):
            (await cap.acquire_lease(f"key {number}")).release()
        own_valkey.start()
        await until(lambda: not cap.statistics().away, within=5)
        assert not held.released
        await cap.aclose()


async def test_a_server_is_back_when_it_answers_and_not_when_nobody_asks(
    own_valkey: ValkeyProcess, caplog: pytest.LogCaptureFixture
) -> None:
    async with own_valkey.client() as client:
        cap = OwnSlotCap(client, cap=5, ttl=20, timeout=0.5)
        held = await cap.acquire_lease("another key")
        own_valkey.pause()
        # Let in, and given back before anything could be said about it.
        (await cap.acquire_lease(KEY)).release()
        await anyio.sleep(1.5)
        for _ in range(5):
            started = time.monotonic()
            (await cap.acquire_lease(KEY)).release()
            assert time.monotonic() - started < 0.1
            assert cap.statistics().away
            await anyio.sleep(0.1)
        assert len(caplog.records) == 1
        own_valkey.resume()
        await until(lambda: not cap.statistics().away)
        assert not held.released
        await cap.aclose()
    assert len(caplog.records) == 2


async def test_a_user_without_permission_for_any_key_is_heard_once(
    own_valkey: ValkeyProcess, admin: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    admin.acl_setuser("none", enabled=True, nopass=True, categories=["+@all"], keys=["other:*"])
    async with redis.asyncio.Redis(port=own_valkey.port, username="none", password="any") as client:
        cap = OwnSlotCap(client, cap=1, ttl=20)
        await asyncio.gather(*(cap.acquire_lease(f"key {number}") for number in range(1500)))
        statistics = cap.statistics()
        assert (statistics.held, statistics.failed_open, statistics.away) == (1500, 1500, False)
        assert statistics.refused_keys <= 1000
        await cap.aclose()
        assert (cap.statistics().held, cap.statistics().owed) == (0, 0)
    assert len(caplog.records) == 1


async def test_a_full_server_is_away_and_takes_its_leases_when_there_is_room(
    own_valkey: ValkeyProcess, admin: redis.Redis
) -> None:
    async with own_valkey.client() as client:
        cap = OwnSlotCap(client, cap=2, ttl=2)
        lease = await cap.acquire_lease(KEY)
        admin.config_set("maxmemory", "1")
        let_in = await cap.acquire_lease(KEY)
        assert cap.statistics().refused_keys == 0
        admin.config_set("maxmemory", "0")
        await until(lambda: sorted(live(admin)) == sorted([lease.id, let_in.id]))
        await until(lambda: not cap.statistics().away)
        await cap.aclose()
