"""PostgresBroker on a real server: its bounds, its schema, its connections, and streams over it."""

import asyncio
import json
import os
import pwd
import random
import shutil
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
import asyncpg
import pytest

from livepush_asgi import (
    BrokerTimeouts,
    BrokerUnavailableError,
    History,
    LivePush,
    MessagesLostError,
    Position,
    PostgresBroker,
    Publisher,
    Timing,
    public,
)
from livepush_asgi.brokers import HistoryBroker, Record
from livepush_asgi.brokers.postgres.schema import Row, page_of
from livepush_asgi.testing import Client, ParsedEvent, Stream
from livepush_asgi.wire.event import positioned

from .postgres_server import USER, PostgresProcess
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
    await ask(running_server, "DROP TABLE IF EXISTS livepush_channel, livepush_event, livepush_key")
    return running_server


@pytest.fixture
async def broker(server: PostgresProcess) -> AsyncIterator[PostgresBroker]:
    async with PostgresBroker(server.dsn) as broker:
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
    listening = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'livepush_asgi'"
    assert await ask(server, listening) == [(2,)]
    for subscription in subscriptions:
        await subscription.close()


async def test_events_of_a_publisher_without_a_loop_reach_a_stream(
    server: PostgresProcess, broker: PostgresBroker
) -> None:
    async with client_of(broker) as (_, client), client.open("/") as stream:
        await stream.next_event(LONG, name="livepush.open")
        with Publisher(lambda: PostgresBroker(server.dsn)) as publisher:
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
        PostgresBroker(server.dsn, history=History(events=3)) as broker,
        client_of(broker) as (push, client),
    ):
        async with client.open("/") as stream:
            await stream.next_event(LONG, name="livepush.open")
            await publish(push, range(2))
            assert await told(stream, 1) == words(range(2))
        await publish(push, range(2, 10))
        async with client.open("/", last_event_id=stream.last_event_id) as back:
            assert await told(back, 9) == ["open", "expired", *words(range(7, 10))]


@pytest.mark.parametrize("fault", [pytest.param("killed", marks=pytest.mark.slow), "cut"])
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
        PostgresBroker(server.dsn, timeouts=BrokerTimeouts(publish=0.5)) as broker,
        client_of(broker) as (push, client),
        client.open("/") as stream,
    ):
        await stream.next_event(LONG, name="livepush.open")
        await publish(push, range(5))
        server.pause()
        with pytest.raises(BrokerUnavailableError, match=r"no answer within 0\.5 s"):
            await push.publish(CHANNEL, 5, idempotency_key="event 5")
        server.resume()
        await publish(push, range(5, 10))
        assert await told(stream, 9) == words(range(10))


@pytest.mark.slow
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


@pytest.mark.parametrize("loss", [pytest.param("server", marks=pytest.mark.slow), "log"])
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
            await ask(server, "TRUNCATE livepush_channel, livepush_event, livepush_key")
        await publish(push, range(5, 10))
        assert await told(stream, 9) == ["epoch", *words(range(5, 10))]


async def test_without_a_server_everything_raises_and_then_works(
    server: PostgresProcess, broker: PostgresBroker
) -> None:
    hasty = PostgresBroker(server.dsn, timeouts=BrokerTimeouts(subscribe=0.1))
    subscription = await broker.subscribe(CHANNEL)
    first = await broker.append(CHANNEL, b"1")
    assert await subscription.get_message(timeout=LONG) == positioned(first, b"1")
    await asyncio.to_thread(server.kill)
    with pytest.raises(
        BrokerUnavailableError, match=rf"PostgreSQL at 127\.0\.0\.1:{server.port}: .*is it running"
    ):
        await broker.append(CHANNEL, b"nowhere")
    with pytest.raises(BrokerUnavailableError):
        await broker.read(CHANNEL, 0, 10)
    with pytest.raises(BrokerUnavailableError, match="is it running"):
        await hasty.subscribe(CHANNEL)
    await asyncio.to_thread(server.start)
    await until(lambda: broker.healthy, within=LONG)
    with pytest.raises(MessagesLostError):
        await subscription.get_message(timeout=LONG)
    second = await broker.append(CHANNEL, b"2")
    assert await subscription.get_message(timeout=LONG) == positioned(second, b"2")
    await subscription.close()
    # The server cannot know whether it has lost the end of the log, so that goes on under another epoch.
    assert second.offset == 2
    page = await broker.read(CHANNEL, 0, 9)
    assert (page.epoch, page.locate(first)) == (second.epoch, second.at(1))
    assert page.locate(first.at(2)) is None


