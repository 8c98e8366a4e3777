"""Runs over a real server, with producers in processes of their own: killed, stopped, cancelled."""

import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from signal import SIGCONT, SIGKILL, SIGSTOP
from typing import IO
from uuid import uuid4

import anyio
import anyio.to_thread
import pytest

from livepush_asgi import (
    Gap,
    HistoryBroker,
    JetStreamBroker,
    LivePush,
    PostgresBroker,
    Received,
    RedisStreamsBroker,
    Refusal,
    Run,
    RunReader,
    RunState,
)

from .valkey import ValkeyProcess

pytestmark = pytest.mark.real_time
# Silence of half a second is loss.
LEASE = 0.5

PRODUCER = """
import asyncio, sys
from redis.asyncio import Redis
from livepush_asgi import LivePush, RedisStreamsBroker, Refusal

async def numbers(pace):
    try:
        for number in range(1, 1000):
            yield number
            await asyncio.sleep(pace)
    finally:
        print("closed", flush=True)

async def main(url, lease, pace):
    async with Redis.from_url(url) as redis:
        push = LivePush(RedisStreamsBroker(redis), lambda request: Refusal())
        async with push.lifespan():
            await push.run("a").start(numbers(float(pace)), lease=float(lease))
            print("started", flush=True)
            await asyncio.Event().wait()

asyncio.run(main(*sys.argv[1:]))
"""


@contextmanager
def producing(
    valkey: ValkeyProcess, pace: float = 0.02, lease: float = LEASE
) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-c", PRODUCER, valkey.url, str(lease), str(pace)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "started\n"
            yield process
        finally:
            process.kill()


@asynccontextmanager
async def serving(valkey: ValkeyProcess) -> AsyncIterator[LivePush]:
    async with valkey.client() as redis:
        push = LivePush(RedisStreamsBroker(redis), lambda request: Refusal())
        async with push.lifespan():
            yield push


async def rest_of(items: RunReader) -> list[str]:
    with anyio.fail_after(10):
        return [item.data if isinstance(item, Received) else "gap" async for item in items]


async def next_line(output: IO[str] | None) -> str:
    assert output is not None
    with anyio.fail_after(5):
        return await anyio.to_thread.run_sync(output.readline, abandon_on_cancel=True)


async def test_a_killed_producer_is_lost_and_another_goes_on(valkey: ValkeyProcess) -> None:
    async def rest(first: int) -> AsyncIterator[object]:
        for number in range(first, 100):
            yield number

    async with serving(valkey) as push:
        with producing(valkey) as process:
            async with push.run("a").read() as items:
                for number in range(1, 6):
                    assert (await anext(items)).data == str(number)  # type: ignore[union-attr]
                process.send_signal(SIGKILL)
                text = await rest_of(items)
                assert items.state is RunState.LOST
        last = 5 + len(text)
        status = await push.run("a").status()
        assert status is not None
        assert status.count == last
        assert await push.run("a").start(lambda _: rest(last + 1), resume=True)
        async with push.run("a").read() as items:
            assert await rest_of(items) == list(map(str, range(1, 100)))
            assert items.state is RunState.DONE


async def test_a_producer_that_stood_still_does_not_go_on_after_another(valkey: ValkeyProcess) -> None:
    async def rest(first: int) -> AsyncIterator[object]:
        for number in range(first, first + 10):
            await anyio.sleep(0.05)
            yield number

    async with serving(valkey) as push:
        with producing(valkey) as process:
            async with push.run("a").read() as items:
                await anext(items)
                process.send_signal(SIGSTOP)
                count = 1 + len(await rest_of(items))
                assert items.state is RunState.LOST
            assert await push.run("a").start(lambda count: rest(count + 1), resume=True)
            process.send_signal(SIGCONT)
            assert await next_line(process.stdout) == "closed\n"
            async with push.run("a").read() as items:
                assert await rest_of(items) == list(map(str, range(1, count + 11)))
                assert items.state is RunState.DONE


