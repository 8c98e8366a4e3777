"""Subscribing in Python over a real Valkey that is killed and whose log is trimmed, and in a worker.

One test is over JetStream too.
"""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from livepush_asgi import (
    BrokerUnavailableError,
    Gap,
    GapReason,
    History,
    HistoryBroker,
    JetStreamBroker,
    Limits,
    LivePush,
    Received,
    RedisBroker,
    RedisStreamsBroker,
    Refusal,
    Subscriber,
    Timing,
)

from .nats_server import NatsProcess
from .serving import REPOSITORY
from .valkey import ValkeyProcess, until

pytestmark = pytest.mark.real_time


@asynccontextmanager
async def push_on(
    server: ValkeyProcess, history: History | None = None, *, log: bool = True, limits: Limits | None = None
) -> AsyncIterator[LivePush]:
    async with server.client() as client:
        broker = RedisStreamsBroker(client, history=history) if log else RedisBroker(client)
        push = LivePush(broker, lambda request: Refusal(404), limits=limits, timing=Timing(linger=0.1))
        async with push.lifespan():
            yield push


async def take(events: Subscriber, count: int) -> list[Received | Gap]:
    async with asyncio.timeout(20):
        return [await anext(events) for _ in range(count)]


async def numbers(events: Subscriber, count: int) -> list[int]:
    """Return the data of the next items, which have to be events."""
    return [int(item.data) if isinstance(item, Received) else -1 for item in await take(events, count)]


async def publish(push: LivePush, channel: str, number: int) -> None:
    await push.publish(channel, number, idempotency_key=f"{channel} {number}", retry_for=20)


@pytest.fixture(params=["redis", "jetstream"])
async def ten_kept(
    request: pytest.FixtureRequest, valkey: ValkeyProcess, nats_server: NatsProcess
) -> AsyncIterator[HistoryBroker]:
    """A broker that keeps ten events of each channel."""
    ten = History(events=10)
    async with valkey.client() as client:
        if request.param == "redis":
            yield RedisStreamsBroker(client, history=ten)
        else:
            yield JetStreamBroker(nats_server.url, prefix=f"test-{uuid4().hex}", history=ten)


async def test_all_of_a_log_that_has_dropped_events_begins_with_a_gap(ten_kept: HistoryBroker) -> None:
    push = LivePush(ten_kept, lambda request: Refusal(404), timing=Timing(linger=0.1))
    async with push.lifespan():
        for number in range(10):
            await publish(push, "a", number)
        async with push.subscribe("a", replay="all") as events:
            assert await numbers(events, 10) == list(range(10))
        for number in range(25):
            await publish(push, "b", number)
        async with push.subscribe("b", replay="all") as events:
            (gap,) = await take(events, 1)
            assert isinstance(gap, Gap)
            assert gap.reason is GapReason.EXPIRED
            assert await numbers(events, 10) == list(range(15, 25))
        async with push.subscribe("b", replay="all", last_event_id=gap.id) as events:
            assert await numbers(events, 10) == list(range(15, 25))


@pytest.mark.parametrize("channels", [["a"], ["a", "b"]])
async def test_a_server_that_is_restarted_costs_no_event(tmp_path: Path, channels: list[str]) -> None:
    with ValkeyProcess(tmp_path, persistent=True) as server:
        async with push_on(server) as push, push.subscribe(*channels) as events:
            for number in range(10):
                await publish(push, channels[-1], number)
                if number % 3 == 1:
                    server.kill()
                    await asyncio.to_thread(server.start)
            assert await numbers(events, 10) == list(range(10))


async def told(events: Subscriber, count: int) -> list[object]:
    """Return the numbers of the next items, and the reasons of the gaps."""
    return [
        int(item.data) if isinstance(item, Received) else item.reason for item in await take(events, count)
    ]