async def test_the_bounds_of_a_log_hold_in_bytes_and_age(server: PostgresProcess) -> None:
    bounds = History(events=1000, size=100, age=0.5)
    async with PostgresBroker(server.dsn, history=bounds) as broker:
        for number in range(40):
            last = await broker.append(CHANNEL, b"%025d" % number)
        page = await broker.read(CHANNEL, 0, 100)
        assert [record.offset for record in page.records] == [37, 38, 39, 40]
        assert (page.first, page.last) == (37, 40)
        # One that is larger than everything may be is kept all the same.
        await broker.append(CHANNEL, bytes(1000))
        assert (await broker.read(CHANNEL, 0, 100)).records == (Record(41, bytes(1000)),)
        async with asyncio.timeout(LONG):
            while (page := await broker.read(CHANNEL, 0, 100)).records:
                assert page.first == 41
        assert (page.epoch, page.first, page.last) == (last.epoch, 42, 41)


async def test_old_rows_go_without_a_job(server: PostgresProcess) -> None:
    timeouts = BrokerTimeouts(ping_interval=0.1)
    bounds = History(age=0.2)
    async with PostgresBroker(server.dsn, history=bounds) as quiet:
        for number in range(30):
            await quiet.append(f"quiet {number}", b"x", idempotency_key="key")
    await ask(server, "UPDATE livepush_key SET at = at - interval '1 hour'")
    await asyncio.sleep(0.2)  # The age.
    async with PostgresBroker(server.dsn, history=bounds, timeouts=timeouts) as broker:
        subscription = await broker.subscribe(CHANNEL)
        left = "SELECT count(*) FROM livepush_event", "SELECT count(*) FROM livepush_key"
        async with asyncio.timeout(LONG):
            while [await ask(server, query) for query in left] != [[(0,)], [(0,)]]:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        await subscription.close()


async def test_a_log_is_forgotten_in_time_and_goes_on_under_another_epoch(
    server: PostgresProcess, broker: PostgresBroker
) -> None:
    """The clock of the database cannot be set, so its times are."""
    later = (
        "UPDATE livepush_channel SET used = used - interval '11 minutes', seen = seen - interval '11 minutes'"
    )
    clean = "SELECT livepush_clean(1, 300)"
    first = await broker.append(CHANNEL, b"forgotten")
    empty = await broker.read("never used", 0, 9)
    for _ in range(2):
        await ask(server, later)
        await ask(server, clean)
        # Processes that listen follow, one seed at a time.
        page = await broker.read("never used", 0, 9)
        assert page.locate(Position(empty.epoch, 0)) == Position(page.epoch, 0)
        assert page.epoch != empty.epoch
        empty = page
    assert await ask(server, "SELECT key FROM livepush_channel WHERE channel = 'news'") == []
    page = await broker.read(CHANNEL, 0, 9)
    assert page.locate(first) is None
    again = await broker.append(CHANNEL, b"again")
    assert (again.offset, again.epoch != first.epoch) == (1, True)
    assert (await broker.read(CHANNEL, 0, 9)).locate(first) is None


async def test_a_log_to_which_a_process_listens_is_not_forgotten(server: PostgresProcess) -> None:
    later = (
        "UPDATE livepush_channel SET used = used - interval '11 minutes', seen = seen - interval '11 minutes'"
    )
    timeouts = BrokerTimeouts(ping_interval=0.1)
    async with PostgresBroker(server.dsn, history=History(age=1.0)) as first:
        position = await first.append(CHANNEL, b"kept")
    await ask(server, later)
    async with PostgresBroker(server.dsn, history=History(age=1.0), timeouts=timeouts) as broker:
        subscription = await broker.subscribe(CHANNEL)
        seen = "SELECT seen > now() - interval '1 minute' FROM livepush_channel WHERE channel = 'news'"
        async with asyncio.timeout(LONG):
            while await ask(server, seen) != [(True,)]:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        await ask(server, "UPDATE livepush_channel SET seed = 'long ago' WHERE channel = 'news'")
        await ask(server, "SELECT livepush_clean(1, 300)")
        page = await broker.read(CHANNEL, 0, 9)
        assert (page.epoch, page.first, page.last) == (position.epoch, 2, 1)
        await subscription.close()


