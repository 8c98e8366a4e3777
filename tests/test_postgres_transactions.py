"""Events in transactions of the application: they exist if and only if the transaction commits."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import asyncpg
import psycopg
import pytest
from psycopg.rows import dict_row

from livepush_asgi import (
    BrokerTimeouts,
    BrokerUnavailableError,
    Grant,
    LivePush,
    MemoryBroker,
    PositionConflictError,
    PostgresBroker,
    StreamRequest,
    Timing,
)
from livepush_asgi.brokers import Record
from livepush_asgi.testing import Client
from livepush_asgi.wire.cursor import Position
from livepush_asgi.wire.event import plain_payload, split_position

from .postgres_server import PostgresProcess

LONG = 20.0

pytestmark = pytest.mark.real_time


@pytest.fixture(scope="module")
def server(postgres_server: PostgresProcess) -> PostgresProcess:
    with psycopg.connect(postgres_server.dsn, autocommit=True) as admin:
        admin.execute(PostgresBroker.schema().encode())
        admin.execute("CREATE TABLE IF NOT EXISTS orders (number int)")
    return postgres_server


@pytest.fixture
async def broker(server: PostgresProcess) -> AsyncIterator[PostgresBroker]:
    with psycopg.connect(server.dsn, autocommit=True) as admin:
        admin.execute("TRUNCATE livepush_channel, livepush_event, livepush_key, orders")
        admin.execute("SELECT livepush_begin()")
    async with PostgresBroker(server.dsn, timeouts=BrokerTimeouts(publish=1.0)) as broker:
        yield broker


@pytest.fixture
def push(broker: PostgresBroker) -> LivePush:
    return LivePush(broker, by_query, timing=Timing(linger=0))


def by_query(request: StreamRequest) -> Grant:
    return Grant(channels=request.query_all("channel"))


class RollBackError(Exception):
    """Raised in a transaction that must not commit."""


#: Publishes in a transaction of its own, with a row of the application, and raises what it is given.
Transaction = Callable[[PostgresProcess, LivePush, Exception | None], Awaitable[str]]


async def by_asyncpg(server: PostgresProcess, push: LivePush, error: Exception | None) -> str:
    connection = await asyncpg.connect(server.dsn)
    try:
        async with connection.transaction():
            await connection.execute("INSERT INTO orders VALUES (1)")
            id = await push.publish_in(connection, "orders", {"number": 1}, event="order")
            if error:
                raise error
        return id
    finally:
        await connection.close()


async def by_asyncpg_pool(server: PostgresProcess, push: LivePush, error: Exception | None) -> str:
    async with asyncpg.create_pool(server.dsn, min_size=1) as pool, pool.acquire() as connection:
        async with connection.transaction():
            await connection.execute("INSERT INTO orders VALUES (1)")
            id = await push.publish_in(connection, "orders", {"number": 1}, event="order")
            if error:
                raise error
        return id


async def by_psycopg_async(server: PostgresProcess, push: LivePush, error: Exception | None) -> str:
    async with await psycopg.AsyncConnection.connect(server.dsn) as connection:
        await connection.execute("INSERT INTO orders VALUES (1)")
        id = await push.publish_in(connection, "orders", {"number": 1}, event="order")
        if error:
            raise error
    return id


async def by_psycopg_async_cursor(server: PostgresProcess, push: LivePush, error: Exception | None) -> str:
    async with (
        await psycopg.AsyncConnection.connect(server.dsn, autocommit=True) as connection,
        connection.transaction(),
        connection.cursor(row_factory=dict_row) as cursor,
    ):
        await cursor.execute("INSERT INTO orders VALUES (1)")
        id = await push.publish_in(cursor, "orders", {"number": 1}, event="order")
        if error:
            raise error
    return id


def with_psycopg(
    server: PostgresProcess,
    push: LivePush,
    error: Exception | None,
    *,
    rows: Any = None,
    by_cursor: bool = False,
) -> str:
    options = {} if rows is None else {"row_factory": rows}
    with psycopg.connect(server.dsn, **options) as connection:
        connection.execute("INSERT INTO orders VALUES (1)")
        taken = connection.cursor() if by_cursor else connection
        id = push.publish_in(taken, "orders", {"number": 1}, event="order")
        if error:
            raise error
    return id


async def by_psycopg(server: PostgresProcess, push: LivePush, error: Exception | None) -> str:
    return await asyncio.to_thread(with_psycopg, server, push, error)


async def by_psycopg_cursor(server: PostgresProcess, push: LivePush, error: Exception | None) -> str:
    return await asyncio.to_thread(with_psycopg, server, push, error, by_cursor=True)


async def by_psycopg_dicts(server: PostgresProcess, push: LivePush, error: Exception | None) -> str:
    return await asyncio.to_thread(with_psycopg, server, push, error, rows=dict_row)


WAYS = [
    by_asyncpg,
    by_asyncpg_pool,
    by_psycopg,
    by_psycopg_cursor,
    by_psycopg_dicts,
    by_psycopg_async,
    by_psycopg_async_cursor,
]


async def count(server: PostgresProcess, table: str) -> int:
    connection = await asyncpg.connect(server.dsn)
    try:
        return int(await connection.fetchval(f"SELECT count(*) FROM {table}"))
    finally:
        await connection.close()


@pytest.mark.parametrize("publish", WAYS)
async def test_an_event_exists_if_the_transaction_commits(
    publish: Transaction, server: PostgresProcess, broker: PostgresBroker, push: LivePush
) -> None:
    async with push.lifespan(), Client(push) as client, client.open("/?channel=orders") as stream:
        await stream.next_event(LONG, name="livepush.open")
        id = await publish(server, push, None)
        event = await stream.next_event(LONG)
        assert (event.event, event.data, event.last_event_id) == ("order", '{"number":1}', id)
    assert await count(server, "orders") == 1


@pytest.mark.parametrize("publish", WAYS)
async def test_a_transaction_that_rolls_back_publishes_nothing(
    publish: Transaction, server: PostgresProcess, broker: PostgresBroker, push: LivePush
) -> None:
    async with push.lifespan(), Client(push) as client, client.open("/?channel=orders") as stream:
        await stream.next_event(LONG, name="livepush.open")
        with pytest.raises(RollBackError):
            await publish(server, push, RollBackError())
        id = await push.publish("orders", "after")
        event = await stream.next_event(LONG, control=True)
        # It has the number that the other one would have had: there is no hole, and no gap.
        assert (event.data, event.last_event_id) == ("after", id)
        assert Position.of_id(event.last_event_id).offset == 1
    assert await count(server, "orders") == 0
    assert (await broker.read("orders", 0, 9)).records == (Record(1, plain_payload("after")),)


async def test_what_a_savepoint_takes_back_is_not_published(
    server: PostgresProcess, broker: PostgresBroker, push: LivePush
) -> None:
    connection = await asyncpg.connect(server.dsn)
    async with connection.transaction():
        await push.publish_in(connection, "orders", "kept")
        inner = connection.transaction()
        await inner.start()
        await push.publish_in(connection, "orders", "taken back")
        await inner.rollback()
        await push.publish_in(connection, "orders", "kept too")
    await connection.close()
    kept = (Record(1, plain_payload("kept")), Record(2, plain_payload("kept too")))
    assert (await broker.read("orders", 0, 9)).records == kept


@asynccontextmanager
async def transactions(server: PostgresProcess, number: int) -> AsyncIterator[list[Any]]:
    """Connections, each with an open transaction; each is committed by the test, or rolled back."""
    connections = [await asyncpg.connect(server.dsn) for _ in range(number)]
    for connection in connections:
        # A transaction that began earlier has the lower number in PostgreSQL.
        await connection.execute("BEGIN; INSERT INTO orders VALUES (1)")
    try:
        yield connections
    finally:
        for connection in connections:
            await connection.close()


async def test_two_that_commit_in_the_other_order_lose_nothing(
    server: PostgresProcess, broker: PostgresBroker, push: LivePush
) -> None:
    """On two channels the order of commits is free; a stream on both gets both, from the log too."""
    async with (
        push.lifespan(),
        Client(push) as client,
        client.open("/?channel=a&channel=b") as stream,
        transactions(server, 2) as (first, second),
    ):
        await stream.next_event(LONG, name="livepush.open")
        await push.publish_in(first, "a", "first")
        await push.publish_in(second, "b", "second")
        await second.execute("COMMIT")
        event = await stream.next_event(LONG, control=True)
        assert event.data == "second"
        await first.execute("COMMIT")
        assert (await stream.next_event(LONG, control=True)).data == "first"
        # One that comes back with the id of the moment between the two commits gets the first as well.
        async with client.open("/?channel=a&channel=b", last_event_id=event.last_event_id) as back:
            await back.next_event(LONG, name="livepush.open")
            assert (await back.next_event(LONG, control=True)).data == "first"


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
async def test_a_channel_has_the_order_of_the_commits(
    end: str, server: PostgresProcess, broker: PostgresBroker, push: LivePush
) -> None:
    """The one that began last publishes first; the other waits for its row, and comes behind it."""
    async with (
        push.lifespan(),
        Client(push) as client,
        client.open("/?channel=a") as stream,
        transactions(server, 2) as (early, late),
    ):
        await stream.next_event(LONG, name="livepush.open")
        await push.publish_in(late, "a", "late")
        waiting = asyncio.ensure_future(push.publish_in(early, "a", "early"))
        alone = asyncio.ensure_future(push.publish("a", "alone", retry_for=LONG))
        while not await is_waiting(server, 2):
            pass
        assert (await broker.read("a", 0, 9)).records == ()
        await late.execute(end)
        await waiting
        await early.execute("COMMIT")
        await alone
        wanted = ["late", "early", "alone"][end == "ROLLBACK" :]
        found = [await stream.next_event(LONG, control=True) for _ in wanted]
        # Who of the two that waited is first is the server's decision.
        assert sorted(event.data for event in found) == sorted(wanted)
        if end == "COMMIT":
            assert found[0].data == "late"
        offsets = [Position.of_id(event.last_event_id).offset for event in found]
        assert offsets == list(range(1, len(wanted) + 1))


async def is_waiting(server: PostgresProcess, number: int) -> bool:
    """Return whether this many connections wait for a lock of another."""
    connection = await asyncpg.connect(server.dsn)
    try:
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE cardinality(pg_blocking_pids(pid)) > 0"
        return int(await connection.fetchval(waiting)) == number
    finally:
        await connection.close()


async def test_a_reader_waits_for_no_transaction_that_is_open(
    server: PostgresProcess, broker: PostgresBroker, push: LivePush
) -> None:
    """Neither where the channel is new, nor where it has a log; and what is committed then comes at once."""
    await push.publish("old", "before")
    async with transactions(server, 1) as (writer,):
        for channel in ("new", "old"):
            await push.publish_in(writer, channel, "open")
        async with asyncio.timeout(1):
            pages = {channel: await broker.read(channel, 0, 9) for channel in ("new", "old")}
            subscriptions = {channel: await broker.subscribe(channel) for channel in pages}
        assert [page.last for page in pages.values()] == [0, 1]
        await writer.execute("COMMIT")
        for channel, subscription in subscriptions.items():
            payload = await subscription.get_message(timeout=LONG)
            assert payload is not None
            position, proper = split_position(payload)
            # The log that was read before it was there has the epoch that its first event has.
            assert (position, proper) == (
                Position(pages[channel].epoch, pages[channel].last + 1),
                plain_payload("open"),
            )
            await subscription.close()


async def test_a_publisher_does_not_wait_for_ever_and_holds_nobody_else_up(
    server: PostgresProcess, broker: PostgresBroker, push: LivePush
) -> None:
    """Far more channels are held than the broker has connections."""
    channels = [f"held {number}" for number in range(8)]
    async with transactions(server, 1) as (writer,):
        for channel in channels:
            await push.publish_in(writer, channel, "open")
        async with asyncio.timeout(LONG):
            held = [asyncio.create_task(push.publish(channel, "waits")) for channel in channels]
            await asyncio.sleep(0.1)
            # Reads have a connection that no append takes.
            assert (await broker.read("held 0", 0, 9)).last == 0
            outcomes = await asyncio.gather(*held, return_exceptions=True)
        assert all(isinstance(outcome, BrokerUnavailableError) for outcome in outcomes)
        assert any(
            "a transaction that has published on this channel is open" in str(each) for each in outcomes
        )
        await writer.execute("COMMIT")
    # What raised for the lock was not published later either.
    for channel in channels:
        await push.publish(channel, "end")
        assert [record.payload for record in (await broker.read(channel, 0, 9)).records] == [
            plain_payload("open"),
            plain_payload("end"),
        ]


HOLDER = """
import sys, psycopg
from livepush_asgi import LivePush, PostgresBroker, public
push = LivePush(PostgresBroker(sys.argv[1]), public("orders"))
with psycopg.connect(sys.argv[1]) as connection:
    push.publish_in(connection, "orders", "never")
    print("held", flush=True)
    sys.stdin.read()
