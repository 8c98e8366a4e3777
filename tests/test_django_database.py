"""Django's ORM in an `authorize` in front of Django: a database connection that breaks is replaced."""

import json
from collections.abc import AsyncIterator, Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.core.exceptions import PermissionDenied
from django.db import connections

from livepush_asgi import Grant, LivePush, LivePushMiddleware, MemoryBroker, RefusalCause, StreamRequest
from livepush_asgi.contrib.django import uses_database
from livepush_asgi.testing import Client

from .apps.django_project import configure
from .postgres_server import PostgresProcess

configure()

ALIAS = "streams"
POSTGRES = pytest.param(
    "postgres", marks=pytest.mark.skipif(find_spec("psycopg") is None, reason="psycopg is not installed")
)
Authorize = Callable[[StreamRequest], Any]

pytestmark = pytest.mark.real_time


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresProcess]:
    with PostgresProcess() as server:
        yield server


def setting(kind: str, request: pytest.FixtureRequest, folder: Path) -> dict[str, object]:
    if kind == "sqlite":
        return {"ENGINE": "tests.apps.pinged_sqlite", "NAME": folder / "database"}
    server: PostgresProcess = request.getfixturevalue("postgres")
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": "postgres",
        "USER": "postgres",
        "HOST": "127.0.0.1",
        "PORT": server.port,
    }


@pytest.fixture(params=["sqlite", POSTGRES])
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    own = setting(request.param, request, tmp_path)
    # Kept open from one call to the next, as in production.
    databases = {"default": connections.settings["default"], ALIAS: {**own, "CONN_MAX_AGE": None}}
    before = dict(connections.settings)
    connections.settings.update(connections.configure_settings(databases))
    yield request.param
    await sync_to_async(close)()
    connections.settings.clear()
    connections.settings.update(before)


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
    assert connection.connection is not None
    if connection.vendor == "sqlite":
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


@pytest.mark.parametrize("authorize", [synchronous, asynchronous], ids=["synchronous", "asynchronous"])
async def test_a_connection_that_breaks_is_replaced(authorize: Authorize, database: str) -> None:
    push = LivePush(MemoryBroker(), authorize)
    async with push.lifespan():
        assert await status(push) == 200
        assert await sync_to_async(lambda: connections[ALIAS].connection is not None)()
        await sync_to_async(cut)()
        # It shows with the first query on it, and never again.
        assert await status(push) == 500
        assert [await status(push) for _ in range(3)] == [200, 200, 200]
        assert push.statistics()["refused"][RefusalCause.ERROR] == 1


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
