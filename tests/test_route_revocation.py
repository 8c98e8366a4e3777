"""Routes that hand over their `authorize`: no revocation is missed between the decision and the stream."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import pytest
from asgiref.sync import sync_to_async
from django.core.asgi import get_asgi_application
from django.core.exceptions import PermissionDenied
from django.db import connection
from django.db.backends.signals import connection_created
from django.http import HttpRequest, HttpResponseBase
from django.test import override_settings
from django.urls import path
from fastapi import FastAPI
from fastapi import HTTPException as FastAPIError
from fastapi import Request as FastAPIRequest
from litestar import Litestar, get
from litestar import Request as LitestarRequest
from litestar.datastructures import State
from litestar.exceptions import NotAuthorizedException
from quart import Quart, request
from quart import Response as QuartResponse
from starlette.applications import Starlette
from starlette.exceptions import HTTPException as StarletteError
from starlette.requests import Request as StarletteRequest
from starlette.responses import Response
from starlette.routing import Route
from werkzeug.exceptions import Unauthorized

from livepush_asgi import (
    EndReason,
    Grant,
    LivePush,
    MemoryBroker,
    Refusal,
    RefusalCause,
    SSEStreamService,
    StreamRequest,
    public,
)
from livepush_asgi.contrib import django as for_django
from livepush_asgi.contrib import fastapi as for_fastapi
from livepush_asgi.contrib import litestar as for_litestar
from livepush_asgi.contrib import quart as for_quart
from livepush_asgi.contrib import starlette as for_starlette
from livepush_asgi.runtime.asgi import ASGIApp
from livepush_asgi.testing import Client, MockBroker

from .apps.django_project import configure
from .valkey import until

configure()

# Django, Quart and Litestar are made for asyncio.
pytestmark = pytest.mark.real_time

GRANT = Grant(channels=["c", "d"], slot_key="k")
Decide = Callable[[StreamRequest], Any]


class House:
    """A component, and the decision that its routes make. The first one waits until `go_on`."""

    def __init__(self) -> None:
        self.broker = MockBroker()
        self.push = LivePush(self.broker, public("c"), soft_refusals=[RefusalCause.ERROR])
        self.decision: Grant | Refusal | Exception = GRANT
        self.decide: Decide = self.authorize
        self.asked: list[StreamRequest] = []
        self.called, self.go_on = anyio.Event(), anyio.Event()

    async def authorize(self, request: StreamRequest) -> Grant | Refusal:
        self.asked.append(request)
        decision = self.decision
        self.called.set()
        await self.go_on.wait()
        # As a database answers: with what it knew when it was asked.
        if isinstance(decision, Exception) and not isinstance(decision, Refusal):
            raise decision
        return decision


HOUSE = House()


async def django_route(request: HttpRequest) -> HttpResponseBase:
    return await for_django.sse_streaming_response(HOUSE.push, request, authorize=HOUSE.decide)


urlpatterns = [path("route", django_route)]


def django_app() -> ASGIApp:
    app: ASGIApp = get_asgi_application()
    return app


def quart_app() -> ASGIApp:
    app = Quart(__name__)

    @app.get("/route")
    async def route() -> QuartResponse:
        return await for_quart.sse_streaming_response(HOUSE.push, request, authorize=HOUSE.decide)

    return app  # type: ignore[return-value]


def litestar_app() -> ASGIApp:
    @get("/route")
    async def route(request: LitestarRequest[Any, Any, State]) -> for_litestar.EventStreamResponse:
        return await for_litestar.sse_streaming_response(HOUSE.push, request, authorize=HOUSE.decide)

    return Litestar([route], logging_config=None)  # type: ignore[return-value]


def starlette_app() -> ASGIApp:
    async def route(request: StarletteRequest) -> Response:
        return await for_starlette.sse_streaming_response(HOUSE.push, request, authorize=HOUSE.decide)

    return Starlette(routes=[Route("/route", route)])


def fastapi_app() -> ASGIApp:
    app = FastAPI()

    @app.get("/route")
    async def route(request: FastAPIRequest) -> Response:
        return await for_fastapi.sse_streaming_response(HOUSE.push, request, authorize=HOUSE.decide)

    return app


APPS: dict[str, tuple[Callable[[], ASGIApp], Exception]] = {
    "starlette": (starlette_app, StarletteError(401, "Log in.", {"WWW-Authenticate": "Bearer"})),
    "fastapi": (fastapi_app, FastAPIError(401, "Log in.", {"WWW-Authenticate": "Bearer"})),
    "litestar": (litestar_app, NotAuthorizedException("Log in.", headers={"WWW-Authenticate": "Bearer"})),
    "quart": (quart_app, Unauthorized("Log in.")),
    "django": (django_app, PermissionDenied("Log in.")),
}


@pytest.fixture(params=APPS)
async def client(request: pytest.FixtureRequest) -> AsyncIterator[Client]:
    global HOUSE
    HOUSE = House()
    make_app, error = APPS[request.param]
    HOUSE.decision = error if "error" in request.node.name else GRANT
    with override_settings(ROOT_URLCONF=__name__):
        async with HOUSE.push.lifespan(), Client(make_app()) as client:
            yield client


async def while_it_decides(act: Callable[[], Awaitable[object]]) -> None:
    """Do something between the first decision and what the component makes of it."""
    await HOUSE.called.wait()
    await act()
    HOUSE.go_on.set()


@pytest.mark.parametrize("target", [{"slot_key": "k"}, {"channel": "d"}], ids=["key", "channel"])
async def test_a_route_that_is_revoked_while_it_decides_decides_again(
    client: Client, target: dict[str, str]
) -> None:
    async def revoke() -> None:
        HOUSE.decision = Refusal(403, "No more.")
        assert await HOUSE.push.disconnect(**target) == (0, 1, 0)  # type: ignore[arg-type]

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(while_it_decides, revoke)
        answer = await client.request("GET", "/route", query={"a": "b"})
    assert (answer.status, b"No more." in answer.body) == (403, True)
    assert [request.query["a"] for request in HOUSE.asked] == ["b", "b"]
    statistics = HOUSE.push.statistics()
    assert (statistics["opened"], statistics["refused"][RefusalCause.AUTHORIZE]) == (0, 1)


async def test_a_route_that_is_still_granted_streams(client: Client) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(while_it_decides, lambda: HOUSE.push.disconnect(slot_key="k"))
        async with client.open("/route", last_event_id="~") as stream:
            assert (await stream.next_event(name="livepush.gap")).event == "livepush.gap"
            await HOUSE.push.publish("d", "hello")
            assert (await stream.next_event()).data == "hello"
            assert len(HOUSE.asked) == 2
            done = await HOUSE.push.disconnect(slot_key="k")
            assert (done.streams, await stream.wait_ended()) == (1, "revoked")


async def test_an_error_of_the_framework_means_what_it_says(client: Client) -> None:
    HOUSE.go_on.set()
    answer = await client.request("GET", "/route")
    # Django's has no status of its own.
    assert answer.status in (401, 403)
    assert b"Log in." in answer.body
    if isinstance(HOUSE.decision, (StarletteError, NotAuthorizedException)):
        assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("status", [204, 402, 404, 419, 451, 503])
async def test_a_refusal_has_the_status_that_it_names(client: Client, status: int) -> None:
    HOUSE.go_on.set()
    HOUSE.decision = Refusal(status, "Not now.", retry_after=7, headers={"X-Own": "kept"})
    answer = await client.request("GET", "/route")
    assert (answer.status, answer.headers["x-own"], answer.headers["retry-after"]) == (status, "kept", "7")
    assert (b"Not now." in answer.body) is (status != 204)


async def test_a_failing_decision_is_refused_as_in_a_mount(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    HOUSE.go_on.set()
    HOUSE.decision = OSError("the database is away")
    async with client.open("/route") as refused:
        event = await refused.next_event(name="livepush.refused")
    assert (refused.status, json.loads(event.data)["reason"]) == (200, "error")
    assert "the database is away" in caplog.text


@pytest.mark.parametrize("still_granted", [True, False])
async def test_a_stream_is_authorized_again_where_a_revocation_may_be_lost(
    client: Client, still_granted: bool
) -> None:
    HOUSE.go_on.set()
    async with client.open("/route", query={"a": "b"}) as stream:
        await stream.next_event(name="livepush.open")
        HOUSE.asked.clear()
        if not still_granted:
            HOUSE.decision = Refusal(403)
        HOUSE.broker.drop()
        if still_granted:
            await stream.next_event(name="livepush.gap")
            await HOUSE.push.publish("c", "still here")
            assert (await stream.next_event()).data == "still here"
        else:
            assert await stream.wait_ended(10) == "revoked"
        await until(lambda: HOUSE.asked, within=1)
        assert [request.query["a"] for request in HOUSE.asked] == ["b"]


def plain_orm(request: StreamRequest) -> Grant:
    with connection.cursor() as cursor:
        assert cursor.execute("SELECT 'an answer'").fetchone()[0] == "an answer"
    return GRANT


async def asynchronous_orm(request: StreamRequest) -> Grant:
    return await sync_to_async(plain_orm)(request)


def returned_coroutine(request: StreamRequest) -> Awaitable[Grant]:
    return asynchronous_orm(request)


@pytest.mark.parametrize("decide", [plain_orm, asynchronous_orm, returned_coroutine])
async def test_djangos_orm_decides_and_leaves_no_connection_open(decide: Decide) -> None:
    global HOUSE
    HOUSE = House()
    HOUSE.decide = decide
    made: list[Any] = []

    def note(connection: object, **_: object) -> None:
        made.append(connection)

    connection_created.connect(note)
    try:
        with override_settings(ROOT_URLCONF=__name__):
            async with HOUSE.push.lifespan(), Client(django_app()) as client, client.open("/route") as stream:
                await stream.next_event(name="livepush.open")
                assert [each.connection for each in made] == [None]
    finally:
        connection_created.disconnect(note)


async def test_a_service_opens_by_an_authorize_too() -> None:
    service = SSEStreamService(MemoryBroker())
    scope: dict[str, Any] = {"type": "http", "path": "/", "headers": [], "query_string": b""}
    async with service.push.lifespan():

        async def authorize(request: StreamRequest) -> Grant | Refusal:
            calls.append(request)
            if len(calls) == 1:
                await service.push.disconnect(slot_key="another")
                return GRANT
            return Refusal(403, "No more.")

        calls: list[StreamRequest] = []
        stream = await service.open_authorized(authorize, StreamRequest(scope))
        assert b"livepush.open" in await anext(stream.body)
        assert await service.push.disconnect(slot_key="k") == (1, 1, 0)
        assert stream.body.end_reason is EndReason.REVOKED
        with pytest.raises(Refusal, match="403 No more"):
            await service.open_authorized(authorize, StreamRequest(scope))
        assert service.statistics()["refused"][RefusalCause.AUTHORIZE] == 1
