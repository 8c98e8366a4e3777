"""Django's ORM in an `authorize` in front of Django: a database connection that breaks is replaced."""

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.core.exceptions import PermissionDenied
from django.db import connections
from django.db.backends.signals import connection_created
from django.test.utils import setup_test_environment, teardown_test_environment

from livepush_asgi import (
    Grant,
    LivePush,
    LivePushMiddleware,
    MemoryBroker,
    RefusalCause,
    StreamRequest,
    Timing,
)
from livepush_asgi.contrib.django import LOOKUP_THREADS, uses_database
from livepush_asgi.testing import Client

from .apps.django_project import configure
from .postgres_server import PostgresProcess
from .serving import REPOSITORY

configure()

ALIAS = "streams"
Authorize = Callable[[StreamRequest], Any]

pytestmark = pytest.mark.real_time


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresProcess]:
    with PostgresProcess() as server:
        yield server


def setting_of(server: PostgresProcess) -> dict[str, object]:
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": "postgres",
        "USER": "postgres",
        "HOST": "127.0.0.1",
        "PORT": server.port,
    }


@contextmanager
def configured(setting: dict[str, object]) -> Iterator[None]:
    databases = {"default": connections.settings["default"], ALIAS: setting}
    before = dict(connections.settings)
    connections.settings.update(connections.configure_settings(databases))
    yield
    connections.settings.clear()
    connections.settings.update(before)


@pytest.fixture(params=["sqlite", "postgres"])
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    setting: dict[str, object] = {"ENGINE": "tests.apps.pinged_sqlite", "NAME": tmp_path / "database"}
    if request.param == "postgres":
        setting = setting_of(request.getfixturevalue("server"))
    # Kept open from one call to the next, as in production.
    with configured({**setting, "CONN_MAX_AGE": None}):
        yield request.param
        await sync_to_async(close)()
        await in_every_thread(close)


def close() -> None:
    connections[ALIAS].close()
    del connections[ALIAS]


def ask() -> str:
    with connections[ALIAS].cursor() as cursor:
        cursor.execute("SELECT 'user'")
        return str(cursor.fetchone()[0])


def cut() -> None:
    """Break the connection behind Django's back, as a server does that restarts."""
    connection = connections[ALIAS]
    if connection.vendor == "sqlite":
        if connection.connection is not None:
            connection.connection.close()
    else:
        with connection._nodb_cursor() as cursor:
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
                "AND backend_type = 'client backend'"
            )


@uses_database
def synchronous(request: StreamRequest) -> Grant:
    return Grant(channels=ask())


@uses_database
async def asynchronous(request: StreamRequest) -> Grant:
    return Grant(channels=await sync_to_async(ask)())


async def status(push: LivePush) -> int:
    async def django(scope: object, receive: object, send: object) -> None:
        raise AssertionError

    async with Client(LivePushMiddleware(django, push)) as client, client.open("/events") as stream:
        return stream.status


async def in_every_thread(function: Callable[[], object]) -> None:
    """Call it in each of the threads that look up."""
    all_there = threading.Barrier(LOOKUP_THREADS)

    def call() -> None:
        all_there.wait(10)
        function()

    await asyncio.gather(*[uses_database(call)() for _ in range(LOOKUP_THREADS)])


@pytest.mark.parametrize("authorize", [synchronous, asynchronous], ids=["synchronous", "asynchronous"])
async def test_a_connection_that_breaks_is_replaced(authorize: Authorize, database: str) -> None:
    """Catches the page that gets a 500 after a restart of the database, and never comes back."""
    push = LivePush(MemoryBroker(), authorize)
    async with push.lifespan():
        await in_every_thread(ask)
        assert await status(push) == 200
        await sync_to_async(cut)()
        if database == "sqlite":
            await in_every_thread(cut)
        assert [await status(push) for _ in range(3)] == [200, 200, 200]
        assert push.statistics()["refused"][RefusalCause.ERROR] == 0


@pytest.mark.parametrize("authorize", [synchronous, asynchronous], ids=["synchronous", "asynchronous"])
async def test_a_server_that_restarts_and_one_that_stays_away(authorize: Authorize) -> None:
    with PostgresProcess() as server, configured({**setting_of(server), "CONN_MAX_AGE": 60}):
        push = LivePush(MemoryBroker(), authorize)
        async with push.lifespan():
            await in_every_thread(ask)
            assert await status(push) == 200
            for _ in range(2):
                await asyncio.to_thread(server.stop)
                await asyncio.to_thread(server.start)
                # Whichever thread it is, and its connection.
                assert await asyncio.gather(*[status(push) for _ in range(8)]) == [200] * 8
            await asyncio.to_thread(server.stop)
            assert [await status(push) for _ in range(2)] == [500, 500]
            await asyncio.to_thread(server.start)
            assert [await status(push) for _ in range(3)] == [200, 200, 200]
        await sync_to_async(close)()
        await in_every_thread(close)