async def test_what_a_server_without_an_append_only_file_has_lost_is_a_gap(tmp_path: Path) -> None:
    with ValkeyProcess(tmp_path) as server:
        async with push_on(server) as push, server.client() as client, push.subscribe("a") as kept:
            ids = [await push.publish("a", number) for number in range(6)]
            await client.save()
            for number in range(6, 9):
                await push.publish("a", number)
            assert await numbers(kept, 9) == list(range(9))
            server.kill()
            await asyncio.to_thread(server.start)
            # The one that was there has events that the log has not got.
            assert await told(kept, 1) == [GapReason.EPOCH]
            # Those that were away are behind what is lost, or where it may be. Nothing is published yet.
            for place, rest in ((2, [3, 4, 5]), (5, [])):
                async with push.subscribe("a", last_event_id=ids[place]) as events:
                    assert await told(events, len(rest) + 1) == [*rest, GapReason.EPOCH]
            async with push.subscribe("a", replay="all") as events:
                assert await told(events, 7) == [*range(6), GapReason.EPOCH]
                (gap,) = [events.last_event_id]
            await publish(push, "a", 9)
            assert await told(kept, 1) == [9]
            # Nobody is told twice.
            async with push.subscribe("a", last_event_id=gap) as events:
                assert await told(events, 1) == [9]
            async with push.subscribe("a", last_event_id=ids[2]) as events:
                assert await told(events, 5) == [3, 4, 5, GapReason.EPOCH, 9]


async def test_a_server_that_has_lost_everything_is_a_gap_and_one_with_its_file_is_none(
    tmp_path: Path,
) -> None:
    for persistent, expected in (False, [GapReason.EPOCH, 9]), (True, [3, 4, 5, 9]):
        with ValkeyProcess(tmp_path / str(persistent), persistent=persistent) as server:
            async with push_on(server) as push:
                ids = [await push.publish("a", number) for number in range(6)]
                server.kill()
                await asyncio.to_thread(server.start)
                async with push.subscribe("a", last_event_id=ids[2]) as events:
                    await publish(push, "a", 9)
                    assert await told(events, len(expected)) == expected


async def test_a_server_that_was_stopped_in_order_without_the_file_is_a_gap_too(tmp_path: Path) -> None:
    """Nothing is lost then. The server cannot know, and the gap says that something may be."""
    with ValkeyProcess(tmp_path) as server:
        async with push_on(server) as push, server.client() as client:
            ids = [await push.publish("a", number) for number in range(6)]
            await client.shutdown(save=True)
            server.kill()
            await asyncio.to_thread(server.start)
            async with push.subscribe("a", last_event_id=ids[2]) as events:
                assert await told(events, 4) == [3, 4, 5, GapReason.EPOCH]


async def test_what_another_process_publishes_while_the_server_is_lost_comes_too(tmp_path: Path) -> None:
    with ValkeyProcess(tmp_path, persistent=True) as server:
        async with push_on(server) as push, push_on(server) as other, push.subscribe("a") as events:
            await publish(other, "a", 0)
            assert await numbers(events, 1) == [0]
            server.kill()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(publish(other, "a", 1))
                await asyncio.to_thread(server.start)
            await publish(other, "a", 2)
            assert await numbers(events, 2) == [1, 2]


async def test_a_server_that_has_lost_its_log_is_a_gap(own_valkey: ValkeyProcess) -> None:
    async with push_on(own_valkey) as push, push.subscribe("a") as events:
        await publish(push, "a", 0)
        assert await numbers(events, 1) == [0]
        own_valkey.kill()
        await asyncio.to_thread(own_valkey.start)
        await publish(push, "a", 1)
        gap, event = await take(events, 2)
        assert (type(gap), gap.channel) == (Gap, "a")
        assert isinstance(event, Received)
        assert event.data == "1"


async def test_without_history_a_restart_is_a_gap(own_valkey: ValkeyProcess) -> None:
    async with push_on(own_valkey, log=False) as push, push.subscribe("a", "b") as events:
        await push.publish("a", 0)
        assert await numbers(events, 1) == [0]
        own_valkey.kill()
        await asyncio.to_thread(own_valkey.start)
        told = await take(events, 2)
        assert {(item.channel, type(item)) for item in told} == {("a", Gap), ("b", Gap)}
        await until(lambda: push.healthy)
        await push.publish("b", 1)
        assert await numbers(events, 1) == [1]


