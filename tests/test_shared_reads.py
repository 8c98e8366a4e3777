"""Reads of history: as much as is delivered, and once for all clients that come back together."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from livepush_asgi import BrokerUnavailableError, Grant, History, LivePush, MemoryBroker
from livepush_asgi.brokers import READ_BYTES, Page
from livepush_asgi.testing import Client

from .virtual_clock import let_pass


class CountedBroker(MemoryBroker):
    """Counts what is read. A read takes `delay` seconds, or fails as often as `failing` says."""

    def __init__(self, history: History | None = None, delay: float = 0.01) -> None:
        super().__init__(history)
        self.delay = delay
        self.failing = 0
        self.reads: list[tuple[int, int]] = []
        self.bytes = 0

    async def read(self, channel: str, after: int, limit: int, *, max_bytes: int = READ_BYTES) -> Page:
        # The page is of the moment at which the read begins: what comes later is not in it.
        page = await super().read(channel, after, limit, max_bytes=max_bytes)
        self.reads.append((after, limit))
        self.bytes += sum(len(record.payload) for record in page.records)
        await anyio.sleep(self.delay)
        if self.failing:
            self.failing -= 1
            raise BrokerUnavailableError("as the test wants it")
        return page

    def pages(self) -> list[int]:
        """Return after which offsets events were read."""
        return [after for after, limit in self.reads if limit]


@asynccontextmanager
async def application(broker: MemoryBroker) -> AsyncIterator[tuple[LivePush, Client]]:
    push = LivePush(broker, lambda request: Grant(channels=("news",)))
    async with push.lifespan(), Client(push) as client, client.open("/") as kept:
        await kept.next_event(name="livepush.open")
        yield push, client


async def begin(push: LivePush, client: Client) -> str:
    """Return the id of a client that has got one event."""
    async with client.open("/") as stream:
        await stream.next_event(name="livepush.open")
        await push.publish("news", "begin")
        return (await stream.next_event()).id or ""


async def test_no_more_is_read_than_is_delivered() -> None:
    broker = CountedBroker(History(size=64 * 1024**2))
    async with application(broker) as (push, client):
        position = await begin(push, client)
        for _ in range(200):
            await push.publish("news", "x" * 65_536)
        broker.bytes = 0
        async with client.open("/", last_event_id=position) as stream:
            events = await stream.events(200, timeout=30)
        delivered = sum(len(event.data) for event in events)
        assert delivered == 200 * 65_536
        assert broker.bytes < 1.01 * delivered


@pytest.mark.slow
async def test_a_thousand_clients_that_come_back_at_once_read_each_page_once() -> None:
    broker = CountedBroker()
    async with application(broker) as (push, client):
        position = await begin(push, client)
        for number in range(150):
            await push.publish("news", number)
        broker.reads.clear()
        found: list[list[str]] = []

        async def come_back() -> None:
            async with client.open("/", last_event_id=position) as stream:
                found.append([event.data for event in await stream.events(150, timeout=60)])

        async with anyio.create_task_group() as tasks:
            for _ in range(1000):
                tasks.start_soon(come_back)
        assert found == [[str(number) for number in range(150)]] * 1000
        assert broker.pages() == [1, 101]
        # Whether each can resume is asked of the log as well: by the first client, and once more for all that
        # came while its read was under way, since its page may be older than their requests.
        assert len(broker.reads) <= 4


async def test_a_page_that_was_read_before_an_event_does_not_stall_who_missed_that() -> None:
    broker = CountedBroker(delay=0.5)
    async with application(broker) as (push, client), anyio.create_task_group() as tasks:
        position = await begin(push, client)
        await push.publish("news", "1")
        arrived: list[tuple[str, float]] = []

        async def come_back(name: str, wanted: list[str]) -> None:
            begun = anyio.current_time()
            async with client.open("/", last_event_id=position) as stream:
                found = await stream.events(len(wanted), timeout=10)
                assert [event.data for event in found] == wanted
                arrived.append((name, anyio.current_time() - begun))

        tasks.start_soon(come_back, "first", ["1"])
        await let_pass(0.2)
        await push.publish("news", "2")
        tasks.start_soon(come_back, "second", ["1", "2"])
        await let_pass(0.1)
        await push.publish("news", "3")
        tasks.start_soon(come_back, "third", ["1", "2", "3"])
        await let_pass(5.0)
        assert sorted(name for name, _ in arrived) == ["first", "second", "third"]
        # Two reads to resume and to read, and one for what came meanwhile.
        assert max(took for _, took in arrived) < 2.0


async def test_a_reader_that_is_cancelled_takes_the_page_from_nobody() -> None:
    broker = CountedBroker(delay=0.5)
    async with application(broker) as (push, client), anyio.create_task_group() as tasks:
        position = await begin(push, client)
        await push.publish("news", "1")
        found: list[str] = []

        async def come_back(scope: anyio.CancelScope) -> None:
            with scope:
                async with client.open("/", last_event_id=position) as stream:
                    found.append((await stream.next_event(10)).data)

        scopes = [anyio.CancelScope() for _ in range(4)]
        for scope in scopes:
            tasks.start_soon(come_back, scope)
        await let_pass(0.3)
        scopes[0].cancel()
        await let_pass(0.3)
        scopes[1].cancel()
        await let_pass(10.0)
        assert found == ["1", "1"]


async def test_a_read_that_fails_is_tried_again_by_all() -> None:
    broker = CountedBroker(delay=0.1)
    async with application(broker) as (push, client), anyio.create_task_group() as tasks:
        position = await begin(push, client)
        await push.publish("news", "1")
        broker.failing = 3
        found: list[str] = []

        async def come_back() -> None:
            async with client.open("/", last_event_id=position) as stream:
                found.append((await stream.next_event(30)).data)

        for _ in range(5):
            tasks.start_soon(come_back)
        await let_pass(30.0)
        assert found == ["1"] * 5


@pytest.mark.parametrize("pause", [0.0, 1.0, 3.0])
async def test_a_page_is_kept_for_a_moment_and_no_longer(pause: float) -> None:
    broker = CountedBroker()
    async with application(broker) as (push, client):
        position = await begin(push, client)
        await push.publish("news", "1")
        broker.reads.clear()
        for _ in range(2):
            async with client.open("/", last_event_id=position) as stream:
                assert (await stream.next_event()).data == "1"
            await let_pass(pause)
        assert broker.pages() == ([1, 1] if pause == 3.0 else [1])
