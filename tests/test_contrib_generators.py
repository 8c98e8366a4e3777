"""Responses from generators in each framework: refusals, HEAD, what the response keeps open meanwhile."""

import asyncio
import gc
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any

import anyio
import pytest
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, HttpResponseBase
from django.test import override_settings
from django.urls import path
from fastapi import Depends, FastAPI
from fastapi import Request as FastAPIRequest
from litestar import HttpMethod, Litestar, Request, route
from litestar.datastructures import State
from quart import Quart, request
from quart import Response as QuartResponse
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request as StarletteRequest
from starlette.responses import Response
from starlette.routing import Route

from livepush_asgi import Event, send_event_stream
from livepush_asgi.contrib import django as for_django
from livepush_asgi.contrib import fastapi as for_fastapi
from livepush_asgi.contrib import litestar as for_litestar
from livepush_asgi.contrib import quart as for_quart
from livepush_asgi.contrib import starlette as for_starlette
from livepush_asgi.runtime.asgi import ASGIApp, Message
from livepush_asgi.testing import Client
from livepush_asgi.testing.exchange import http_scope

from .apps.django_project import configure
from .house import House
from .valkey import until

# Three of the frameworks are made for asyncio, and Django closes responses in a thread.
pytestmark = pytest.mark.real_time

HOUSE = House()


async def events() -> AsyncGenerator[object]:
    HOUSE.log.append("begun")
    try:
        yield Event("hello", id=1)
        yield {"n": 2}
        await anyio.sleep_forever()
    finally:
        HOUSE.log.append("closed")


def terms() -> Any:
    return {"push": HOUSE.service, "slot_key": "k", "expires_at": HOUSE.expires_at, "control_events": True}


async def django_route(request: HttpRequest) -> HttpResponseBase:
    return await for_django.event_stream_response(request, events(), **terms())


urlpatterns = [path("route", django_route)]


def django_app() -> ASGIApp:
    app: ASGIApp = get_asgi_application()
    return app


def starlette_app() -> ASGIApp:
    async def endpoint(request: StarletteRequest) -> Response:
        return await for_starlette.event_stream_response(request, events(), **terms())

    return Starlette(routes=[Route("/route", endpoint)])


def fastapi_app() -> ASGIApp:
    app = FastAPI()

    @app.api_route("/route", methods=["GET", "HEAD"])
    async def endpoint(request: FastAPIRequest) -> Response:
        return await for_fastapi.event_stream_response(request, events(), **terms())

    return app


def quart_app() -> ASGIApp:
    app = Quart(__name__)

    @app.get("/route")
    async def endpoint() -> QuartResponse:
        return await for_quart.event_stream_response(request, events(), **terms())

    return app  # type: ignore[return-value]


def litestar_app() -> ASGIApp:
    @route("/route", http_method=[HttpMethod.GET, HttpMethod.HEAD])
    async def endpoint(request: Request[Any, Any, State]) -> for_litestar.EventStreamResponse:
        return await for_litestar.event_stream_response(request, events(), **terms())

    return Litestar([endpoint])  # type: ignore[return-value]


APPS: dict[str, Callable[[], ASGIApp]] = {
    "django": django_app,
    "fastapi": fastapi_app,
    "litestar": litestar_app,
    "quart": quart_app,
    "starlette": starlette_app,
}


@pytest.fixture(params=APPS)
def app(request: pytest.FixtureRequest) -> Iterator[ASGIApp]:
    global HOUSE
    HOUSE = House()
    configure()
    with override_settings(ROOT_URLCONF=__name__):
        yield APPS[request.param]()


async def test_a_route_streams_refuses_and_closes_the_generator(app: ASGIApp) -> None:
    async with Client(app) as client:
        async with client.open("/route") as stream:
            assert [(event.data, event.id) for event in await stream.events(2)] == [
                ("hello", "1"),
                ('{"n":2}', None),
            ]
            refused = await client.request("GET", "/route")
            assert (refused.status, refused.headers["retry-after"]) == (429, "5")
        await HOUSE.until_free()
        await until(lambda: HOUSE.log == ["begun", "closed"], within=1)
    assert stream.headers["content-type"] == "text/event-stream"
    assert stream.headers["cache-control"] == "no-cache, no-transform"
    assert stream.headers["x-accel-buffering"] == "no"
    assert "content-length" not in stream.headers
    # No broker was asked for anything but the commands, by which a slot key can be revoked.
    assert HOUSE.service.statistics()["channels"] == 0
    await HOUSE.service.aclose()