async def test_a_log_that_was_trimmed_is_a_gap_in_the_place(valkey: ValkeyProcess) -> None:
    async with push_on(valkey, History(events=5)) as push:
        async with push.subscribe("a") as events:
            await publish(push, "a", 0)
            (item,) = await take(events, 1)
        for number in range(1, 21):
            await publish(push, "a", number)
        async with push.subscribe("a", last_event_id=item.id) as events:
            (gap,) = await take(events, 1)
            assert isinstance(gap, Gap)
            assert gap.reason is GapReason.EXPIRED
            assert await numbers(events, 5) == list(range(16, 21))


async def test_a_subscriber_that_is_slower_than_the_log_is_long_is_told(valkey: ValkeyProcess) -> None:
    limits = Limits(outbox_events=10, message_bytes=100)
    async with push_on(valkey, History(events=50), limits=limits) as push, push.subscribe("a") as events:
        for number in range(500):
            await publish(push, "a", number)
        seen: list[int] = []
        gaps = 0
        async with asyncio.timeout(20):
            async for item in events:
                if isinstance(item, Gap):
                    gaps += 1
                    continue
                number = int(item.data)
                assert number > (seen[-1] if seen else -1)
                assert gaps or number == len(seen)
                seen.append(number)
                if number == 499:
                    break
        assert gaps == 1
        assert seen[-50:] == list(range(450, 500))


async def test_a_slow_subscriber_reads_on_from_the_log(valkey: ValkeyProcess) -> None:
    limits = Limits(outbox_events=10, message_bytes=100)
    async with push_on(valkey, limits=limits) as push, push.subscribe("a", "b") as events:
        for number in range(300):
            await publish(push, "a" if number % 2 else "b", number)
        seen = await numbers(events, 300)
        assert [number for number in seen if number % 2] == list(range(1, 300, 2))
        assert [number for number in seen if not number % 2] == list(range(0, 300, 2))
        assert events.end_reason is None


async def test_another_process_goes_on_by_the_id(valkey: ValkeyProcess) -> None:
    async with push_on(valkey) as push, push.subscribe("a", "b") as events:
        for number in range(6):
            await publish(push, "ab"[number % 2], number)
        third = (await take(events, 3))[2]
    async with push_on(valkey) as other, other.subscribe("b", "a", last_event_id=third.id) as events:
        assert sorted(await numbers(events, 3)) == [3, 4, 5]


async def test_a_server_that_is_not_there_yet_is_waited_for(own_valkey: ValkeyProcess) -> None:
    own_valkey.kill()
    async with push_on(own_valkey) as push, push.subscribe("a") as events:
        with pytest.raises(BrokerUnavailableError):
            await push.publish("a", 0)
        await asyncio.to_thread(own_valkey.start)
        (gap,) = await take(events, 1)
        assert isinstance(gap, Gap)
        assert gap.reason is GapReason.BROKER
        await publish(push, "a", 1)
        assert await numbers(events, 1) == [1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_worker_ends_at_a_signal_and_goes_on_where_it_was(
    number: signal.Signals, valkey: ValkeyProcess, tmp_path: Path
) -> None:
    """The worker of the example, in a process without any server."""
    place = tmp_path / "place"
    command = [sys.executable, "-X", "dev", "-W", "error", "examples/worker.py", str(place)]
    environment = {**os.environ, "LIVEPUSH_REDIS": valkey.url, "PYTHONPATH": str(REPOSITORY)}

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True)

    async with push_on(valkey) as push:
        for first in (0, 2):
            await publish(push, "orders", first)
            with start() as worker:
                assert worker.stdout is not None
                lines = [await asyncio.to_thread(worker.stdout.readline)]
                await publish(push, "orders", first + 1)
                lines.append(await asyncio.to_thread(worker.stdout.readline))
                worker.send_signal(number)
                rest = await asyncio.to_thread(worker.stdout.read)
            assert lines == [f"orders {first}\n", f"orders {first + 1}\n"]
            assert rest == "ended: drain\n"
