"""Slots that many take at once: one call to a real server for all of them, and what it answers to each."""

import asyncio
import time
from pathlib import Path

import anyio
import pytest
import redis
from redis.asyncio import Redis

from livepush_asgi.errors import CapExceededError, SlotsUnavailableError
from livepush_asgi.slots import Lease
from livepush_asgi.slots.redis import OnError

from .own_slots import OwnSlotCap
from .relay import Relay
from .server_process import free_port
from .valkey import ValkeyProcess, until

KEY = "tenant"

pytestmark = pytest.mark.real_time


def live(admin: redis.Redis, slot_key: str = KEY) -> list[str]:
    return [str(id_) for id_ in admin.zrange(f"livepush:slot:{{{slot_key}}}", 0, -1)]


def calls(admin: redis.Redis) -> int:
    """How many scripts were run, since the figures were reset."""
    return int(admin.info("commandstats").get("cmdstat_evalsha", {}).get("calls", 0))


async def outcomes(cap: OwnSlotCap, *slot_keys: str) -> list[Lease | BaseException]:
    return await asyncio.gather(*map(cap.acquire_lease, slot_keys), return_exceptions=True)


async def test_all_who_ask_in_one_turn_are_one_call_whatever_their_keys(
    own_valkey: ValkeyProcess, admin: redis.Redis
) -> None:
    async with own_valkey.client() as client:
        cap = OwnSlotCap(client, cap=5)
        await cap.acquire_lease("the script is known now")
        admin.config_resetstat()
        leases = await asyncio.gather(*(cap.acquire_lease(f"key {number % 20}") for number in range(100)))
        assert calls(admin) == 1
        for key in range(20):
            assert live(admin, f"key {key}") == [lease.id for lease in leases[key::20]]
        admin.config_resetstat()
        # No call is so long that the server would stand still for all others.
        await asyncio.gather(*(cap.acquire_lease(f"another {number}") for number in range(250)))
        assert calls(admin) == 3
        assert cap.statistics().held == 351
        await cap.aclose()
        assert admin.keys("*") == []


async def test_those_who_ask_one_after_the_other_wait_for_nobody(
    own_valkey: ValkeyProcess, admin: redis.Redis
) -> None:
    async with own_valkey.client() as client:
        cap = OwnSlotCap(client, cap=20)
        leases = [await cap.acquire_lease(KEY) for _ in range(20)]
        assert live(admin) == [lease.id for lease in leases]
        await cap.aclose()


async def test_in_one_call_the_first_who_asked_get_the_slots(
    own_valkey: ValkeyProcess, admin: redis.Redis
) -> None:
    async with own_valkey.client() as client:
        cap = OwnSlotCap(client, cap=3)
        found = await outcomes(cap, KEY, "another", KEY, KEY, KEY, "another", KEY)
        assert [type(outcome) for outcome in found] == [
            *[Lease] * 4,
            CapExceededError,
            Lease,
            CapExceededError,
        ]
        assert (cap.statistics().held, cap.statistics().refused) == (5, 2)
        await cap.aclose()


async def test_in_one_call_the_newest_win_and_each_names_whom_it_replaced(
    own_valkey: ValkeyProcess, admin: redis.Redis
) -> None:
    told: list[int] = []
    async with own_valkey.client() as client, own_valkey.client() as another:
        elsewhere = OwnSlotCap(another, cap=2, on_full="replace_oldest")
        old = [await elsewhere.acquire_lease(KEY) for _ in range(2)]
        cap = OwnSlotCap(client, cap=2, on_full="replace_oldest")
        leases = await asyncio.gather(
            *(cap.acquire_lease(KEY, lambda number=number: told.append(number)) for number in range(5))  # type: ignore[misc]
        )
        assert [lease.replaced for lease in leases] == [(old[0].id,), (old[1].id,), (), (), ()]
        assert told == [0, 1, 2]
        assert [lease.released for lease in leases] == [True, True, True, False, False]
        assert live(admin) == [lease.id for lease in leases[3:]]
        elsewhere.replaced(lease.id for lease in old)
        await cap.aclose()
        await elsewhere.aclose()
        assert admin.keys("*") == []