async def test_an_event_whose_notification_is_lost_is_found(server: PostgresProcess) -> None:
    async with PostgresBroker(server.dsn, timeouts=BrokerTimeouts(ping_interval=0.2)) as broker:
        subscription = await broker.subscribe(CHANNEL)
        first = await broker.append(CHANNEL, b"1")
        assert await subscription.get_message(timeout=LONG) == positioned(first, b"1")
        await ask(
            server,
            """INSERT INTO livepush_event SELECT id, 2, now(), bytes, 'quiet' FROM livepush_channel
            WHERE channel = 'news'""",
        )
        await ask(server, "UPDATE livepush_channel SET last = 2, bytes = bytes + 5 WHERE channel = 'news'")
        assert await subscription.get_message(timeout=LONG) == positioned(first.at(2), b"quiet")
        await subscription.close()


class Pooler:
    """What a pooler in transaction mode does to LISTEN, as PgBouncer does: no notification passes it.

    The process id in the greeting is the pooler's own.
    """

    def __init__(self, server: PostgresProcess) -> None:
        self._server = server

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        below, above = await asyncio.open_connection("127.0.0.1", self._server.port)
        upwards = asyncio.create_task(self._pass(reader, above))
        try:
            while True:
                kind, size = struct.unpack("!cI", await below.readexactly(5))
                rest = await below.readexactly(size - 4)
                if kind == b"K":
                    rest = struct.pack("!I", 1) + rest[4:]
                if kind != b"A":
                    writer.write(kind + struct.pack("!I", size) + rest)
        except (asyncio.IncompleteReadError, OSError):
            upwards.cancel()
            for each in (writer, above):
                each.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()


async def test_behind_a_pooler_that_passes_no_notification_events_come_late_and_a_line_says_why(
    server: PostgresProcess, caplog: pytest.LogCaptureFixture
) -> None:
    async with await asyncio.start_server(Pooler(server).serve, "127.0.0.1", 0) as pooler:
        port = pooler.sockets[0].getsockname()[1]
        dsn = server.dsn.replace(str(server.port), str(port))
        timeouts = BrokerTimeouts(ping_interval=0.2)
        async with PostgresBroker(dsn, timeouts=timeouts) as broker, PostgresBroker(server.dsn) as direct:
            subscription = await broker.subscribe(CHANNEL)
            for number in range(3):
                position = await direct.append(CHANNEL, b"%d" % number)
                assert await subscription.get_message(timeout=LONG) == positioned(position, b"%d" % number)
            await subscription.close()
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert "there is a pooler in front of it" in line
    assert "give PostgresBroker the server's own address" in line


@pytest.mark.slow
async def test_a_restored_backup_is_told(server: PostgresProcess, broker: PostgresBroker) -> None:
    """The end of the log is gone, and its numbers are given again."""
    async with client_of(broker) as (push, client), client.open("/") as stream:
        await stream.next_event(LONG, name="livepush.open")
        await publish(push, range(3))
        assert await told(stream, 2) == words(range(3))
        await asyncio.to_thread(server.stop)
        shutil.copytree(server.data, server.directory / "backup")
        await asyncio.to_thread(server.start)
        await publish(push, range(3, 6))
        assert await told(stream, 5) == words(range(3, 6))
        await asyncio.to_thread(server.stop)
        shutil.rmtree(server.data)
        (server.directory / "backup").rename(server.data)
        if os.geteuid() == 0:
            give_to(server.data, pwd.getpwnam(USER))
        await asyncio.to_thread(server.start)
        await publish(push, range(13, 20))
        # After the gap comes what is left of the log.
        assert await told(stream, 19) == ["epoch", *words(range(3)), *words(range(13, 20))]


