"""Django on PostgreSQL: a synchronous view publishes in `transaction.atomic`, on real uvicorn."""

import asyncio
import json
from pathlib import Path

import psycopg
import pytest
from django.core.exceptions import ImproperlyConfigured

from livepush_asgi import LivePush, MemoryBroker, public
from livepush_asgi.contrib.django import publish_in_atomic

from .apps.django_project import configure
from .postgres_server import PostgresProcess
from .serving import Serving, uvicorn

configure()

pytestmark = pytest.mark.real_time


@pytest.fixture(scope="module")
def server(postgres_server: PostgresProcess) -> PostgresProcess:
    with psycopg.connect(postgres_server.dsn, autocommit=True) as admin:
        admin.execute("CREATE TABLE IF NOT EXISTS orders (number int)")
    return postgres_server


def orders(server: PostgresProcess) -> list[int]:
    with psycopg.connect(server.dsn) as connection:
        return [number for (number,) in connection.execute("SELECT number FROM orders ORDER BY number")]


async def post(serving: Serving, path: str) -> tuple[int, str]:
    answer = await serving.open(path, method="POST")
    return answer.status, (await answer.read_body()).decode()


@pytest.mark.parametrize("server_side", [False, pytest.param(True, marks=pytest.mark.slow)])
async def test_a_view_publishes_in_its_transaction(
    server_side: bool, server: PostgresProcess, tmp_path: Path
) -> None:
    with psycopg.connect(server.dsn, autocommit=True) as admin:
        admin.execute("TRUNCATE orders")
    environment = {"PGPORT": str(server.port), **({"SERVER_SIDE": "1"} if server_side else {})}
    options = ("--app-dir", "docs/snippets/publish")
    async with uvicorn("orders_django:app", tmp_path / "log", *options, environment=environment) as serving:
        stream = await serving.open("/events")
        await stream.next_event("livepush.open")
        assert (await post(serving, "/orders?number=1&cancel"))[0] == 500
        status, text = await post(serving, "/outside")
        assert status == 409
        assert "in the transaction of the connection, and none is open" in text
        assert (await post(serving, "/orders?number=2"))[0] == 201
        event = await stream.next_event()
        assert (event.event, event.data) == ("order", '{"order":2}')
        numbers = range(3, 8)
        await asyncio.gather(*(post(serving, f"/orders?number={number}") for number in numbers))
        events = [await stream.next_event() for _ in numbers]
        assert sorted(json.loads(event.data)["order"] for event in events) == [*numbers]
    assert orders(server) == [2, *numbers]


async def test_another_database_is_refused_with_the_fix() -> None:
    push = LivePush(MemoryBroker(), public("orders"))
    with pytest.raises(ImproperlyConfigured, match=r"the database .default. is sqlite.*using="):
        publish_in_atomic(push, "orders", 1)