async def test_a_smaller_cap_makes_room_by_several(own_valkey: ValkeyProcess, admin: redis.Redis) -> None:
    async with own_valkey.client() as client, own_valkey.client() as another:
        wide, narrow = OwnSlotCap(client, cap=4), OwnSlotCap(another, cap=2, on_full="replace_oldest")
        old = [await wide.acquire_lease(KEY) for _ in range(4)]
        lease = await narrow.acquire_lease(KEY)
        assert lease.replaced == tuple(lease.id for lease in old[:3])
        assert sorted(live(admin)) == sorted([old[3].id, lease.id])
        await wide.aclose()
        await narrow.aclose()


async def test_a_key_that_is_in_use_for_something_else_fails_its_own_takes_only(
    own_valkey: ValkeyProcess, admin: redis.Redis
) -> None:
    admin.set("livepush:slot:{spoilt}", "something else")
    async with own_valkey.client() as client:
        cap = OwnSlotCap(client, cap=1, on_error="closed")
        found = await outcomes(cap, "a", "spoilt", "spoilt", "z")
        assert [type(outcome) for outcome in found] == [
            Lease,
            SlotsUnavailableError,
            SlotsUnavailableError,
            Lease,
        ]
        assert "WRONGTYPE" in str(found[1])
        assert (len(live(admin, "a")), len(live(admin, "z"))) == (1, 1)
        admin.delete("livepush:slot:{spoilt}")
        await cap.aclose()


