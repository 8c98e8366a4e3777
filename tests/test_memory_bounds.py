"""What MemoryBroker keeps of all channels together is bounded, in bytes and in time."""

import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from livepush_asgi import Grant, History, LivePush, MemoryBroker
from livepush_asgi.brokers.memory import MemoryLog
from livepush_asgi.testing import Client

from .virtual_clock import let_pass

KIBIBYTE = b"x" * 1024
# What an event takes beside its payload.
COST = 80


def logs() -> int:
    """How many logs this process keeps."""
    gc.collect()
    # By its type: Django has objects that look themselves up when they are asked for their class.
    return sum(type(thing) is MemoryLog for thing in gc.get_objects())


@asynccontextmanager
async def application(broker: MemoryBroker) -> AsyncIterator[tuple[LivePush, Client]]:
    push = LivePush(broker, lambda request: Grant(channels=(request.query["channel"],)))
    async with push.lifespan(), Client(push) as client:
        yield push, client


async def test_all_channels_together_are_bounded_in_bytes() -> None:
    broker = MemoryBroker(History(total_size=100 * (1024 + COST)))
    for number in range(500):
        await broker.append(f"room {number % 50}", KIBIBYTE)
        assert broker.size <= 100 * (1024 + COST)
    pages = [await broker.read(f"room {number}", 0, 100) for number in range(50)]
    assert sum(len(page.records) for page in pages) == 100
    # The newest event of each is kept, and offsets go on.
    assert {page.last for page in pages} == {10}
    assert {page.records[-1].offset for page in pages} == {10}


async def test_the_channel_that_was_quiet_longest_loses_its_oldest_events() -> None:
    broker = MemoryBroker(History(total_size=10 * (1024 + COST)))
    for channel in ("first", "second"):
        for _ in range(5):
            await broker.append(channel, KIBIBYTE)
    for _ in range(7):
        await broker.append("loud", KIBIBYTE)
    kept = {name: (await broker.read(name, 0, 100)).first for name in ("first", "second", "loud")}
    assert kept == {"first": 6, "second": 3, "loud": 1}
    # One that is larger than the bound stays all the same, alone.
    await broker.append("large", KIBIBYTE * 20)
    assert (await broker.read("large", 0, 100)).first == 1
    assert broker.size == 20 * 1024 + COST


async def test_by_default_ten_thousand_channels_keep_128_mebibytes() -> None:
    broker = MemoryBroker()
    payload = bytes(1024 * 1024)
    for number in range(300):
        await broker.append(f"room {number}", payload)
    assert 100 * 1024**2 < broker.size <= 128 * 1024**2


async def test_a_client_is_told_of_what_was_let_go() -> None:
    broker = MemoryBroker(History(total_size=10 * (1024 + COST)))
    async with application(broker) as (push, client):
        async with client.open("/?channel=quiet") as stream:
            await stream.next_event(name="livepush.open")
            await push.publish("quiet", "1")
            await stream.next_event()
        await push.publish("quiet", "2")
        for _ in range(20):
            await push.publish("loud", "x" * 1000)
        async with client.open("/?channel=quiet", last_event_id=stream.last_event_id) as again:
            gap = await again.next_event(name="livepush.gap")
            assert '"expired"' in gap.data


@pytest.mark.parametrize("way", ["append", "read", "subscribe"])
async def test_idle_logs_go_by_time_without_a_new_channel(way: str) -> None:
    before = logs()
    broker = MemoryBroker(History(age=60.0))
    for number in range(2500):
        await broker.append(f"room {number}", b"x")
    listened = await broker.subscribe("room 7")
    assert logs() == before + 2500
    await let_pass(61.0)
    for _ in range(10):
        if way == "append":
            await broker.append("room 7", b"y")
        elif way == "read":
            await broker.read("room 7", 0, 1)
        else:
            await (await broker.subscribe("room 7")).close()
        await let_pass(0.1)
    assert logs() == before + 1
    assert broker.size <= 10 * (1 + COST)
    await listened.close()


async def test_a_log_that_is_listened_to_keeps_its_epoch_and_loses_old_events() -> None:
    broker = MemoryBroker(History(age=60.0))
    position = await broker.append("quiet", KIBIBYTE)
    listened = await broker.subscribe("quiet")
    await let_pass(61.0)
    for _ in range(3):
        await broker.append("other", b"x")
        await let_pass(11.0)
    assert broker.size == 3 * (1 + COST)
    page = await broker.read("quiet", 0, 10)
    assert (page.epoch, page.first, page.last) == (position.epoch, 2, 1)
    await listened.close()


async def test_a_log_in_use_is_not_forgotten_when_there_are_as_many_as_may_be() -> None:
    broker = MemoryBroker(History(channels=10, age=60.0))
    positions = [await broker.append(f"room {number}", b"x") for number in range(10)]
    for _ in range(10):
        await let_pass(5.0)
        await broker.append("room 0", b"y")
    pages = [await broker.read(f"room {number}", 0, 0) for number in range(10)]
    assert [page.epoch for page in pages] == [position.epoch for position in positions]
