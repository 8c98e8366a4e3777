"""SlotCap on a cluster of real servers, each of which counts its own keys."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from redis.asyncio import RedisCluster
from redis.crc import key_slot

from livepush_asgi import SlotCap
from livepush_asgi.errors import CapExceededError, SlotsUnavailableError
from livepush_asgi.slots import Lease
from livepush_asgi.slots.redis import OnError

from .own_slots import OwnSlotCap
from .valkey import until
from .valkey_cluster import ValkeyCluster, valkey_cluster

KEYS = [f"key {number}" for number in range(60)]

pytestmark = pytest.mark.real_time


@asynccontextmanager
async def client_on(cluster: ValkeyCluster) -> AsyncIterator[RedisCluster]:
    client = cluster.client()
    try:
        yield client
    finally:
        await client.aclose()


@asynccontextmanager
async def cap_on(cluster: ValkeyCluster, **settings: object) -> AsyncIterator[OwnSlotCap]:
    async with client_on(cluster) as client:
        cap = OwnSlotCap(client, **settings)  # type: ignore[arg-type]
        yield cap
        await cap.aclose()


def owner(cluster: ValkeyCluster, slot_key: str) -> int:
    return cluster.owner_of(key_slot(slot_key.encode()), seen_by=2)


def live(cluster: ValkeyCluster, slot_key: str, *, node: int | None = None) -> list[str]:
    where = owner(cluster, slot_key) if node is None else node
    with cluster.admin(where) as admin:
        seconds, microseconds = admin.time()
        now = seconds * 1_000_000 + microseconds
        return [str(id_) for id_ in admin.zrangebyscore(f"livepush:slot:{{{slot_key}}}", f"({now}", "+inf")]


def is_well(cluster: ValkeyCluster, number: int) -> bool:
    with cluster.admin(number) as admin:
        return bool(admin.cluster("INFO")["cluster_state"] == "ok")


def keys_left(cluster: ValkeyCluster) -> list[object]:
    return [cluster.ask(number, "KEYS", "*") for number in range(3)]


@pytest.mark.slow
async def test_racing_takes_of_two_caps_give_exactly_the_cap_on_every_key(cluster: ValkeyCluster) -> None:
    owners = {key: owner(cluster, key) for key in KEYS}
    assert set(owners.values()) == {0, 1, 2}
    async with cap_on(cluster, cap=2, ttl=1.5) as cap, cap_on(cluster, cap=2, ttl=1.5) as elsewhere:
        takes = [each.acquire_lease(key) for key in KEYS for each in (cap, elsewhere) for _ in range(2)]
        outcomes = await asyncio.gather(*takes, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {Lease, CapExceededError}
        leases = [outcome for outcome in outcomes if isinstance(outcome, Lease)]
        expected = {key: sorted(lease.id for lease in leases if lease.slot_key == key) for key in KEYS}
        assert {len(ids) for ids in expected.values()} == {2}
        # Renewals keep all of them.
        end = time.monotonic() + 4.5
        while time.monotonic() < end:
            for key in KEYS:
                assert sorted(live(cluster, key, node=owners[key])) == expected[key]
                await anyio.sleep(0.01)
        for statistics in (cap.statistics(), elsewhere.statistics()):
            assert (statistics.failed_open, statistics.away, statistics.refused_keys) == (0, False, 0)
        for lease in leases:
            lease.release()
        await until(lambda: keys_left(cluster) == [[], [], []])


async def test_a_slot_given_back_is_free_for_the_next_take(cluster: ValkeyCluster) -> None:
    async with cap_on(cluster, cap=1) as cap:

        async def reopen(key: str) -> None:
            lease = await cap.acquire_lease(key)
            for _ in range(10):
                lease.release()
                lease = await cap.acquire_lease(key)
            assert await cap.held(key) == 1

        await asyncio.gather(*map(reopen, KEYS))
        for _ in range(20):
            assert await cap.acquire("by key alone")
            await cap.release("by key alone")
        assert cap.statistics().refused == 0


async def test_the_newest_wins_on_every_node(cluster: ValkeyCluster) -> None:
    newest_wins: dict[str, object] = {"cap": 1, "on_full": "replace_oldest"}
    async with cap_on(cluster, **newest_wins) as cap, cap_on(cluster, **newest_wins) as elsewhere:
        old = [await elsewhere.acquire_lease(key) for key in KEYS]
        new = await asyncio.gather(*map(cap.acquire_lease, KEYS))
        assert [lease.replaced for lease in new] == [(lease.id,) for lease in old]
        elsewhere.replaced(id_ for lease in new for id_ in lease.replaced)
        assert all(lease.released for lease in old)


@pytest.mark.parametrize("slot_key", ["}", "{", "{}", "a}b{c", "%", "{a}"])
async def test_keys_with_braces_have_one_place(cluster: ValkeyCluster, slot_key: str) -> None:
    async with cap_on(cluster, cap=1, on_full="replace_oldest") as cap:
        for _ in range(3):
            await cap.acquire_lease(slot_key)
        assert await cap.held(slot_key) == 1


async def test_a_slot_that_moves_takes_its_leases_along(cluster: ValkeyCluster) -> None:
    key = next(key for key in KEYS if owner(cluster, key) == 0)
    slot = key_slot(key.encode())
    async with cap_on(cluster, cap=2, ttl=0.9) as cap:
        first = await cap.acquire_lease(key)
        cluster.move_slot(slot, 1)
        try:
            second = await cap.acquire_lease(key)
            with pytest.raises(CapExceededError):
                await cap.acquire_lease(key)
            await anyio.sleep(1.5)
            assert sorted(live(cluster, key, node=1)) == sorted([first.id, second.id])
            assert cap.statistics().failed_open == 0
        finally:
            cluster.move_slot(slot, 0)
        second.release()
        await until(lambda: live(cluster, key) == [first.id])


@pytest.mark.slow
@pytest.mark.parametrize("on_error", ["open", "closed"])
async def test_a_node_that_is_killed_affects_its_own_keys_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, on_error: OnError
) -> None:
    with valkey_cluster(tmp_path) as cluster:
        await cluster.gather()
        for number in range(3):
            cluster.ask(number, "CONFIG", "SET", "cluster-require-full-coverage", "no")
        settings: dict[str, object] = {"cap": 2, "ttl": 1.5, "timeout": 1.5, "on_error": on_error}
        async with cap_on(cluster, **settings) as cap, cap_on(cluster, **settings) as elsewhere:
            owners = {key: owner(cluster, key) for key in KEYS}
            healthy = [key for key in KEYS if owners[key] != 0]
            dead = [key for key in KEYS if owners[key] == 0]
            leases = {key: [await cap.acquire_lease(key)] for key in KEYS}
            for key in healthy:
                leases[key].append(await elsewhere.acquire_lease(key))
            cluster.nodes[0].kill()
            found = await asyncio.gather(*map(cap.acquire_lease, dead), return_exceptions=True)
            expected = Lease if on_error == "open" else SlotsUnavailableError
            assert {type(outcome) for outcome in found} == {expected}
            end = time.monotonic() + 4.5
            while time.monotonic() < end:
                started = time.monotonic()
                for key in healthy[:6]:
                    for each in (cap, elsewhere):
                        with pytest.raises(CapExceededError):
                            await each.acquire_lease(key)
                    ids = sorted(lease.id for lease in leases[key])
                    assert sorted(live(cluster, key, node=owners[key])) == ids
                assert time.monotonic() - started < 1
                if on_error == "closed":
                    with pytest.raises(SlotsUnavailableError):
                        await cap.acquire_lease(dead[0])
                await anyio.sleep(0.1)
            # What is given back is free at once, for the other process too.
            for key in healthy:
                leases[key][0].release()
            async with asyncio.timeout(1):
                for key in healthy:
                    await cap.acquire(key)
                    await cap.release(key)
            cluster.nodes[0].start()
            await until(lambda: is_well(cluster, 0))
            held = 2 if on_error == "open" else 1
            await until(lambda: all(len(live(cluster, key, node=0)) == held for key in dead))
            await until(lambda: not cap.statistics().away)
    lines = [record.getMessage() for record in caplog.records]
    assert len([line for line in lines if line.endswith("is back")]) <= 2
    assert all(f"node at 127.0.0.1:{cluster.nodes[0].port}" in line for line in lines), lines
    assert len(lines) <= 4, lines


@pytest.mark.slow
async def test_a_replica_that_takes_over_counts_on(tmp_path: Path) -> None:
    with valkey_cluster(tmp_path, replicas=True) as cluster:
        await cluster.gather()
        async with cap_on(cluster, cap=2, ttl=1.5, timeout=0.5) as cap:
            leases = [await cap.acquire_lease(key) for key in KEYS for _ in range(2)]
            assert len(leases) == 120
            dead = [key for key in KEYS if owner(cluster, key) == 0]
            cluster.nodes[0].kill()
            await until(lambda: all(owner(cluster, key) == 3 for key in dead), within=20)
            await until(lambda: all(len(live(cluster, key)) == 2 for key in dead), within=10)
            await until(lambda: not cap.statistics().away)
            for key in KEYS:
                with pytest.raises(CapExceededError):
                    await cap.acquire_lease(key)


@pytest.mark.parametrize("on_error", ["open", "closed"])
async def test_a_client_of_one_node_of_a_cluster_is_refused(
    cluster: ValkeyCluster, on_error: OnError, caplog: pytest.LogCaptureFixture
) -> None:
    async with cluster.nodes[0].client() as client:
        cap = SlotCap(client, cap=2, on_error=on_error)
        for key in KEYS:
            with pytest.raises(SlotsUnavailableError, match=r"one node of a cluster.*RedisCluster"):
                await cap.acquire_lease(key)
        with pytest.raises(SlotsUnavailableError, match="one node of a cluster"):
            await cap.acquire(KEYS[0])
        await until(lambda: cap.statistics().owed == 0)
        assert cap.statistics().held == 0
        await cap.aclose()
    assert keys_left(cluster) == [[], [], []]
    assert len([text for text in caplog.messages if "one node of a cluster" in text]) == 1


def test_a_cap_on_a_cluster_is_used_by_one_event_loop_after_the_other(cluster: ValkeyCluster) -> None:
    client = cluster.client()
    cap = SlotCap(client, cap=2)

    async def use() -> int:
        leases = [await cap.acquire_lease(key) for key in KEYS[:10]]
        await client.aclose()
        return len(leases)

    assert [asyncio.run(use()) for _ in range(3)] == [10, 10, 10]

    async def close() -> None:
        lease = await cap.acquire_lease(KEYS[0])
        lease.release()
        await cap.aclose()
        await client.aclose()

    asyncio.run(close())
    assert keys_left(cluster) == [[], [], []]
