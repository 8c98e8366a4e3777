"""SlotCap on a real server that is killed, stopped, emptied and started again."""

import asyncio
import logging
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
import redis
from redis.asyncio import Redis

from livepush_asgi.errors import CapExceededError, SlotsUnavailableError
from livepush_asgi.slots import Lease, Slots
from livepush_asgi.slots.redis import OnError, SlotStatistics

from .command import complaints
from .own_slots import OwnSlotCap
from .relay import Relay
from .valkey import ValkeyProcess, until

KEY = "tenant"

pytestmark = pytest.mark.real_time


@asynccontextmanager
async def client_on(server: ValkeyProcess) -> AsyncIterator[Redis]:
    async with server.client() as client:
        yield client


def raw(server: ValkeyProcess) -> redis.Redis:
    return redis.Redis.from_url(server.url, decode_responses=True)


def live(server: ValkeyProcess, slot_key: str = KEY) -> list[str]:
    """The ids of the leases that live on the server, in the order of their expiry."""
    with raw(server) as client:
        seconds, microseconds = client.time()
        now = seconds * 1_000_000 + microseconds
        return [str(id_) for id_ in client.zrangebyscore(f"livepush:slot:{{{slot_key}}}", f"({now}", "+inf")]


def tasks_of_the_package() -> list[str]:
    return [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("livepush")]


async def take_all(cap: OwnSlotCap, count: int, slot_key: str = KEY) -> list[Lease]:
    return [await cap.acquire_lease(slot_key) for _ in range(count)]


# --- the cap ----------------------------------------------------------------------------------------------


async def test_a_full_key_is_refused_until_a_slot_is_given_back(valkey: ValkeyProcess) -> None:
    async with client_on(valkey) as client:
        cap = OwnSlotCap(client, cap=2)
        assert isinstance(cap, Slots)
        first, second = await take_all(cap, 2)
        assert tasks_of_the_package() == ["livepush slot renewal"]
        with pytest.raises(CapExceededError) as refused:
            await cap.acquire_lease(KEY)
        assert (refused.value.slot_key, refused.value.cap) == (KEY, 2)
        elsewhere = await cap.acquire_lease("another key")
        assert (await cap.held(KEY), await cap.held("another key"), await cap.held("none")) == (2, 1, 0)
        first.release()
        first.release()
        await until(lambda: live(valkey) == [second.id])
        third = await cap.acquire_lease(KEY)
        assert cap.statistics() == SlotStatistics(
            held=3, acquired=4, refused=1, failed_open=0, replaced=0, owed=0, dropped=0, away=False
        )
        for lease in (second, third, elsewhere):
            lease.release()
        await until(lambda: not tasks_of_the_package())
        with raw(valkey) as server:
            assert server.keys("*") == []


async def test_200_takes_at_once_over_4_caps_give_exactly_20(valkey: ValkeyProcess) -> None:
    with raw(valkey) as server:
        server.script_flush()
    clients = [valkey.client() for _ in range(4)]
    caps = [OwnSlotCap(client, cap=20) for client in clients]
    outcomes = await asyncio.gather(
        *(cap.acquire_lease(KEY) for cap in caps for _ in range(50)), return_exceptions=True
    )
    leases = [outcome for outcome in outcomes if isinstance(outcome, Lease)]
    assert sorted(live(valkey)) == sorted(lease.id for lease in leases)
    assert len(leases) == 20
    assert sum(isinstance(outcome, CapExceededError) for outcome in outcomes) == 180
    for cap in caps:
        await cap.aclose()
    assert live(valkey) == []
    for client in clients:
        await client.aclose()


async def test_500_takes_at_once_need_one_connection(own_valkey: ValkeyProcess) -> None:
    with raw(own_valkey) as server:
        server.ping()
        async with client_on(own_valkey) as client:
            cap = OwnSlotCap(client, cap=1)
            await asyncio.gather(*(cap.acquire_lease(f"key {number}") for number in range(500)))
            # The test's own, and the cap's.
            assert int(server.info("clients")["connected_clients"]) == 2
            assert int(server.info("stats")["total_connections_received"]) == 2
            await cap.aclose()
            assert tasks_of_the_package() == []