@pytest.mark.slow
async def test_a_restored_dump_is_told_to_every_client(
    server: PostgresProcess, broker: PostgresBroker
) -> None:
    """What the dump lacks may have been for a client that has seen all that it has."""
    async with client_of(broker) as (push, client), client.open("/") as stream:
        await stream.next_event(LONG, name="livepush.open")
        await publish(push, range(3))
        assert await told(stream, 2) == words(range(3))
        third = stream.last_event_id
        dump = await asyncio.to_thread(server.run, "pg_dump", "--clean", "--if-exists", server.dsn)
        await publish(push, range(3, 6))
        assert await told(stream, 5) == words(range(3, 6))
        await asyncio.to_thread(server.run, "psql", "--quiet", server.dsn, input=dump)
        await publish(push, range(13, 20))
        assert await told(stream, 19) == ["epoch", *words(range(13, 20))]
        async with client.open("/", last_event_id=third) as back:
            assert await told(back, 19) == ["open", "epoch", *words(range(13, 20))]


def test_a_position_in_an_empty_log_is_before_each_doubtful_end() -> None:
    """After a start of the server, the first event has another epoch than the client that came before it."""
    page = page_of([Row("standby", 1, 5, "primary.5!", "before.0", None, b"")])
    assert page is not None
    assert page.has(Position("before", 0))
    assert page.locate(Position("before", 0)) is None
    assert page.seen_from(Position("before", 0)).epoch == "primary"


@pytest.mark.slow
async def test_a_standby_that_takes_over_is_told_to_every_client(server: PostgresProcess) -> None:
    """The address names both servers, and the broker takes the one that can write."""
    with PostgresProcess(primary=server) as standby:
        hosts = f"127.0.0.1:{server.port},127.0.0.1:{standby.port}"
        dsn = f"postgresql://postgres@{hosts}/postgres?sslmode=disable&target_session_attrs=read-write"
        async with (
            PostgresBroker(dsn) as broker,
            client_of(broker) as (push, client),
            client.open("/") as stream,
        ):
            await stream.next_event(LONG, name="livepush.open")
            await publish(push, range(3))
            assert await told(stream, 2) == words(range(3))
            (end,) = await ask(server, "SELECT pg_current_wal_lsn()::text")
            arrived = f"SELECT pg_last_wal_replay_lsn() >= '{end[0]}'"
            async with asyncio.timeout(LONG):
                while await ask(standby, arrived) != [(True,)]:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            await asyncio.to_thread(server.kill)
            await ask(standby, "SELECT pg_promote()")
            # Told at once, and once.
            assert word_of(await stream.next_event(LONG, control=True)) == "epoch"
            await publish(push, range(3, 9))
            assert await told(stream, 8) == words(range(3, 9))


def give_to(path: Path, user: pwd.struct_passwd) -> None:
    for each in [path, *path.rglob("*")]:
        os.chown(each, user.pw_uid, user.pw_gid)


async def test_two_prefixes_share_a_database_and_no_channel(server: PostgresProcess) -> None:
    await ask(server, 'CREATE SCHEMA IF NOT EXISTS "user"')
    async with PostgresBroker(server.dsn, prefix="user.Order") as one, PostgresBroker(server.dsn) as other:
        mine, others = await one.subscribe(CHANNEL), await other.subscribe(CHANNEL)
        await one.append(CHANNEL, b"mine")
        await other.append(CHANNEL, b"other")
        assert str(await mine.get_message(timeout=LONG)).endswith("mine'")
        assert str(await others.get_message(timeout=LONG)).endswith("other'")
        for subscription in (mine, others):
            await subscription.close()
    await ask(server, 'DROP SCHEMA "user" CASCADE')


async def test_the_tables_come_into_being_once_however_many_begin(server: PostgresProcess) -> None:
    brokers = [PostgresBroker(server.dsn) for _ in range(8)]
    positions = await asyncio.gather(*(broker.append(CHANNEL, b"x") for broker in brokers))
    assert sorted(position.offset for position in positions) == list(range(1, 9))
    await asyncio.gather(*(broker.aclose() for broker in brokers))


async def test_tables_that_go_while_it_runs_come_back(
    server: PostgresProcess, broker: PostgresBroker
) -> None:
    await broker.append(CHANNEL, b"x")
    await ask(server, "DROP TABLE livepush_channel, livepush_event, livepush_key")
    async with asyncio.timeout(LONG):
        while True:
            try:
                position = await broker.append(CHANNEL, b"y")
                break
            except BrokerUnavailableError:
                continue
    assert position.offset == 1