async def test_a_drain_ends_the_stream_and_refuses_the_next(app: ASGIApp) -> None:
    async with Client(app) as client:
        async with client.open("/route") as stream:
            await stream.events(2)
            await HOUSE.service.aclose()
            assert HOUSE.log == ["begun", "closed"]
            assert await stream.wait_ended() == "drain"
        async with client.open("/route") as refused:
            await refused.next_event(name="livepush.refused")
    assert refused.status == 200
    assert HOUSE.log == ["begun", "closed"]


async def test_head_and_an_expired_login_do_not_run_the_generator(app: ASGIApp) -> None:
    async with Client(app) as client:
        answer = await client.request("HEAD", "/route")
        assert (answer.status, answer.body) == (200, b"")
        assert answer.headers["content-type"] == "text/event-stream"
        HOUSE.expires_at = time.time() - 1
        assert (await client.request("GET", "/route")).status == 401
    assert (HOUSE.log, HOUSE.slots.held("k")) == ([], 0)
    await HOUSE.service.aclose()


async def test_fastapis_dependencies_end_after_the_generator_that_uses_them() -> None:
    global HOUSE
    HOUSE = House()
    app = FastAPI()

    async def session() -> AsyncGenerator[str]:
        HOUSE.log.append("session opened")
        yield "user"
        HOUSE.log.append("session closed")

    @app.get("/route")
    async def endpoint(request: FastAPIRequest, user: str = Depends(session)) -> Response:
        return await for_fastapi.event_stream_response(request, events(), push=HOUSE.service)

    async with Client(app) as client, client.open("/route") as stream:
        await stream.events(2)
    assert HOUSE.log == ["session opened", "begun", "closed", "session closed"]
    await HOUSE.service.aclose()


async def test_starlettes_background_task_and_headers_are_kept() -> None:
    global HOUSE
    HOUSE = House()

    async def afterwards() -> None:
        HOUSE.log.append("background")

    async def endpoint(request: StarletteRequest) -> Response:
        response = await for_starlette.event_stream_response(request, events())
        response.headers["x-own"] = "kept"
        response.background = BackgroundTask(afterwards)
        return response

    app = Starlette(routes=[Route("/route", endpoint)])
    async with Client(app) as client, client.open("/route") as stream:
        await stream.events(2)
    assert stream.headers["x-own"] == "kept"
    assert HOUSE.log == ["begun", "closed", "background"]


async def test_a_response_that_a_route_drops_frees_its_slot_and_runs_no_generator() -> None:
    global HOUSE
    HOUSE = House()

    async def endpoint(request: StarletteRequest) -> Response:
        await for_starlette.event_stream_response(request, events(), **terms())
        return Response("something else")

    async with Client(Starlette(routes=[Route("/route", endpoint)])) as client:
        assert (await client.request("GET", "/route")).body == b"something else"
        gc.collect()
        await HOUSE.until_free()
    assert HOUSE.log == []
    await HOUSE.service.aclose()


def test_generators_are_closed_when_the_event_loop_ends_and_nothing_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    global HOUSE
    HOUSE = House()

    async def main() -> None:
        never, arrived = asyncio.Event(), asyncio.Event()

        async def receive() -> Message:
            await never.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            if b'{"n":2}' in message.get("body", b""):
                arrived.set()

        serving = asyncio.create_task(
            send_event_stream(http_scope(), receive, send, events(), push=HOUSE.service)
        )
        await arrived.wait()
        assert not serving.done()
        # A process that is interrupted ends its event loop, and with it every task.
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    assert HOUSE.log == ["begun", "closed"]
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