async def test_a_key_that_cannot_be_sent_is_the_fault_of_its_caller(
    own_valkey: ValkeyProcess, admin: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    async with own_valkey.client() as client:
        cap = OwnSlotCap(client, cap=1)
        found = await outcomes(cap, "a", "\ud800", "z")
        assert [type(outcome) for outcome in found] == [Lease, ValueError, Lease]
        assert (cap.statistics().held, cap.statistics().owed) == (2, 0)
        await cap.aclose()
    assert caplog.records == []


async def test_a_take_that_is_cancelled_before_its_call_left_is_not_sent(
    own_valkey: ValkeyProcess, admin: redis.Redis
) -> None:
    async with own_valkey.client() as client:
        cap = OwnSlotCap(client, cap=10)
        takes = [asyncio.create_task(cap.acquire_lease(KEY)) for _ in range(10)]
        # Each has asked by now, and nothing has left. An eager task asks when it is made.
        if asyncio.get_running_loop().get_task_factory() is None:
            await asyncio.sleep(0)
        for take in takes[::2]:
            take.cancel()
        found = await asyncio.gather(*takes, return_exceptions=True)
        kept = [outcome.id for outcome in found if isinstance(outcome, Lease)]
        assert (len(kept), live(admin)) == (5, kept)
        await until(lambda: cap.statistics().owed == 0)
        assert live(admin) == kept
        await cap.aclose()


@pytest.mark.parametrize("on_error", ["open", "closed"])
async def test_a_crowd_whose_reply_is_lost_is_not_lost_itself(
    own_valkey: ValkeyProcess, admin: redis.Redis, on_error: OnError
) -> None:
    # A script that the server does not know comes with its text, and that is where the line is cut.
    relay = Relay(own_valkey.port, cut_after=b"EVAL\r\n")
    keys = [f"key {number}" for number in range(10)]
    async with anyio.create_task_group() as tasks:
        await tasks.start(relay.serve)
        async with Redis(port=relay.port) as client:
            cap = OwnSlotCap(client, cap=2, on_error=on_error)
            found = await outcomes(cap, *keys, *keys, *keys)
            leases = [outcome for outcome in found if isinstance(outcome, Lease)]
            if on_error == "open":
                assert [type(outcome) for outcome in found] == [Lease] * 20 + [CapExceededError] * 10
                assert cap.statistics().failed_open == 20
                await until(lambda: cap.statistics().owed == 0 and not cap.statistics().away)
                for key in keys:
                    mine = sorted(lease.id for lease in leases if lease.slot_key == key)
                    assert sorted(live(admin, key)) == mine
            else:
                assert {type(outcome) for outcome in found} == {SlotsUnavailableError}
            for lease in leases:
                lease.release()
            await until(lambda: cap.statistics().owed == 0)
            assert [live(admin, key) for key in keys] == [[]] * 10
            await cap.aclose()
        tasks.cancel_scope.cancel()


@pytest.mark.slow
async def test_a_take_has_its_own_time_and_not_that_of_those_before_it(
    own_valkey: ValkeyProcess, admin: redis.Redis
) -> None:
    async with own_valkey.client() as client:
        cap = OwnSlotCap(client, cap=10, timeout=4.0, on_error="closed")
        known = await cap.acquire_lease("the script is known now")
        own_valkey.pause()
        first = asyncio.create_task(cap.acquire_lease(KEY))
        # Half of the time of the first is over.
        _, waiting = await asyncio.wait({first}, timeout=2.0)
        assert waiting == {first}
        second = asyncio.create_task(cap.acquire_lease(KEY))
        with pytest.raises(SlotsUnavailableError):
            await first
        own_valkey.resume()
        lease = await second
        await until(lambda: cap.statistics().owed == 0)
        assert live(admin) == [lease.id]
        known.release()
        await cap.aclose()


async def test_a_take_that_waits_behind_a_stuck_call_waits_no_longer_than_its_own_time(
    own_valkey: ValkeyProcess,
) -> None:
    async with own_valkey.client() as client:
        cap = OwnSlotCap(client, cap=10, timeout=1.0, on_error="closed")
        known = await cap.acquire_lease("the script is known now")
        own_valkey.pause()
        first = asyncio.create_task(cap.acquire_lease(KEY))
        await asyncio.wait({first}, timeout=0.4)
        started = time.monotonic()
        with pytest.raises(SlotsUnavailableError, match="no answer within 1 s"):
            await cap.acquire_lease(KEY)
        assert time.monotonic() - started < 1.4
        with pytest.raises(SlotsUnavailableError):
            await first
        own_valkey.resume()
        await until(lambda: cap.statistics().owed == 0)
        known.release()
        await cap.aclose()


async def test_a_node_of_a_cluster_is_asked_for_each_key_by_itself(tmp_path: Path) -> None:
    node = ValkeyProcess(tmp_path, "cluster-enabled yes", f"cluster-port {free_port()}")
    with node, redis.Redis.from_url(node.url, decode_responses=True) as admin:
        admin.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
        await until(lambda: admin.cluster("INFO")["cluster_state"] == "ok")
        async with node.client() as client:
            cap = OwnSlotCap(client, cap=2)
            keys = [f"key {number % 20}" for number in range(60)]
            found = await outcomes(cap, *keys)
            assert [isinstance(outcome, Lease) for outcome in found] == [True] * 40 + [False] * 20
            admin.config_resetstat()
            await outcomes(cap, *(f"another {number % 20}" for number in range(40)))
            # That keys are not to be mixed is known by now.
            assert (calls(admin), admin.info("errorstats")) == (20, {})
            assert cap.statistics().held == 80
            await cap.aclose()
            assert admin.keys("*") == []


def test_a_cap_is_used_by_one_event_loop_after_the_other(own_valkey: ValkeyProcess) -> None:
    client = own_valkey.client()
    cap = OwnSlotCap(client, cap=50)

    async def use() -> int:
        # The crowd of the last loop is left as it is, half of it on its way.
        found = await outcomes(cap, *[KEY] * 20)
        for _ in range(20):
            waiting = asyncio.create_task(cap.acquire_lease(KEY))
        await asyncio.sleep(0)
        assert not waiting.done()
        await client.aclose()
        return sum(isinstance(outcome, Lease) for outcome in found)

    assert [asyncio.run(use()) for _ in range(3)] == [20, 20, 20]

    async def close() -> None:
        await cap.acquire_lease(KEY)
        await cap.aclose()
        await client.aclose()

    asyncio.run(close())
    with redis.Redis.from_url(own_valkey.url) as admin:
        assert admin.zcard(f"livepush:slot:{{{KEY}}}") == 0


def test_the_client_may_decode_what_it_reads(own_valkey: ValkeyProcess) -> None:
    async def use() -> None:
        client: Redis = own_valkey.client(decode_responses=True, protocol=2)
        cap = OwnSlotCap(client, cap=1, on_full="replace_oldest")
        leases = await asyncio.gather(*(cap.acquire_lease(KEY) for _ in range(3)))
        assert [lease.released for lease in leases] == [True, True, False]
        await cap.aclose()
        await client.aclose()

    asyncio.run(use())