async def test_a_counter_of_the_predecessor_is_not_touched(valkey: ValkeyProcess) -> None:
    with raw(valkey) as server:
        server.set(f"livepush:slot:{KEY}", 20, ex=300)
        async with client_on(valkey) as client:
            cap = OwnSlotCap(client, cap=1)
            lease = await cap.acquire_lease(KEY)
            assert server.get(f"livepush:slot:{KEY}") == "20"
            lease.release()
            await cap.aclose()


async def test_slots_can_be_taken_and_given_back_by_key_alone(valkey: ValkeyProcess) -> None:
    async with client_on(valkey) as client:
        cap = OwnSlotCap(client, cap=2, ttl_seconds=300)
        assert cap.cap == 2
        assert [await cap.acquire(KEY) for _ in range(3)] == [True, True, False]
        await cap.release(KEY)
        await cap.release("never taken")
        await until(lambda: len(live(valkey)) == 1)
        assert await cap.acquire(KEY)
        await cap.aclose()


async def test_hooks_hear_of_every_slot_and_cost_none(
    valkey: ValkeyProcess, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[str] = []

    def on_release(slot_key: str) -> None:
        heard.append(f"-{slot_key}")
        raise ZeroDivisionError

    async with client_on(valkey) as client:
        cap = OwnSlotCap(client, cap=1, on_acquire=lambda key: heard.append(f"+{key}"), on_release=on_release)
        lease = await cap.acquire_lease(KEY)
        assert not await cap.acquire(KEY)
        lease.release()
        await until(lambda: not live(valkey))
        await cap.aclose()
    assert heard == ["+tenant", "-tenant"]
    assert ["raised" in record.getMessage() for record in caplog.records] == [True]


async def test_scripts_that_the_server_forgot_are_told_again(valkey: ValkeyProcess) -> None:
    async with client_on(valkey) as client:
        cap = OwnSlotCap(client, cap=2)
        with raw(valkey) as server:
            for _ in range(2):
                server.script_flush()
                lease = await cap.acquire_lease(KEY)
                server.script_flush()
                lease.release()
                await until(lambda: not live(valkey))
        await cap.aclose()


# --- leases live as long as their streams -----------------------------------------------------------------


@pytest.mark.slow
async def test_a_stream_that_outlives_three_ttls_still_counts(valkey: ValkeyProcess) -> None:
    async with client_on(valkey) as client, client_on(valkey) as another:
        cap, elsewhere = OwnSlotCap(client, cap=2, ttl=1), OwnSlotCap(another, cap=2, ttl=1)
        leases = await take_all(cap, 2)
        end = time.monotonic() + 3.2
        while time.monotonic() < end:
            with pytest.raises(CapExceededError):
                await elsewhere.acquire_lease(KEY)
            await anyio.sleep(0.05)
        assert sorted(live(valkey)) == sorted(lease.id for lease in leases)
        leases[0].release()
        await until(lambda: live(valkey) == [leases[1].id])
        await cap.aclose()
        assert live(valkey) == []


def test_slots_of_a_crashed_process_are_free_after_the_ttl(valkey: ValkeyProcess) -> None:
    code = f"""
    import asyncio
    from redis.asyncio import Redis
    from livepush_asgi import SlotCap
    async def main():
        cap = SlotCap(Redis.from_url({valkey.url!r}), cap=3, ttl=1)
        leases = [await cap.acquire_lease({KEY!r}) for _ in range(3)]
        print("taken", flush=True)
        await asyncio.Event().wait()
    asyncio.run(main())
    """

    async def take_again() -> None:
        async with client_on(valkey) as client:
            cap = OwnSlotCap(client, cap=3, ttl=1)
            with pytest.raises(CapExceededError):
                await cap.acquire_lease(KEY)
            await until(lambda: not live(valkey), within=2.0)
            await take_all(cap, 3)
            await cap.aclose()

    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "taken\n"
        process.send_signal(signal.SIGKILL)
    asyncio.run(take_again())


async def test_2000_leases_are_renewed_in_batches(own_valkey: ValkeyProcess) -> None:
    async with client_on(own_valkey) as client:
        cap = OwnSlotCap(client, cap=5, ttl=1.5)
        await asyncio.gather(*(cap.acquire_lease(f"key {number % 500}") for number in range(2000)))
        with raw(own_valkey) as server:
            server.config_resetstat()
            await until(lambda: len(live(own_valkey, "key 499")) == 4 and _calls(server) >= 40)
            # Twice all 500 keys, a hundred leases in one call.
            assert _calls(server) <= 50
        assert await cap.held("key 0") == 4
        await cap.aclose()
        assert live(own_valkey, "key 0") == []


def _calls(server: redis.Redis) -> int:
    return int(server.info("commandstats").get("cmdstat_evalsha", {}).get("calls", 0))


# --- the newest wins --------------------------------------------------------------------------------------


async def test_the_oldest_of_the_same_process_is_told_at_once(valkey: ValkeyProcess) -> None:
    told: list[str] = []
    async with client_on(valkey) as client:
        cap = OwnSlotCap(client, cap=2, on_full="replace_oldest")
        first = await cap.acquire_lease(KEY, lambda: told.append("first"))
        second = await cap.acquire_lease(KEY, lambda: told.append("second"))
        third = await cap.acquire_lease(KEY, lambda: told.append("third"))
        assert (told, first.released, third.replaced) == (["first"], True, ())
        assert sorted(live(valkey)) == sorted([second.id, third.id])
        statistics = cap.statistics()
        assert (statistics.held, statistics.acquired, statistics.replaced, statistics.refused) == (2, 3, 1, 0)
        await cap.aclose()
        assert told == ["first"]


async def test_the_oldest_of_another_process_is_told_when_that_hears_of_it(valkey: ValkeyProcess) -> None:
    told: list[str] = []
    async with client_on(valkey) as client, client_on(valkey) as another:
        cap = OwnSlotCap(client, cap=2, on_full="replace_oldest")
        elsewhere = OwnSlotCap(another, cap=2, on_full="replace_oldest")
        first = await cap.acquire_lease(KEY, lambda: told.append("first"))
        await cap.acquire_lease(KEY, lambda: told.append("second"))
        third = await elsewhere.acquire_lease(KEY)
        assert third.replaced == (first.id,)
        assert told == []
        elsewhere.replaced(third.replaced)
        cap.replaced([*third.replaced, "unknown"])
        assert (told, first.released) == (["first"], True)
        await until(lambda: cap.statistics().owed == 0)
        assert len(live(valkey)) == 2
        await cap.aclose()
        await elsewhere.aclose()
        with raw(valkey) as server:
            assert server.keys("*") == []


async def test_a_replaced_lease_is_not_renewed_and_its_holder_learns_it(
    valkey: ValkeyProcess, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str] = []

    def fault() -> None:
        told.append("first")
        raise ZeroDivisionError

    async with client_on(valkey) as client, client_on(valkey) as another:
        cap = OwnSlotCap(client, cap=2, ttl=1, on_full="replace_oldest")
        elsewhere = OwnSlotCap(another, cap=2, ttl=1, on_full="replace_oldest")
        # Taken last but renewed first: it is the moment of taking that counts.
        first = await cap.acquire_lease(KEY, fault)
        second = await elsewhere.acquire_lease(KEY, lambda: told.append("second"))
        renewed_at = _expiries(valkey)
        await until(lambda: all(after > renewed_at[id_] for id_, after in _expiries(valkey).items()))
        third = await elsewhere.acquire_lease(KEY)
        assert third.replaced == (first.id,)
        await until(lambda: told == ["first"], within=1.0)
        assert first.released
        assert sorted(live(valkey)) == sorted([second.id, third.id])
        await cap.aclose()
        await elsewhere.aclose()
    assert [bool(record.exc_info) for record in caplog.records] == [True]


def _expiries(server: ValkeyProcess) -> dict[str, float]:
    with raw(server) as client:
        return {
            str(id_): score
            for id_, score in client.zrange(f"livepush:slot:{{{KEY}}}", 0, -1, withscores=True)
        }


# --- the server goes away ---------------------------------------------------------------------------------


async def test_a_server_without_its_data_counts_right_after_one_renewal(own_valkey: ValkeyProcess) -> None:
    async with client_on(own_valkey) as client:
        cap = OwnSlotCap(client, cap=5, ttl=1.5)
        leases = await take_all(cap, 5)
        own_valkey.kill()
        leases.pop().release()
        own_valkey.start()
        assert live(own_valkey) == []
        await until(lambda: sorted(live(own_valkey)) == sorted(lease.id for lease in leases), within=1.5)
        last = await cap.acquire_lease(KEY)
        with pytest.raises(CapExceededError):
            await cap.acquire_lease(KEY)
        assert len(live(own_valkey)) == 5
        last.release()
        await cap.aclose()
        assert live(own_valkey) == []


async def test_the_order_of_taking_survives_the_loss_of_the_data(own_valkey: ValkeyProcess) -> None:
    async with client_on(own_valkey) as client:
        cap = OwnSlotCap(client, cap=3, ttl=1.5, on_full="replace_oldest")
        first, second, third = await take_all(cap, 3)
        with raw(own_valkey) as server:
            server.flushall()
        await until(lambda: len(live(own_valkey)) == 3, within=1.5)
        await take_all(cap, 2)
        assert (first.released, second.released, third.released) == (True, True, False)
        await cap.aclose()


async def test_what_was_given_back_while_the_server_was_away_is_told_later(tmp_path: Path) -> None:
    with ValkeyProcess(tmp_path, persistent=True) as server:
        async with client_on(server) as client:
            cap = OwnSlotCap(client, cap=5)
            leases = await take_all(cap, 5)
            server.kill()
            for lease in leases[:3]:
                lease.release()
            await until(lambda: cap.statistics().away)
            server.start()
            await until(lambda: sorted(live(server)) == sorted(lease.id for lease in leases[3:]))
            await until(lambda: not cap.statistics().away)
            await cap.aclose()


async def test_without_a_server_streams_are_let_in_up_to_the_cap_and_counted_later(
    own_valkey: ValkeyProcess, caplog: pytest.LogCaptureFixture
) -> None:
    async with client_on(own_valkey) as client:
        cap = OwnSlotCap(client, cap=10, timeout=0.5)
        counted = await cap.acquire_lease(KEY)
        own_valkey.kill()
        leases = [counted, *await asyncio.gather(*(cap.acquire_lease(KEY) for _ in range(6)))]
        started = time.monotonic()
        leases += await take_all(cap, 3)
        # That it is away is known by now, and nobody waits for it any more.
        assert time.monotonic() - started < 0.1
        with pytest.raises(CapExceededError):
            await cap.acquire_lease(KEY)
        assert cap.statistics() == SlotStatistics(
            held=10, acquired=10, refused=1, failed_open=9, replaced=0, owed=0, dropped=0, away=True
        )
        with pytest.raises(SlotsUnavailableError, match=f"127.0.0.1:{own_valkey.port}"):
            await cap.held(KEY)
        leases.pop().release()
        own_valkey.start()
        await until(lambda: sorted(live(own_valkey)) == sorted(lease.id for lease in leases))
        await until(lambda: not cap.statistics().away)
        await cap.aclose()
        assert live(own_valkey) == []
    lines = [record.getMessage() for record in caplog.records if record.name == "livepush_asgi"]
    assert len(lines) == 2, lines
    where = f"slots: Redis at 127.0.0.1:{own_valkey.port}"
    assert lines[0].startswith(f"{where} cannot be asked, streams are let in uncounted: ")
    assert lines[1] == f"{where} is back"


async def test_without_a_server_the_newest_still_wins(own_valkey: ValkeyProcess) -> None:
    told: list[str] = []
    async with client_on(own_valkey) as client:
        cap = OwnSlotCap(client, cap=2, timeout=0.5, on_full="replace_oldest")
        await cap.acquire_lease(KEY, lambda: told.append("first"))
        await cap.acquire_lease(KEY, lambda: told.append("second"))
        own_valkey.kill()
        third = await cap.acquire_lease(KEY, lambda: told.append("third"))
        assert told == ["first"]
        own_valkey.start()
        await until(lambda: third.id in live(own_valkey))
        await until(lambda: len(live(own_valkey)) == 2)
        await cap.aclose()


async def test_a_cap_that_fails_closed_lets_nobody_in(
    own_valkey: ValkeyProcess, caplog: pytest.LogCaptureFixture
) -> None:
    async with client_on(own_valkey) as client:
        cap = OwnSlotCap(client, cap=2, timeout=0.3, on_error="closed")
        lease = await cap.acquire_lease(KEY)
        own_valkey.kill()
        for _ in range(2):
            with anyio.fail_after(1), pytest.raises(SlotsUnavailableError, match="does not answer"):
                await cap.acquire_lease(KEY)
            with pytest.raises(SlotsUnavailableError):
                await cap.acquire(KEY)
        own_valkey.start()
        await until(lambda: live(own_valkey) == [lease.id] and not cap.statistics().away)
        assert await cap.acquire(KEY)
        assert not await cap.acquire(KEY)
        await cap.aclose()
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(lines) == 2, lines
    assert "no stream is let in" in lines[0]


@pytest.mark.parametrize("on_error", ["open", "closed"])
async def test_a_server_that_stands_still_holds_up_no_request(
    own_valkey: ValkeyProcess, on_error: OnError
) -> None:
    async with client_on(own_valkey) as client:
        cap = OwnSlotCap(client, cap=1, timeout=0.3, on_error=on_error)
        (await cap.acquire_lease(KEY)).release()
        await until(lambda: not live(own_valkey))
        own_valkey.pause()
        with anyio.fail_after(1):
            if on_error == "open":
                lease = await cap.acquire_lease(KEY)
            else:
                with pytest.raises(SlotsUnavailableError):
                    await cap.acquire_lease(KEY)
        own_valkey.resume()
        await until(lambda: not cap.statistics().away)
        # The take was waiting in the socket, and was carried out only now.
        assert live(own_valkey) == ([lease.id] if on_error == "open" else [])
        await cap.aclose()
        assert live(own_valkey) == []


async def test_takes_that_are_cancelled_have_taken_nothing(own_valkey: ValkeyProcess) -> None:
    async with client_on(own_valkey) as client:
        cap = OwnSlotCap(client, cap=20)
        kept = await cap.acquire_lease(KEY)
        own_valkey.pause()
        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(cap.acquire_lease, KEY)
            await anyio.wait_all_tasks_blocked()
            # These are queued behind the ones that were sent.
            for _ in range(10):
                tasks.start_soon(cap.acquire_lease, KEY)
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        own_valkey.resume()
        await until(lambda: cap.statistics().owed == 0)
        assert live(own_valkey) == [kept.id]
        assert cap.statistics().held == 1
        await cap.aclose()


@pytest.mark.parametrize("on_error", ["open", "closed"])
async def test_a_take_whose_reply_is_lost_is_not_lost_itself(
    valkey: ValkeyProcess, on_error: OnError
) -> None:
    with raw(valkey) as server:
        server.script_flush()
    relay = Relay(valkey.port, cut_after=b"EVAL\r\n")
    async with anyio.create_task_group() as tasks:
        await tasks.start(relay.serve)
        async with Redis(port=relay.port) as client:
            cap = OwnSlotCap(client, cap=2, ttl=1.5, on_error=on_error)
            if on_error == "open":
                lease = await cap.acquire_lease(KEY)
                assert live(valkey) == [lease.id]
                lease.release()
            else:
                with pytest.raises(SlotsUnavailableError):
                    await cap.acquire_lease(KEY)
            # Either way the server is told that the slot is free; that was lost on the way, too.
            await until(lambda: not live(valkey))
            await until(lambda: cap.statistics().owed == 0)
            await cap.aclose()
        tasks.cancel_scope.cancel()


@pytest.mark.slow
async def test_closing_waits_no_longer_than_2_seconds_for_a_server(own_valkey: ValkeyProcess) -> None:
    async with client_on(own_valkey) as client:
        cap = OwnSlotCap(client, cap=2)
        await take_all(cap, 2)
        own_valkey.pause()
        started = time.monotonic()
        await cap.aclose()
        assert 1.5 < time.monotonic() - started < 2.5
        assert tasks_of_the_package() == []
        statistics = cap.statistics()
        assert (statistics.held, statistics.owed, statistics.dropped) == (0, 0, 2)
        own_valkey.resume()


async def test_a_give_back_is_dropped_when_the_lease_has_expired_by_itself(own_valkey: ValkeyProcess) -> None:
    async with client_on(own_valkey) as client:
        cap = OwnSlotCap(client, cap=2, ttl=0.5, timeout=0.2)
        lease = await cap.acquire_lease(KEY)
        own_valkey.kill()
        lease.release()
        assert cap.statistics().owed == 1
        await until(lambda: not tasks_of_the_package(), within=5.0)
        assert (cap.statistics().owed, cap.statistics().dropped) == (0, 1)


# --- event loops ------------------------------------------------------------------------------------------


def test_leases_of_an_event_loop_that_ended_are_given_back(valkey: ValkeyProcess) -> None:
    client = valkey.client()
    cap = OwnSlotCap(client, cap=2)

    async def use() -> str:
        # The last loop left its lease behind, without a word.
        lease = await cap.acquire_lease(KEY)
        await until(lambda: live(valkey) == [lease.id])
        await client.aclose()
        return lease.id

    assert len({asyncio.run(use()) for _ in range(3)}) == 3

    async def close() -> None:
        await cap.acquire_lease(KEY)
        await cap.aclose()
        await client.aclose()

    asyncio.run(close())
    assert live(valkey) == []


def test_a_lease_can_be_released_after_its_event_loop_has_ended(valkey: ValkeyProcess) -> None:
    client = valkey.client()
    cap = OwnSlotCap(client, cap=1)

    async def use() -> Lease:
        lease = await cap.acquire_lease(KEY)
        await client.aclose()
        return lease

    for _ in range(2):
        asyncio.run(use()).release()

    async def close() -> None:
        await cap.acquire_lease(KEY)
        await cap.aclose()
        await client.aclose()

    asyncio.run(close())
    assert live(valkey) == []


@pytest.mark.parametrize("state", ["up", "away", "stopped"])
def test_when_the_event_loop_ends_nothing_is_left_open(own_valkey: ValkeyProcess, state: str) -> None:
    code = f"""
    import asyncio, gc, os, signal
    from redis.asyncio import Redis
    from livepush_asgi import SlotCap
    async def stream(cap, taken):
        lease = await cap.acquire_lease("key")
        try:
            taken.append(lease)
            await asyncio.Event().wait()
        finally:
            lease.release()
    async def main():
        client = Redis.from_url({own_valkey.url!r})
        cap, taken = SlotCap(client, timeout=0.3), []
        tasks = [asyncio.create_task(stream(cap, taken)) for _ in range(10)]
        while len(taken) < 10:
            await asyncio.sleep(0.01)
        if {state!r} != "up":
            os.kill({own_valkey.pid}, signal.SIGKILL if {state!r} == "away" else signal.SIGSTOP)
            tasks += [asyncio.create_task(stream(cap, taken)) for _ in range(5)]
            await asyncio.sleep(0)
        await client.aclose()
        return tasks
    asyncio.run(main())
    gc.collect()
    """
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", textwrap.dedent(code)]
    run = subprocess.run(command, capture_output=True, text=True)
    unexpected = [line for line in complaints(run.stderr) if "cannot be asked" not in line]
    assert (run.returncode, unexpected) == (0, [])


# --- wrong arguments --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"cap": 0}, "cap is a whole number"),
        ({"ttl": 0}, "ttl is in seconds"),
        ({"ttl": 60, "ttl_seconds": 60}, "two names for one thing"),
        ({"timeout": 0}, "timeout is in seconds"),
        ({"on_full": "wait"}, "on_full"),
        ({"on_error": "maybe"}, "on_error"),
    ],
)
def test_a_cap_that_could_not_be_kept_is_refused(arguments: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        OwnSlotCap(Redis(), **arguments)  # type: ignore[arg-type]


def test_the_client_is_asynchronous() -> None:
    with pytest.raises(TypeError, match=r"redis\.asyncio\.Redis is needed"):
        OwnSlotCap(redis.Redis())  # type: ignore[arg-type]