"""


async def test_a_process_that_is_killed_while_it_holds_the_row_publishes_nothing_and_holds_nobody_up(
    server: PostgresProcess, broker: PostgresBroker, push: LivePush
) -> None:
    holder = subprocess.Popen(  # noqa: ASYNC220  (starting it takes no time)
        [sys.executable, "-c", HOLDER, server.dsn], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout is not None
        assert await asyncio.to_thread(holder.stdout.readline) == b"held\n"
        waiting = asyncio.create_task(push.publish("orders", "waits", retry_for=LONG))
        while not await is_waiting(server, 1):
            pass
        holder.kill()
        async with asyncio.timeout(LONG):
            id = await waiting
    assert Position.of_id(id or "").offset == 1
    assert (await broker.read("orders", 0, 9)).records == (Record(1, plain_payload("waits")),)


async def test_without_a_transaction_it_is_refused(server: PostgresProcess, push: LivePush) -> None:
    async with AsyncExitStack() as stack:
        plain = await asyncpg.connect(server.dsn)
        stack.push_async_callback(plain.close)
        with pytest.raises(
            RuntimeError, match=r"none is open: begin one by `async with connection\.transaction"
        ):
            await push.publish_in(plain, "orders", 1)
        asynchronous = await psycopg.AsyncConnection.connect(server.dsn, autocommit=True)
        await stack.enter_async_context(asynchronous)
        with pytest.raises(RuntimeError, match="none is open"):
            await push.publish_in(asynchronous, "orders", 1)
        with psycopg.connect(server.dsn, autocommit=True) as synchronous:
            for taken in (synchronous, synchronous.cursor()):
                with pytest.raises(RuntimeError, match="none is open"):
                    push.publish_in(taken, "orders", 1)
            # A connection that would begin one by itself has to be committed by its owner.
            synchronous.autocommit = False
            push.publish_in(synchronous, "orders", 1)
            synchronous.rollback()


async def test_what_cannot_take_part_is_refused(server: PostgresProcess, push: LivePush) -> None:
    connection: Any = object()
    with pytest.raises(TypeError, match=r"takes a connection of asyncpg.*not object"):
        push.publish_in(connection, "orders", 1)
    memory = LivePush(MemoryBroker(), by_query)
    with pytest.raises(
        TypeError, match="MemoryBroker takes part in no transaction of a database: PostgresBroker"
    ):
        memory.publish_in(connection, "orders", 1)


@pytest.mark.parametrize("namespace", [None, "staging"])
async def test_keys_positions_and_namespaces_are_those_of_publish(
    namespace: str | None, server: PostgresProcess, broker: PostgresBroker
) -> None:
    push = LivePush(broker, by_query, namespace=namespace)
    async with await connected(server) as connection, connection.transaction():
        first = await push.publish_in(connection, "orders", "1", idempotency_key="key")
        second = await push.publish_in(connection, "orders", "2", expected_position=first)
        for wrong in (first, Position("any", 0)):
            with pytest.raises(PositionConflictError, match="the log of 'orders' has gone on"):
                await push.publish_in(connection, "orders", "3", expected_position=wrong)
        assert await push.publish_in(connection, "orders", "own", id="7") == "7"
    assert await push.publish("orders", "1", idempotency_key="key") == first
    with psycopg.connect(server.dsn) as other:
        assert push.publish_in(other, "orders", "1", idempotency_key="key") == first
        with pytest.raises(PositionConflictError, match="the log of 'orders' has gone on"):
            push.publish_in(other, "orders", "3", expected_position=second)
    log = await broker.read("orders" if namespace is None else f"{namespace}:orders", 0, 9)
    assert [record.offset for record in log.records] == [1, 2, 3]


async def connected(server: PostgresProcess) -> AbstractAsyncContextManager[Any]:
    connection = await asyncpg.connect(server.dsn)

    @asynccontextmanager
    async def closing() -> AsyncIterator[Any]:
        try:
            yield connection
        finally:
            await connection.close()

    return closing()


async def test_many_transactions_at_once_leave_no_hole(
    server: PostgresProcess, broker: PostgresBroker, push: LivePush
) -> None:
    """Some roll back, some publish outside; a stream gets what is committed, in the order of the log."""
    done: list[str] = []

    async def act(number: int) -> None:
        async with await connected(server) as connection:
            for turn in range(8):
                data = f"{number} {turn}"
                if (number + turn) % 4 == 3:
                    await push.publish("orders", data, retry_for=LONG)
                    done.append(data)
                    continue
                transaction = connection.transaction()
                await transaction.start()
                await push.publish_in(connection, "orders", data)
                if (number + turn) % 4 == 0:
                    await transaction.rollback()
                else:
                    await transaction.commit()
                    done.append(data)

    async with push.lifespan(), Client(push) as client, client.open("/?channel=orders") as stream:
        await stream.next_event(LONG, name="livepush.open")
        await asyncio.gather(*map(act, range(6)))
        events = [await stream.next_event(LONG, control=True) for _ in done]
    assert sorted(event.data for event in events) == sorted(done)
    assert [Position.of_id(event.last_event_id).offset for event in events] == list(range(1, len(done) + 1))


async def test_a_commit_is_durable_though_the_application_does_not_wait_for_the_disk(
    server: PostgresProcess, push: LivePush
) -> None:
    """Listeners hear of an event at its commit, so a crash must not take it back."""
    async with await connected(server) as connection:
        await connection.execute("SET synchronous_commit = off")
        async with connection.transaction():
            await push.publish_in(connection, "orders", 1)
            assert await connection.fetchval("SHOW synchronous_commit") == "local"
        assert await connection.fetchval("SHOW synchronous_commit") == "off"
        assert await connection.fetchval("SHOW lock_timeout") == "0"


async def test_a_publish_from_a_thread_needs_no_loop(server: PostgresProcess, broker: PostgresBroker) -> None:
    push = LivePush(broker, by_query)
    ids = await asyncio.gather(
        *(asyncio.to_thread(partial(with_psycopg, server, push, None)) for _ in range(4))
    )
    assert sorted(Position.of_id(id).offset for id in ids) == [1, 2, 3, 4]


async def test_a_database_without_the_tables_says_what_to_do(server: PostgresProcess, push: LivePush) -> None:
    note = "this database has no tables of PostgresBroker"
    elsewhere = LivePush(PostgresBroker(server.dsn, prefix="nowhere"), by_query)
    async with await connected(server) as connection, connection.transaction():
        with pytest.raises(asyncpg.UndefinedFunctionError) as caught:
            await elsewhere.publish_in(connection, "orders", 1)
        assert note in caught.value.__notes__[0]
    with psycopg.connect(server.dsn) as synchronous:
        with pytest.raises(psycopg.errors.UndefinedFunction) as told:
            elsewhere.publish_in(synchronous, "orders", 1)
        assert note in told.value.__notes__[0]
        synchronous.rollback()
    async with await psycopg.AsyncConnection.connect(server.dsn) as asynchronous:
        with pytest.raises(psycopg.errors.UndefinedFunction) as told:
            await elsewhere.publish_in(asynchronous, "orders", 1)
        assert note in told.value.__notes__[0]
        await asynchronous.rollback()


async def test_a_stricter_level_of_isolation_fails_as_it_does_for_rows(
    server: PostgresProcess, broker: PostgresBroker, push: LivePush
) -> None:
    async with await connected(server) as connection:
        transaction = connection.transaction(isolation="repeatable_read")
        await transaction.start()
        await connection.fetch("SELECT FROM orders")
        await push.publish("orders", "meanwhile")
        with pytest.raises(asyncpg.SerializationError):
            await push.publish_in(connection, "orders", "too late")
        await transaction.rollback()
    assert (await broker.read("orders", 0, 9)).last == 1


async def test_the_broker_repeats_what_a_stricter_default_refuses(server: PostgresProcess) -> None:
    options = {"server_settings": {"default_transaction_isolation": "serializable"}}
    brokers = [PostgresBroker(server.dsn, options=options) for _ in range(4)]
    ends = await asyncio.gather(*(broker.append("strict", b"x") for broker in brokers for _ in range(10)))
    assert sorted(position.offset for position in ends) == list(range(1, 41))
    await asyncio.gather(*(broker.aclose() for broker in brokers))
