"""Django: what a view with a stream holds, and what Django's middleware may do to it."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
from asgiref.sync import ThreadSensitiveContext, sync_to_async
from django.core.asgi import get_asgi_application
from django.db import connection, connections, transaction
from django.db.backends.signals import connection_created
from django.http import HttpRequest, HttpResponse, HttpResponseBase, StreamingHttpResponse
from django.test import override_settings
from django.urls import path
from django.utils.decorators import async_only_middleware, sync_only_middleware

from livepush_asgi.contrib.django import sse_streaming_response
from livepush_asgi.testing import Client

from .apps.django_project import configure
from .house import House

configure()

pytestmark = pytest.mark.real_time


HOUSE = House()


@pytest.fixture
async def house() -> AsyncIterator[House]:
    global HOUSE
    HOUSE = House()
    yield HOUSE
    await HOUSE.service.aclose()


@pytest.fixture
def connections_made() -> Iterator[list[Any]]:
    made: list[Any] = []

    def note(connection: object, **_: object) -> None:
        made.append(connection)

    connection_created.connect(note)
    yield made
    connection_created.disconnect(note)


def ask_the_database() -> object:
    with connection.cursor() as cursor:
        return cursor.execute("SELECT 'an answer'").fetchone()[0]


async def route(request: HttpRequest) -> HttpResponseBase:
    if "ask" in request.GET:
        assert await sync_to_async(ask_the_database)() == "an answer"
    return await sse_streaming_response(HOUSE.service, request, channel="c", slot_key="k")


urlpatterns = [path("route", route)]

View = Callable[[HttpRequest], Awaitable[HttpResponseBase]]


@async_only_middleware  # type: ignore[untyped-decorator]
def replacing(get_response: View) -> View:
    async def answer(request: HttpRequest) -> HttpResponseBase:
        await get_response(request)
        return HttpResponse("something else")

    return answer


@sync_only_middleware  # type: ignore[untyped-decorator]
def synchronous(get_response: Callable[[HttpRequest], HttpResponseBase]) -> object:
    def answer(request: HttpRequest) -> HttpResponseBase:
        response = get_response(request)
        response["x-own"] = "kept"
        return response

    return answer


def site(*middleware: str) -> override_settings:
    return override_settings(ROOT_URLCONF=__name__, MIDDLEWARE=list(middleware))


@pytest.mark.parametrize("middleware", [[], [f"{__name__}.synchronous"]], ids=["none", "synchronous"])
async def test_no_database_connection_is_open_while_a_stream_lives(
    middleware: list[str], house: House, connections_made: list[Any]
) -> None:
    with site(*middleware):
        async with Client(get_asgi_application()) as client, client.open("/route?ask=1") as stream:
            await stream.next_event(control=True)
            assert [made.connection for made in connections_made] == [None]
            await house.broker.publish("c", "hello")
            assert (await stream.next_event()).data == "hello"
            await stream.disconnect()
            await house.until_free()


async def test_a_connection_in_a_transaction_stays_open(house: House, connections_made: list[Any]) -> None:
    """A test case has a transaction around its tests, and what it has written in there."""
    async with ThreadSensitiveContext():
        atomic = transaction.atomic()
        await sync_to_async(atomic.__enter__)()
        response = await sse_streaming_response(house.service, HttpRequest(), channel="c", slot_key="k")
        assert await sync_to_async(ask_the_database)() == "an answer"
        await sync_to_async(atomic.__exit__)(None, None, None)
        assert len(connections_made) == 1
        await sync_to_async(connections.close_all)()
        response.close()
        await house.until_free()


async def test_no_middleware_compresses_a_stream(house: House) -> None:
    """Django compresses each chunk into a file of its own; browsers would read the first, and no more."""
    headers = {"accept-encoding": "gzip"}
    with site("django.middleware.gzip.GZipMiddleware"):
        async with (
            Client(get_asgi_application()) as client,
            client.open("/route", headers=headers) as stream,
        ):
            await stream.next_event(control=True)
            await house.broker.publish("c", "hello")
            assert (await stream.next_event()).data == "hello"
    assert "content-encoding" not in stream.headers


async def test_a_stream_has_the_headers_that_it_has(house: House) -> None:
    response = await sse_streaming_response(house.service, HttpRequest(), channel="c")
    assert isinstance(response, StreamingHttpResponse)
    names = ["Content-Type", "cache-control", "Content-Encoding", "ETag"]
    assert [response.has_header(name) for name in names] == [True, True, True, False]
    assert "Content-Encoding" not in response.headers
    response.close()


async def test_a_response_that_a_middleware_replaces_gives_its_slot_back(house: House) -> None:
    with site(f"{__name__}.replacing"):
        async with Client(get_asgi_application()) as client:
            assert (await client.request("GET", "/route")).body == b"something else"
            await house.until_free()
