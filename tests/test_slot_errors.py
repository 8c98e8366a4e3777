"""A slot key that the server refuses concerns no other key, on a real server."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
import redis
from redis.asyncio import Redis

from livepush_asgi import SlotCap
from livepush_asgi.errors import CapExceededError, SlotsUnavailableError
from livepush_asgi.slots import Lease
from livepush_asgi.slots.redis import OnError

from .own_slots import OwnSlotCap
from .valkey import ValkeyProcess, until

BAD, GOOD = "spoilt", "healthy"

pytestmark = pytest.mark.real_time


def live(admin: redis.Redis, slot_key: str = GOOD) -> list[str]:
    seconds, microseconds = admin.time()
    now = seconds * 1_000_000 + microseconds
    return [str(id_) for id_ in admin.zrangebyscore(f"livepush:slot:{{{slot_key}}}", f"({now}", "+inf")]


def spoil(admin: redis.Redis, part: str = "") -> None:
    admin.delete(f"livepush:slot:{{{BAD}}}")
    admin.set(f"livepush:slot:{{{BAD}}}{part}", "something else")


@asynccontextmanager
async def caps(server: ValkeyProcess, **settings: object) -> AsyncIterator[tuple[OwnSlotCap, OwnSlotCap]]:
    """Two caps on the same server, as two processes have them."""
    async with server.client() as client, server.client() as another:
        mine = OwnSlotCap(client, **settings)  # type: ignore[arg-type]
        elsewhere = OwnSlotCap(another, **settings)  # type: ignore[arg-type]
        yield mine, elsewhere
        await mine.aclose()
        await elsewhere.aclose()


async def poison(cap: SlotCap, leases: list[Lease], enough: anyio.Event) -> None:
    """Take the spoilt key again and again, and give back what was let in."""
    while not enough.is_set():
        try:
            leases.append(await cap.acquire_lease(BAD))
        except CapExceededError:
            leases.pop().release()
        except SlotsUnavailableError:
            assert cap.statistics().failed_open == 0
        await anyio.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("on_error", ["open", "closed"])
@pytest.mark.parametrize("part", ["", ":since", ":gone"])
async def test_a_spoilt_key_that_is_taken_again_and_again_disturbs_no_other(
    own_valkey: ValkeyProcess,
    admin: redis.Redis,
    caplog: pytest.LogCaptureFixture,
    on_error: OnError,
    part: str,
) -> None:
    spoil(admin, part)
    async with caps(own_valkey, cap=3, ttl=0.6, on_error=on_error) as (cap, elsewhere):
        first = await cap.acquire_lease(BAD) if on_error == "open" else None
        leases = [
            await cap.acquire_lease(GOOD),
            await cap.acquire_lease(GOOD),
            await elsewhere.acquire_lease(GOOD),
        ]
        let_in: list[Lease] = []
        enough = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(poison, cap, let_in, enough)
            end = time.monotonic() + 2.5
            while time.monotonic() < end:
                for each in (cap, elsewhere):
                    with pytest.raises(CapExceededError):
                        await each.acquire_lease(GOOD)
                assert sorted(live(admin)) == sorted(lease.id for lease in leases)
                await anyio.sleep(0.03)
            enough.set()
        statistics = cap.statistics()
        assert (statistics.away, statistics.refused_keys) == (False, 1)
        # What was let in without being counted is owed to nobody, unless a renewal was just on its way.
        assert statistics.owed <= 3
        uncounted = statistics.held - 2
        assert uncounted == (1 + len(let_in) if first else 0)
        leases[0].release()
        await until(lambda: len(live(admin)) == 2)
        leases[0] = await elsewhere.acquire_lease(GOOD)
        assert elsewhere.statistics().failed_open == 0
        lines = [record.getMessage() for record in caplog.records if record.name == "livepush_asgi"]
        assert len(lines) == 1, lines
        assert f"refuses '{BAD}'" in lines[0]
        assert "WRONGTYPE" in lines[0]
        admin.delete(f"livepush:slot:{{{BAD}}}{part}")
        if on_error == "open":
            assert first is not None
            # What was let in is counted as soon as that can be done.
            await until(lambda: len(live(admin, BAD)) == uncounted)
            assert await elsewhere.held(BAD) == uncounted
            first.release()
            for lease in let_in:
                lease.release()
        else:
            (await cap.acquire_lease(BAD)).release()
        await until(lambda: not live(admin, BAD) and cap.statistics().refused_keys == 0)
    assert caplog.records[-1].getMessage().endswith("refuses no slot key any more")
    await until(lambda: admin.keys("*") == [])


@pytest.mark.parametrize("on_error", ["open", "closed"])
async def test_a_key_that_the_user_may_not_touch_fails_alone(
    own_valkey: ValkeyProcess, admin: redis.Redis, caplog: pytest.LogCaptureFixture, on_error: OnError
) -> None:
    admin.acl_setuser(
        "limited",
        enabled=True,
        nopass=True,
        categories=["+@all"],
        keys=["livepush:slot:{a*", "livepush:slot:{z*"],
    )
    async with Redis(port=own_valkey.port, username="limited", password="any") as client:
        cap = OwnSlotCap(client, cap=1, ttl=0.6, on_error=on_error)
        for _ in range(3):
            found = await asyncio.gather(*map(cap.acquire_lease, ["a1", BAD, "z1"]), return_exceptions=True)
            refused = Lease if on_error == "open" else SlotsUnavailableError
            assert [type(outcome) for outcome in found] == [Lease, refused, Lease]
            await anyio.sleep(0.7)
            assert (len(live(admin, "a1")), len(live(admin, "z1"))) == (1, 1)
            # All are given back together as well.
            for outcome in found:
                if isinstance(outcome, Lease):
                    outcome.release()
            await until(lambda: cap.statistics().owed == 0, within=2.0)
            assert (live(admin, "a1"), live(admin, "z1")) == ([], [])
        assert not cap.statistics().away
        await cap.aclose()
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1, lines
    assert "permissions" in lines[0]


async def test_a_key_that_is_refused_while_it_is_held_keeps_its_leases(
    own_valkey: ValkeyProcess, admin: redis.Redis
) -> None:
    async with caps(own_valkey, cap=2, ttl=0.6) as (cap, elsewhere):
        lease = await cap.acquire_lease(BAD)
        spoil(admin)
        await until(lambda: cap.statistics().refused_keys == 1)
        assert not lease.released
        admin.delete(f"livepush:slot:{{{BAD}}}")
        await until(lambda: live(admin, BAD) == [lease.id])
        await elsewhere.acquire_lease(BAD)
        with pytest.raises(CapExceededError):
            await elsewhere.acquire_lease(BAD)


@pytest.mark.parametrize("on_error", ["open", "closed"])
async def test_a_server_that_serves_no_key_now_is_away(
    own_valkey: ValkeyProcess, admin: redis.Redis, caplog: pytest.LogCaptureFixture, on_error: OnError
) -> None:
    async with caps(own_valkey, cap=2, ttl=0.6, on_error=on_error) as (cap, _):
        lease = await cap.acquire_lease(GOOD)
        # Nobody is at that address: it becomes a replica that only reads.
        admin.replicaof("127.0.0.1", 1)
        if on_error == "open":
            await cap.acquire_lease(GOOD)
        else:
            with pytest.raises(SlotsUnavailableError, match="does not answer"):
                await cap.acquire_lease(GOOD)
        assert (cap.statistics().away, cap.statistics().refused_keys) == (True, 0)
        admin.replicaof("NO", "ONE")
        await until(lambda: not cap.statistics().away)
        held = 2 if on_error == "open" else 1
        await until(lambda: len(live(admin)) == held and lease.id in live(admin))
    assert len(caplog.records) == 2


@pytest.mark.parametrize("slot_key", ["}", "{", "{}", "a}b", "%", "%7D", "{a}", "é"])
async def test_keys_with_braces_are_keys_like_all_others(
    own_valkey: ValkeyProcess, admin: redis.Redis, slot_key: str
) -> None:
    async with caps(own_valkey, cap=1) as (cap, elsewhere):
        lease = await cap.acquire_lease(slot_key)
        with pytest.raises(CapExceededError):
            await elsewhere.acquire_lease(slot_key)
        assert await elsewhere.held(slot_key) == 1
        # No two slot keys have a hash tag in common, and none is empty.
        tags = {str(key).removeprefix("livepush:slot:{").partition("}")[0] for key in admin.keys("*")}
        assert len(tags) == 1
        assert "" not in tags
        lease.release()
        await until(lambda: admin.keys("*") == [])


async def test_the_key_of_an_ordinary_name_is_what_it_was(
    own_valkey: ValkeyProcess, admin: redis.Redis
) -> None:
    async with caps(own_valkey, cap=1) as (cap, _):
        await cap.acquire_lease("user:42 é/ü")
        assert sorted(admin.keys("*")) == [
            "livepush:slot:{user:42 é/ü}",
            "livepush:slot:{user:42 é/ü}:since",
        ]


async def test_a_key_with_a_lone_surrogate_is_an_error_before_anything_is_sent(
    own_valkey: ValkeyProcess, admin: redis.Redis
) -> None:
    async with caps(own_valkey, cap=1) as (cap, _):
        for call in (cap.acquire_lease, cap.acquire, cap.held):
            with pytest.raises(ValueError, match="lone surrogate"):
                await call("user\udcff")
        await cap.release("user\udcff")
        assert "cmdstat_evalsha" not in admin.info("commandstats")
        assert (cap.statistics().held, cap.statistics().owed) == (0, 0)


async def test_a_server_that_comes_back_with_a_refusal_is_back(tmp_path: Path) -> None:
    with ValkeyProcess(tmp_path, persistent=True) as server:
        async with server.client() as client:
            cap = SlotCap(client, cap=2, ttl=0.9, timeout=0.5)
            lease = await cap.acquire_lease(BAD)
            with redis.Redis.from_url(server.url) as admin:
                spoil(admin)
            server.kill()
            await until(lambda: cap.statistics().away)
            server.start()
            # Its only answer is that it refuses the one key that is held.
            await until(lambda: not cap.statistics().away)
            assert cap.statistics().refused_keys == 1
            (await cap.acquire_lease(GOOD)).release()
            assert cap.statistics().failed_open == 0
            lease.release()
            await cap.aclose()