async def test_another_error_is_not_tried_again(server: PostgresProcess) -> None:
    calls: list[str] = []

    @uses_database
    def wrong_query(request: StreamRequest) -> Grant:
        calls.append("query")
        with connections[ALIAS].cursor() as cursor:
            cursor.execute("SELECT 1")
            cursor.execute("SELECT nothing FROM nowhere")
        raise AssertionError

    @uses_database
    def other(request: StreamRequest) -> Grant:
        calls.append("other")
        ask()
        raise OSError

    with configured({**setting_of(server), "CONN_MAX_AGE": 60}):
        for authorize in (wrong_query, other):
            push = LivePush(MemoryBroker(), authorize)
            async with push.lifespan():
                assert [await status(push) for _ in range(2)] == [500, 500]
        await in_every_thread(close)
    assert calls == ["query", "query", "other", "other"]


async def test_look_ups_run_side_by_side_and_share_threads() -> None:
    names: set[str] = set()
    all_there = threading.Barrier(LOOKUP_THREADS)

    @uses_database
    def authorize(request: StreamRequest) -> Grant:
        all_there.wait(10)
        names.add(threading.current_thread().name)
        return Grant(channels="news")

    push = LivePush(MemoryBroker(), authorize)
    async with push.lifespan():
        assert await asyncio.gather(*[status(push) for _ in range(4 * LOOKUP_THREADS)]) == [200] * 16
    assert len(names) == LOOKUP_THREADS


async def test_a_wave_shares_connections(tmp_path: Path) -> None:
    """Catches a new connection for each look-up while others wait, where CONN_MAX_AGE is 0."""
    made = []

    def note(**_: object) -> None:
        made.append(1)

    with configured({"ENGINE": "django.db.backends.sqlite3", "NAME": tmp_path / "database"}):
        connection_created.connect(note)
        try:
            await asyncio.gather(*[synchronous(StreamRequest({"type": "http"})) for _ in range(200)])
        finally:
            connection_created.disconnect(note)
        await in_every_thread(close)
    assert 0 < len(made) < 4 * LOOKUP_THREADS


async def test_a_look_up_that_waits_is_dropped_with_its_request() -> None:
    """Catches the look-ups of requests that have timed out, for which the next ones wait."""
    called: list[str] = []
    free, busy = threading.Event(), threading.Semaphore(0)

    @uses_database
    def authorize(request: StreamRequest) -> Grant:
        called.append(request.path)
        busy.release()
        assert free.wait(10)
        return Grant(channels="news")

    push = LivePush(MemoryBroker(), authorize, timing=Timing(authorize_timeout=0.5))
    async with push.lifespan(), Client(push) as client:

        async def open(path: str) -> int:
            return (await client.request("GET", path)).status

        first = [asyncio.create_task(open("/first")) for _ in range(LOOKUP_THREADS)]
        for _ in range(LOOKUP_THREADS):
            assert await asyncio.to_thread(busy.acquire, timeout=10)
        assert await asyncio.gather(*[open("/late") for _ in range(20)]) == [503] * 20
        assert await asyncio.gather(*first) == [503] * LOOKUP_THREADS
        free.set()
        async with client.open("/last") as stream:
            assert stream.status == 200
    assert called == ["/first"] * LOOKUP_THREADS + ["/last"]


async def test_under_a_test_runner_look_ups_share_the_thread_of_the_test() -> None:
    """A test case has a transaction in one connection, and so in one thread."""
    setup_test_environment()
    try:
        assert await uses_database(threading.get_ident)() == await sync_to_async(threading.get_ident)()
    finally:
        teardown_test_environment()
    assert await uses_database(threading.get_ident)() != await sync_to_async(threading.get_ident)()


FORK = """
import asyncio, os
from tests.apps.django_project import configure
configure()
from livepush_asgi.contrib.django import uses_database

look_up = uses_database(lambda: os.getpid())
assert asyncio.run(look_up()) == os.getpid()
child = os.fork()
if not child:
    os._exit(int(asyncio.run(look_up()) != os.getpid()))
assert os.waitpid(child, 0)[1] == 0
"""


def test_a_forked_process_has_threads_of_its_own() -> None:
    subprocess.run([sys.executable, "-c", FORK], env={"PYTHONPATH": str(REPOSITORY)}, timeout=30, check=True)


async def test_without_it_a_broken_connection_stays_for_ever(database: str) -> None:
    async def authorize(request: StreamRequest) -> Grant:
        return Grant(channels=await sync_to_async(ask)())

    push = LivePush(MemoryBroker(), authorize)
    async with push.lifespan():
        assert await status(push) == 200
        await sync_to_async(cut)()
        assert [await status(push) for _ in range(3)] == [500, 500, 500]


async def test_what_it_raises_passes_through(database: str) -> None:
    @uses_database
    def authorize(request: StreamRequest) -> Grant:
        raise PermissionDenied(ask())

    push = LivePush(MemoryBroker(), authorize)
    async with push.lifespan(), Client(push) as client:
        answer = await client.request("GET", "/")
    assert (answer.status, json.loads(answer.body)["detail"]) == (403, "user")
