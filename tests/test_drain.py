"""Giving up the streams of a process: spread over the window, never longer, each client told its own time."""

import json
from contextlib import AsyncExitStack

import anyio
import pytest

from livepush_asgi import DrainPolicy, EndReason, LivePush, MemoryBroker, MemorySlotCap, public
from livepush_asgi.testing import Client, Stream

pytestmark = pytest.mark.virtual_time


def pushing(window: float) -> LivePush:
    return LivePush(
        MemoryBroker(),
        public("news", slot_key="k"),
        slots=MemorySlotCap(1000),
        drain=DrainPolicy(window=window, signals=False),
    )


async def opened(client: Client, stack: AsyncExitStack, count: int) -> list[Stream]:
    streams = [await stack.enter_async_context(client.open("/")) for _ in range(count)]
    for stream in streams:
        await stream.next_event(control=True)
    return streams


async def test_streams_end_spread_over_the_window_each_with_its_own_retry() -> None:
    push, ends, retries = pushing(10), list[float](), set[int]()

    async def follow(stream: Stream) -> None:
        assert await stream.wait_ended(timeout=20) == "drain"
        ends.append(anyio.current_time() - start)
        assert stream.retry is not None
        retries.add(stream.retry)

    async with push.lifespan(), Client(push) as client, AsyncExitStack() as stack:
        streams = await opened(client, stack, 200)
        start = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            for stream in streams:
                tasks.start_soon(follow, stream)
            await push.drain()
            assert anyio.current_time() - start <= 10
        assert push.statistics()["ended"][EndReason.DRAIN] == 200
    # Uniform over the first eight seconds: each of four quarters has its share, within wide bounds.
    quarters = [sum(1 for end in ends if 2 * n <= end < 2 * n + 2.1) for n in range(4)]
    assert all(25 <= share <= 80 for share in quarters), quarters
    assert len(retries) > 150


async def test_the_clients_come_back_one_by_one_and_not_at_once() -> None:
    """When each of 400 would connect again: its end, and then the reconnection time that it was told."""
    push, returns = pushing(10), list[float]()

    async def follow(stream: Stream) -> None:
        await stream.wait_ended(timeout=20)
        assert stream.retry is not None
        assert 1500 <= stream.retry <= 4500
        returns.append(anyio.current_time() - start + stream.retry / 1000)

    async with push.lifespan(), Client(push) as client, AsyncExitStack() as stack:
        streams = await opened(client, stack, 400)
        start = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            for stream in streams:
                tasks.start_soon(follow, stream)
            await push.drain()
    each_second = [sum(1 for moment in returns if second <= moment < second + 1) for second in range(13)]
    assert sum(each_second) == 400
    # Nobody in the first second, and 50 in each of those in the middle, within wide bounds. Without a
    # spread all 400 would come in one.
    assert each_second[0] == 0
    assert max(each_second) <= 100, each_second
    assert min(each_second[5:9]) >= 15, each_second


async def test_what_waits_is_delivered_before_the_end() -> None:
    push = pushing(2)
    async with push.lifespan(), Client(push) as client, client.open("/") as stream:
        await stream.next_event(control=True)
        for number in range(5):
            await push.publish("news", number)
        await push.drain()
        assert [event.data for event in await stream.events(5)] == ["0", "1", "2", "3", "4"]
        assert await stream.wait_ended() == "drain"


async def test_a_client_that_takes_nothing_cannot_hold_the_window_open() -> None:
    push = pushing(3)
    async with push.lifespan(), Client(push) as client, client.open("/", window=0) as stuck:
        await stuck.next_event(control=True)
        await push.publish("news", "nobody reads this")
        start = anyio.current_time()
        await push.drain()
        assert anyio.current_time() - start <= 3.1
        assert push.statistics()["streams"] == 0


async def test_few_streams_are_no_storm_and_take_a_part_of_the_window() -> None:
    push = pushing(10)
    async with push.lifespan(), Client(push) as client, client.open("/") as stream:
        await stream.next_event(control=True)
        start = anyio.current_time()
        await push.drain()
        assert anyio.current_time() - start <= 1


async def test_new_streams_are_refused_softly_while_draining() -> None:
    push = pushing(5)
    async with push.lifespan(), Client(push) as client, client.open("/") as open_one:
        await open_one.next_event(control=True)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(push.drain)
            await anyio.wait_all_tasks_blocked()
            assert push.statistics()["draining"]
            async with client.open("/") as refused:
                event = await refused.next_event(name="livepush.refused")
                await refused.wait_ended()
    assert event.retry is not None
    assert json.loads(event.data) == {
        "reason": "drain",
        "status": 503,
        "retry": event.retry,
        "detail": "The server is restarting.",
    }


async def test_draining_twice_is_draining_once_and_without_a_run_it_is_nothing() -> None:
    push = pushing(1)
    await push.drain()
    async with push.lifespan():
        await push.drain()
        await push.drain()