async def test_a_run_is_cancelled_from_a_process_that_has_nothing_of_it(valkey: ValkeyProcess) -> None:
    async with serving(valkey) as push:
        # It waits long for its next item, and does not come to its log by itself.
        with producing(valkey, pace=60, lease=60) as process:
            async with push.run("a").read() as items, valkey.client() as redis:
                await anext(items)
                stranger = LivePush(RedisStreamsBroker(redis), lambda request: Refusal())
                began = anyio.current_time()
                status = await stranger.run("a").cancel()
                assert status is not None
                assert status.state is RunState.CANCELLED
                assert await rest_of(items) == []
                assert await next_line(process.stdout) == "closed\n"
                # Until the `finally` it takes 3 to 8 ms on two cores that do other work too.
                assert anyio.current_time() - began < 1


async def test_a_log_that_was_lost_with_the_server_is_told_and_the_run_goes_on(
    own_valkey: ValkeyProcess,
) -> None:
    async def numbers() -> AsyncIterator[object]:
        for number in range(1, 61):
            await anyio.sleep(0.02)
            yield number

    async with serving(own_valkey) as push:
        await push.run("a").start(numbers(), lease=5)
        async with push.run("a").read() as items:
            await anext(items)
            own_valkey.kill()
            own_valkey.start()
            found = [item async for item in items]
            assert items.state is RunState.DONE
        assert any(isinstance(item, Gap) for item in found)
        assert [item.data for item in found if isinstance(item, Received)][-1] == "60"
        status = await push.run("a").status()
        assert status is not None
        assert (status.state, status.count) == (RunState.DONE, 60)
        async with push.run("a").read() as items:
            # Who comes late is told too that the beginning is missing.
            assert isinstance(await anext(items), Gap)
            assert (await rest_of(items))[-1] == "60"


@pytest.mark.parametrize("kind", ["jetstream", "postgres"])
async def test_the_other_brokers(kind: str, request: pytest.FixtureRequest) -> None:
    """Their conditional appends are made otherwise: of two starts one runs, and a cancelled run goes on."""

    async def numbers(first: int, last: int) -> AsyncIterator[object]:
        for number in range(first, last):
            await anyio.sleep(0.01)
            yield number

    id = uuid4().hex
    async with AsyncExitStack() as stack:
        runs = []
        for _ in range(2):
            broker: HistoryBroker
            if kind == "jetstream":
                broker = JetStreamBroker(request.getfixturevalue("nats_server").url, prefix=f"test-{id}")
            else:
                dsn = request.getfixturevalue("postgres_server").dsn
                broker = await stack.enter_async_context(PostgresBroker(dsn))
            push = LivePush(broker, lambda request: Refusal())
            await stack.enter_async_context(push.lifespan())
            runs.append(push.run(id))
        starts: list[bool] = []

        async def start(run: Run) -> None:
            starts.append(await run.start(numbers(1, 1000)))

        async with anyio.create_task_group() as tasks:
            for run in runs:
                tasks.start_soon(start, run)
        assert sorted(starts) == [False, True]
        async with runs[1].read() as items:
            assert [(await anext(items)).data for _ in range(5)] == list("12345")  # type: ignore[union-attr]
            status = await runs[0].cancel()
            assert status is not None
            assert status.state is RunState.CANCELLED
            assert 5 + len(await rest_of(items)) == status.count
        assert await runs[1].start(lambda count: numbers(count + 1, count + 200), resume=True)
        async with runs[0].read() as items:
            assert await rest_of(items) == list(map(str, range(1, status.count + 200)))
            assert items.state is RunState.DONE


async def test_a_run_is_cancelled_whose_producer_stands_still(valkey: ValkeyProcess) -> None:
    async with serving(valkey) as push:
        with producing(valkey, lease=60) as process:
            async with push.run("a").read() as items:
                await anext(items)
                process.send_signal(SIGSTOP)
                status = await push.run("a").cancel()
                assert status is not None
                assert status.state is RunState.CANCELLED
                assert 1 + len(await rest_of(items)) == status.count
            process.send_signal(SIGCONT)
            assert await next_line(process.stdout) == "closed\n"
            assert await push.run("a").status() == status
