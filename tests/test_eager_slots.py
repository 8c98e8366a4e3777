"""SlotCap under `asyncio.eager_task_factory`: a task runs before whoever started it has kept it."""

import asyncio
import time
from collections.abc import Coroutine
from pathlib import Path

import pytest

from livepush_asgi import Grant, LivePush, MemoryBroker, SlotCap
from livepush_asgi.errors import CapExceededError
from livepush_asgi.slots import Lease
from livepush_asgi.testing import Client

from .own_slots import OwnSlotCap
from .valkey import ValkeyProcess, until
from .valkey_cluster import valkey_cluster

# mypy reads this for Python 3.11, which has none; the file is not collected there.
EAGER = getattr(asyncio, "eager_task_factory")  # noqa: B009


def run(main: Coroutine[object, object, None]) -> None:
    """Run in a loop whose tasks are eager."""
    with asyncio.Runner() as runner:
        runner.get_loop().set_task_factory(EAGER)
        runner.run(main)


def test_slots_are_taken_renewed_and_given_back(valkey: ValkeyProcess) -> None:
    async def main() -> None:
        async with valkey.client() as client, valkey.client() as another:
            cap = OwnSlotCap(client, cap=2, ttl=0.6)
            elsewhere = OwnSlotCap(another, cap=2, ttl=0.6)
            leases = [await cap.acquire_lease("k"), await elsewhere.acquire_lease("k")]
            end = time.monotonic() + 2.4
            while time.monotonic() < end:
                for each in (cap, elsewhere):
                    with pytest.raises(CapExceededError):
                        await each.acquire_lease("k")
                await asyncio.sleep(0.03)
            assert cap.statistics().failed_open == elsewhere.statistics().failed_open == 0
            for lease in leases:
                lease.release()
            await until(lambda: cap.statistics().owed == elsewhere.statistics().owed == 0)
            assert await cap.held("k") == 0
            # The task of the renewals has ended by now, and another one is started.
            for _ in range(3):
                await until(lambda: not any("renewal" in task.get_name() for task in asyncio.all_tasks()))
                outcomes = await asyncio.gather(
                    *(cap.acquire_lease("k") for _ in range(5)), return_exceptions=True
                )
                taken = [outcome for outcome in outcomes if isinstance(outcome, Lease)]
                await asyncio.sleep(0.9)
                assert (len(taken), await elsewhere.held("k")) == (2, 2)
                for lease in taken:
                    lease.release()
            for _ in range(20):
                assert await cap.acquire("alone")
                await cap.release("alone")
            await cap.aclose()
            await elsewhere.aclose()

    run(main())


def test_a_server_that_is_killed_is_told_again_when_it_is_back(own_valkey: ValkeyProcess) -> None:
    async def main() -> None:
        async with own_valkey.client() as client:
            cap = OwnSlotCap(client, cap=3, ttl=1.5, timeout=0.3)
            first, second = await cap.acquire_lease("k"), await cap.acquire_lease("k")
            own_valkey.kill()
            let_in = await cap.acquire_lease("k")
            with pytest.raises(CapExceededError):
                await cap.acquire_lease("k")
            second.release()
            assert cap.statistics().away
            own_valkey.start()
            await until(lambda: not cap.statistics().away and cap.statistics().owed == 0)
            end = time.monotonic() + 3
            while await cap.held("k") != 2:
                assert time.monotonic() < end
                await asyncio.sleep(0.05)
            assert not first.released
            assert not let_in.released
            await cap.aclose()
            assert await cap.held("k") == 0

    run(main())


def test_nobody_listens_at_the_address(own_valkey: ValkeyProcess) -> None:
    """The first connection fails before anything has waited."""

    async def main() -> None:
        async with own_valkey.client() as client:
            cap = OwnSlotCap(client, cap=2, ttl=1.5, timeout=0.3)
            own_valkey.kill()
            leases = [await cap.acquire_lease("k") for _ in range(2)]
            assert cap.statistics().failed_open == 2
            own_valkey.start()
            await until(lambda: not cap.statistics().away)
            assert await cap.held("k") == len(leases)
            await cap.aclose()

    run(main())


def test_nodes_of_a_cluster_count(tmp_path: Path) -> None:
    async def main() -> None:
        with valkey_cluster(tmp_path) as cluster:
            await cluster.gather()
            client = cluster.client()
            cap = OwnSlotCap(client, cap=1, ttl=0.9)
            keys = [f"key {number}" for number in range(30)]
            outcomes = await asyncio.gather(*map(cap.acquire_lease, keys + keys), return_exceptions=True)
            assert sum(isinstance(outcome, Lease) for outcome in outcomes) == 30
            await asyncio.sleep(2)
            assert [await cap.held(key) for key in keys] == [1] * 30
            await cap.aclose()
            assert [await cap.held(key) for key in keys] == [0] * 30
            await client.aclose()

    run(main())


def test_streams_hold_their_slots(valkey: ValkeyProcess) -> None:
    async def main() -> None:
        async with valkey.client() as client:
            cap = SlotCap(client, cap=1, ttl=0.6)
            push = LivePush(MemoryBroker(), lambda request: Grant(channels="c", slot_key="k"), slots=cap)

            async with push.lifespan():
                for _ in range(10):
                    async with Client(push).open("/") as one:
                        assert one.status == 200
                async with Client(push).open("/") as one:
                    await asyncio.sleep(1.5)
                    async with Client(push).open("/") as another:
                        assert (one.status, another.status) == (200, 429)
            assert await cap.held("k") == 0

    run(main())