async def test_a_user_who_may_not_create_tables_is_told_what_to_do(server: PostgresProcess) -> None:
    await ask(server, "DROP FUNCTION IF EXISTS livepush_append")
    await ask(server, "CREATE USER clerk")
    dsn = server.dsn.replace("postgres@", "clerk@")
    async with PostgresBroker(dsn) as broker:
        with pytest.raises(
            BrokerUnavailableError, match=r"the tables are absent or old, and .*PostgresBroker\.schema\(\)"
        ):
            await broker.append(CHANNEL, b"x")
        connection = await asyncpg.connect(server.dsn)
        await connection.execute(PostgresBroker.schema())
        await connection.close()
        with pytest.raises(BrokerUnavailableError, match=r"permission denied for table .*; GRANT USAGE ON"):
            await broker.append(CHANNEL, b"x")
        for table in ("channel", "event", "key"):
            await ask(server, f"GRANT SELECT, INSERT, UPDATE, DELETE ON livepush_{table} TO clerk")
        assert (await broker.append(CHANNEL, b"x")).offset == 1
    await ask(server, "DROP OWNED BY clerk")
    await ask(server, "DROP USER clerk")


async def test_the_sql_for_migrations_may_be_run_again(server: PostgresProcess) -> None:
    connection = await asyncpg.connect(server.dsn)
    for _ in range(2):
        await connection.execute(PostgresBroker.schema("public.livepush"))
    await connection.close()
    async with PostgresBroker(server.dsn) as broker:
        assert (await broker.append(CHANNEL, b"x")).offset == 1


@pytest.mark.parametrize("prefix", ["", "a b", "x" * 21, "a.b.c", 'a"', 7, "1st"])
async def test_a_prefix_that_names_no_table_is_refused(prefix: str) -> None:
    with pytest.raises(ValueError, match="prefix is a name"):
        PostgresBroker(prefix=prefix)


async def test_what_is_no_dsn_is_refused_with_the_fix() -> None:
    with pytest.raises(
        ValueError, match=r"begins with 'postgresql://', and this one with 'postgresql\+asyncpg'"
    ):
        PostgresBroker("postgresql+asyncpg://host/name")
    with pytest.raises(TypeError, match="dsn is a text"):
        PostgresBroker(asyncpg)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_connections"):
        PostgresBroker(max_connections=1)


async def test_an_error_names_no_password(server: PostgresProcess) -> None:
    dsn = f"postgresql://someone:secret@127.0.0.1:{server.port}/nowhere?sslmode=disable"
    async with PostgresBroker(dsn) as broker:
        with pytest.raises(BrokerUnavailableError, match="PostgreSQL at 127") as caught:
            await broker.append(CHANNEL, b"x")
    assert "secret" not in str(caught.value)


async def test_connections_are_closed_when_nothing_uses_them(server: PostgresProcess) -> None:
    broker = PostgresBroker(server.dsn, linger=0.1)
    subscription = await broker.subscribe(CHANNEL)
    await broker.append(CHANNEL, b"x")
    await subscription.close()
    connected = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'livepush_asgi'"
    async with asyncio.timeout(LONG):
        while await ask(server, connected) != [(0,)]:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert (await broker.append(CHANNEL, b"y")).offset == 2
    await broker.aclose()


def test_one_broker_serves_one_event_loop_after_another(running_server: PostgresProcess) -> None:
    broker = PostgresBroker(running_server.dsn)

    async def use() -> int:
        subscription = await broker.subscribe("loops")
        position = await broker.append("loops", b"x")
        assert await subscription.get_message(timeout=LONG) == positioned(position, b"x")
        # Neither closed nor left: the loop ends.
        return position.offset

    assert [asyncio.run(use()) for _ in range(3)] == [1, 2, 3]


async def test_a_disconnect_ends_the_streams_of_another_process(server: PostgresProcess) -> None:
    async with (
        PostgresBroker(server.dsn) as one,
        PostgresBroker(server.dsn) as other,
        client_of(one) as (_, client),
        client_of(other) as (push, _),
        client.open("/") as stream,
    ):
        await stream.next_event(LONG, name="livepush.open")
        done = await push.disconnect(channel=CHANNEL)
        assert done.processes == 2
        closed = await stream.next_event(LONG, name="livepush.close")
        assert json.loads(closed.data)["reason"] == "revoked"
