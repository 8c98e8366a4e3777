"""The example broker for PostgreSQL on a real server: the published rules, and streams over it."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from functools import partial

import anyio
import asyncpg
import pytest

from examples.postgres_broker import PostgresBroker
from livepush_asgi import BrokerUnavailableError, LivePush, Publisher, Timing, public
from livepush_asgi.brokers import HistoryBroker, Record
from livepush_asgi.testing import Client, HistoryBrokerContract, ParsedEvent, Stream
from livepush_asgi.wire.event import positioned

from .postgres_server import PostgresProcess
from .valkey import until

LONG = 30.0
CHANNEL = "news"

pytestmark = pytest.mark.real_time


@pytest.fixture(scope="module")
def running_server() -> Iterator[PostgresProcess]:
    with PostgresProcess() as server:
        yield server


@pytest.fixture
async def server(running_server: PostgresProcess) -> PostgresProcess:
    """A running server without data. A test may kill it and leaves it running."""
    if not running_server.is_running:
        running_server.start()
    await ask(running_server, "DROP TABLE IF EXISTS livepush_logs, livepush_events")
    return running_server


@pytest.fixture
async def broker(server: PostgresProcess) -> AsyncIterator[PostgresBroker]:
    async with aclosing(PostgresBroker(server.dsn)) as broker:
        yield broker


async def ask(server: PostgresProcess, query: str) -> list[tuple[object, ...]]:
    """Ask the server something, on a connection of its own."""
    connection = await asyncpg.connect(server.dsn)
    try:
        return [tuple(row) for row in await connection.fetch(query)]
    finally:
        await connection.close()


@asynccontextmanager
async def client_of(broker: PostgresBroker) -> AsyncIterator[tuple[LivePush, Client]]:
    push = LivePush(broker, public(CHANNEL), timing=Timing(linger=0))
    async with push.lifespan(), Client(push, deadline=LONG) as client:
        yield push, client


async def publish(push: LivePush, numbers: range) -> None:
    for number in numbers:
        await push.publish(CHANNEL, number, idempotency_key=f"event {number}", retry_for=LONG)


async def told(stream: Stream, last: int) -> list[str]:
    """What a client is told up to the event with this number, gaps by their reason."""
    found: list[str] = []
    while str(last) not in found:
        found.append(word_of(await stream.next_event(LONG, control=True)))
    return found


def word_of(event: ParsedEvent) -> str:
    if event.event == "livepush.open":
        return "resumed" if json.loads(event.data)["resumed"] else "open"
    return str(json.loads(event.data)["reason"]) if event.event == "livepush.gap" else event.data


def words(numbers: range) -> list[str]:
    return [str(number) for number in numbers]


class TestPostgresBroker(HistoryBrokerContract):
    @pytest.fixture
    async def bounded_broker(self, server: PostgresProcess) -> AsyncIterator[HistoryBroker]:
        async with aclosing(PostgresBroker(server.dsn, events=10)) as broker:
            yield broker


async def test_it_is_a_broker_with_history(broker: PostgresBroker) -> None:
    assert isinstance(broker, HistoryBroker)


async def test_a_payload_that_no_notification_could_hold_arrives_whole(broker: PostgresBroker) -> None:
    payload = bytes(range(256)) * 8192
    subscription = await broker.subscribe(CHANNEL)
    position = await broker.append(CHANNEL, payload)
    assert await subscription.get_message(timeout=LONG) == positioned(position, payload)
    await subscription.close()


async def test_a_name_may_be_longer_than_names_of_postgresql(broker: PostgresBroker) -> None:
    names = ["\u96ea" * 5000 + end for end in ("", "\0", "\0a")]
    subscriptions = [await broker.subscribe(name) for name in names]
    for name, subscription in zip(names, subscriptions, strict=True):
        position = await broker.append(name, name.encode(), idempotency_key=name)
        assert await subscription.get_message(timeout=LONG) == positioned(position, name.encode())
        assert (await broker.read(name, 0, 9)).records == (Record(1, name.encode()),)
        await subscription.close()


async def test_however_many_channels_take_one_connection(
    server: PostgresProcess, broker: PostgresBroker
) -> None:
    subscriptions = [await broker.subscribe(f"channel {number}") for number in range(50)]
    for number, subscription in enumerate(subscriptions):
        position = await broker.append(f"channel {number}", b"%d" % number)
        assert await subscription.get_message(timeout=LONG) == positioned(position, b"%d" % number)
    connected = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'"
    assert await ask(server, f"{connected} AND pid <> pg_backend_pid()") == [(1,)]
    for subscription in subscriptions:
        await subscription.close()


async def test_events_of_a_publisher_without_a_loop_reach_a_stream(
    server: PostgresProcess, broker: PostgresBroker
) -> None:
    async with client_of(broker) as (_, client), client.open("/") as stream:
        await stream.next_event(LONG, name="livepush.open")
        with Publisher(lambda: aclosing(PostgresBroker(server.dsn))) as publisher:
            id = await asyncio.to_thread(publisher.publish, CHANNEL, "from a thread", event="note")
        event = await stream.next_event(LONG)
        assert (event.event, event.data, event.last_event_id) == ("note", "from a thread", id)


async def test_a_client_that_comes_back_gets_what_it_missed(broker: PostgresBroker) -> None:
    async with client_of(broker) as (push, client):
        async with client.open("/") as stream:
            await stream.next_event(LONG, name="livepush.open")
            await publish(push, range(5))
            assert await told(stream, 4) == words(range(5))
        await publish(push, range(5, 300))
        async with client.open("/", last_event_id=stream.last_event_id) as back:
            await publish(push, range(300, 310))
            assert await told(back, 309) == ["resumed", *words(range(5, 310))]


async def test_a_client_is_told_of_what_is_not_kept(server: PostgresProcess) -> None:
    async with (
        aclosing(PostgresBroker(server.dsn, events=3)) as broker,
        client_of(broker) as (push, client),
    ):
        async with client.open("/") as stream:
            await stream.next_event(LONG, name="livepush.open")
            await publish(push, range(2))
            assert await told(stream, 1) == words(range(2))
        await publish(push, range(2, 10))
        async with client.open("/", last_event_id=stream.last_event_id) as back:
            assert await told(back, 9) == ["open", "expired", *words(range(7, 10))]


@pytest.mark.parametrize("fault", ["killed", "cut"])
async def test_a_stream_goes_on_and_nothing_is_lost(
    server: PostgresProcess, broker: PostgresBroker, fault: str
) -> None:
    async with client_of(broker) as (push, client), client.open("/") as stream:
        await stream.next_event(LONG, name="livepush.open")
        for number in range(0, 40, 10):
            await publish(push, range(number, number + 5))
            if fault == "killed":
                await asyncio.to_thread(server.kill)
                await asyncio.to_thread(server.start)
            else:
                await ask(server, CUT)
            await publish(push, range(number + 5, number + 10))
        assert await told(stream, 39) == words(range(40))


CUT = """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"""


async def test_a_server_that_answers_nothing_is_away_and_its_events_are_not_lost(
    server: PostgresProcess,
) -> None:
    async with (
        aclosing(PostgresBroker(server.dsn, timeout=0.5)) as broker,
        client_of(broker) as (push, client),
        client.open("/") as stream,
    ):
        await stream.next_event(LONG, name="livepush.open")
        await publish(push, range(5))
        server.pause()
        with pytest.raises(BrokerUnavailableError, match="TimeoutError"):
            await push.publish(CHANNEL, 5, idempotency_key="event 5")
        server.resume()
        await publish(push, range(5, 10))
        assert await told(stream, 9) == words(range(10))


async def test_clients_that_come_and_go_while_the_server_is_killed_get_each_event_once(
    server: PostgresProcess, broker: PostgresBroker
) -> None:
    events = 150
    seen: dict[int, list[str]] = {seed: [] for seed in range(8)}
    began = [anyio.Event() for _ in seen]

    async def read(client: Client, seed: int) -> None:
        chance, last_id = random.Random(seed), ""
        while str(events - 1) not in seen[seed]:
            async with client.open("/", last_event_id=last_id or None) as stream:
                for _ in range(chance.randint(1, 40)):
                    event = await stream.next_event(LONG, control=True)
                    last_id = event.last_event_id or last_id
                    began[seed].set()
                    if event.event != "livepush.open":
                        seen[seed].append(word_of(event))
                    if event.data == str(events - 1):
                        break

    def all_have(event: str) -> bool:
        return all(event in events for events in seen.values())

    async with client_of(broker) as (push, client), anyio.create_task_group() as tasks:
        for seed in seen:
            tasks.start_soon(read, client, seed)
        for event in began:
            await event.wait()
        tasks.start_soon(publish, push, range(events))
        for progress in ("30", "90"):
            await until(partial(all_have, progress), within=LONG)
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
    assert seen == {seed: words(range(events)) for seed in seen}


@pytest.mark.parametrize("loss", ["server", "log"])
async def test_a_stream_is_told_that_the_log_is_lost(
    server: PostgresProcess, broker: PostgresBroker, loss: str
) -> None:
    async with client_of(broker) as (push, client), client.open("/") as stream:
        await stream.next_event(LONG, name="livepush.open")
        await publish(push, range(5))
        assert await told(stream, 4) == words(range(5))
        if loss == "server":
            await asyncio.to_thread(server.stop)
            await asyncio.to_thread(server.lose_data)
            await asyncio.to_thread(server.start)
        else:
            await ask(server, "TRUNCATE livepush_logs, livepush_events")
        await publish(push, range(5, 10))
        assert await told(stream, 9) == ["epoch", *words(range(5, 10))]


async def test_without_a_server_everything_raises_and_then_works(
    server: PostgresProcess, broker: PostgresBroker
) -> None:
    subscription = await broker.subscribe(CHANNEL)
    first = await broker.append(CHANNEL, b"1")
    await asyncio.to_thread(server.kill)
    with pytest.raises(BrokerUnavailableError):
        await subscription.get_message(timeout=LONG)
    await subscription.close()
    with pytest.raises(BrokerUnavailableError, match="PostgreSQL cannot be asked: ConnectionRefusedError"):
        await broker.append(CHANNEL, b"nowhere")
    with pytest.raises(BrokerUnavailableError):
        await broker.read(CHANNEL, 0, 10)
    with pytest.raises(BrokerUnavailableError):
        await broker.subscribe(CHANNEL)
    await asyncio.to_thread(server.start)
    again = await broker.subscribe(CHANNEL)
    second = await broker.append(CHANNEL, b"2")
    assert (second.epoch, second.offset) == (first.epoch, 2)
    assert await again.get_message(timeout=LONG) == positioned(second, b"2")
    await again.close()
