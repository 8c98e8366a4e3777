"""`run_response` in each framework: a run as the response of a route, in the dialect of its client."""

import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import pytest
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, HttpResponseBase
from django.test import override_settings
from django.urls import path
from fastapi import FastAPI
from fastapi import Request as FastAPIRequest
from litestar import HttpMethod, Litestar, route
from litestar import Request as LitestarRequest
from litestar.datastructures import State
from quart import Quart, request
from quart import Response as QuartResponse
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as StarletteRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from livepush_asgi import (
    READ_BYTES,
    BrokerUnavailableError,
    DrainPolicy,
    LivePush,
    MemoryBroker,
    MemorySlotCap,
    Page,
    Refusal,
    RefusalCause,
    Run,
)
from livepush_asgi.contrib import django as for_django
from livepush_asgi.contrib import fastapi as for_fastapi
from livepush_asgi.contrib import litestar as for_litestar
from livepush_asgi.contrib import quart as for_quart
from livepush_asgi.contrib import starlette as for_starlette
from livepush_asgi.dialects import Dialect, ag_ui, ai_sdk, openai
from livepush_asgi.runtime.asgi import ASGIApp
from livepush_asgi.testing import Answer, Client

from .apps.django_project import configure
from .valkey import until

# Django, Quart and Litestar are made for asyncio.
pytestmark = pytest.mark.real_time


class AwayBroker(MemoryBroker):
    """A broker in memory that can be away."""

    away = False

    async def read(self, channel: str, after: int, limit: int, *, max_bytes: int = READ_BYTES) -> Page:
        if self.away:
            raise BrokerUnavailableError("the password is secret")
        return await super().read(channel, after, limit, max_bytes=max_bytes)


class House:
    """A component with one slot, and the run that its routes serve. It says "Hel", and "lo" after `go_on`."""

    def __init__(self, dialect: Dialect | None = None) -> None:
        self.slots = MemorySlotCap(1)
        self.broker = AwayBroker()
        self.push = LivePush(
            self.broker,
            lambda request: Refusal(),
            slots=self.slots,
            soft_refusals=[RefusalCause.CAP],
            drain=DrainPolicy(runs=0),
        )
        self.dialect = dialect
        self.expires_at: float | None = None
        self.go_on = anyio.Event()

    def run(self, id: str = "7") -> Run:
        return self.push.run(id, dialect=self.dialect)

    @property
    def terms(self) -> dict[str, Any]:
        return {"slot_key": "k", "expires_at": self.expires_at}

    async def start(self) -> None:
        async def pieces() -> AsyncIterator[str]:
            yield "Hel"
            await self.go_on.wait()
            yield "lo"

        await self.run().start(pieces() if self.dialect is None else self.dialect.text(pieces()))


HOUSE = House()


async def django_route(request: HttpRequest, id: str) -> HttpResponseBase:
    return await for_django.run_response(HOUSE.push, request, HOUSE.run(id), **HOUSE.terms)


urlpatterns = [path("runs/<id>", django_route)]


def django_app() -> ASGIApp:
    app: ASGIApp = get_asgi_application()
    return app


def quart_app() -> ASGIApp:
    app = Quart(__name__)
    app.config["RESPONSE_TIMEOUT"] = 0.1

    @app.get("/runs/<id>")
    async def follow(id: str) -> QuartResponse:
        return await for_quart.run_response(HOUSE.push, request, HOUSE.run(id), **HOUSE.terms)

    return app  # type: ignore[return-value]


def litestar_app() -> ASGIApp:
    @route("/runs/{id:str}", http_method=[HttpMethod.GET, HttpMethod.HEAD])
    async def follow(request: LitestarRequest[Any, Any, State]) -> for_litestar.EventStreamResponse:
        run = HOUSE.run(request.path_params["id"])
        return await for_litestar.run_response(HOUSE.push, request, run, **HOUSE.terms)

    return Litestar([follow], logging_config=None)  # type: ignore[return-value]


async def with_a_body(request: StarletteRequest, error: Exception) -> Response:
    """Answer an HTTPException as many applications do, whatever its status."""
    return JSONResponse(
        {"error": getattr(error, "detail", "")},
        getattr(error, "status_code", 500),
        getattr(error, "headers", None),
    )


def starlette_app() -> ASGIApp:
    async def follow(request: StarletteRequest) -> Response:
        run = HOUSE.run(request.path_params["id"])
        return await for_starlette.run_response(HOUSE.push, request, run, **HOUSE.terms)

    handlers: Any = {HTTPException: with_a_body}
    return Starlette(routes=[Route("/runs/{id}", follow)], exception_handlers=handlers)


def fastapi_app() -> ASGIApp:
    app = FastAPI(exception_handlers={HTTPException: with_a_body})

    @app.api_route("/runs/{id}", methods=["GET", "HEAD"])
    async def follow(request: FastAPIRequest, id: str) -> Response:
        return await for_fastapi.run_response(HOUSE.push, request, HOUSE.run(id), **HOUSE.terms)

    return app


APPS: dict[str, Callable[[], ASGIApp]] = {
    "django": django_app,
    "fastapi": fastapi_app,
    "litestar": litestar_app,
    "quart": quart_app,
    "starlette": starlette_app,
}


@pytest.fixture(params=APPS)
def app(request: pytest.FixtureRequest) -> Iterator[ASGIApp]:
    configure()
    with override_settings(ROOT_URLCONF=__name__):
        yield APPS[request.param]()


def serving(dialect: Dialect | None = None) -> House:
    global HOUSE
    HOUSE = House(dialect)
    return HOUSE


def types_of(events: list[Any]) -> list[str]:
    return [event.data if event.data == "[DONE]" else json.loads(event.data)["type"] for event in events]


def check_idle(answer: Answer, status: int) -> None:
    assert answer.status == status
    assert answer.headers["cache-control"] == "no-store"
    if status == 204:
        assert answer.body == b""
        assert answer.headers.get("content-length", "0") == "0"


async def test_a_page_follows_a_run_in_its_dialect_comes_back_and_is_told_that_it_has_all(
    app: ASGIApp,
) -> None:
    house = serving(ai_sdk())
    async with house.push.lifespan(), Client(app) as client:
        check_idle(await client.request("GET", "/runs/7"), 204)
        await house.start()
        async with client.open("/runs/7") as page:
            assert types_of(await page.events(3)) == ["start", "text-start", "text-delta"]
        assert page.headers["x-vercel-ai-ui-message-stream"] == "v1"
        assert page.headers["content-type"] == "text/event-stream"
        assert page.headers["cache-control"] == "no-cache, no-transform"
        house.go_on.set()
        async with client.open("/runs/7", last_event_id=page.last_event_id) as page:
            assert types_of(await page.events(4)) == ["text-delta", "text-end", "finish", "[DONE]"]
            await page.wait_returned()
        for last in (None, page.last_event_id):
            check_idle(await client.request("GET", "/runs/7", last_event_id=last), 204)
        await until(lambda: not house.slots.held("k"))


async def test_a_foreign_client_gets_no_soft_refusal(app: ASGIApp) -> None:
    house = serving(ai_sdk())
    async with house.push.lifespan(), Client(app) as client:
        await house.start()
        async with client.open("/runs/7"):
            full = await client.request("GET", "/runs/7")
        assert (full.status, full.headers["retry-after"]) == (429, "5")
        house.go_on.set()
        await house.run().wait()
        await house.push.drain()
        draining = await client.request("GET", "/runs/7")
        assert (draining.status, draining.headers["retry-after"]) == (503, "5")
        for answer in (full, draining):
            assert b"livepush" not in answer.body
            assert answer.headers["content-type"] != "text/event-stream"
        refused = house.push.statistics()["refused"]
        assert (refused[RefusalCause.CAP], refused[RefusalCause.DRAIN]) == (1, 1)


async def test_an_event_source_is_told_to_come_back(app: ASGIApp) -> None:
    house = serving()
    async with house.push.lifespan(), Client(app) as client:
        await house.start()
        async with client.open("/runs/7") as page, client.open("/runs/7") as refused:
            assert json.loads((await refused.next_event(name="livepush.refused")).data)["reason"] == "cap"
            house.go_on.set()
            end = await page.next_event(name="livepush.end")
            assert json.loads(end.data) == {"state": "done", "count": 2, "error": None}
        check_idle(await client.request("GET", "/runs/7", last_event_id=page.last_event_id), 204)


@pytest.mark.parametrize("dialect", [ag_ui(), openai()], ids=lambda dialect: dialect.name)
async def test_what_a_client_takes_for_nothing_is_a_404(app: ASGIApp, dialect: Dialect) -> None:
    house = serving(dialect)
    async with house.push.lifespan(), Client(app) as client:
        check_idle(await client.request("GET", "/runs/7"), 404)


async def test_a_head_gets_the_headers_of_the_dialect_and_a_login_that_is_over_a_401(app: ASGIApp) -> None:
    house = serving(ai_sdk())
    async with house.push.lifespan(), Client(app) as client:
        assert (await client.request("HEAD", "/runs/7")).status == 204
        await house.start()
        answer = await client.request("HEAD", "/runs/7")
        assert (answer.status, answer.body) == (200, b"")
        assert answer.headers["x-vercel-ai-ui-message-stream"] == "v1"
        assert house.slots.held("k") == 0
        house.expires_at = time.time() - 1
        assert (await client.request("GET", "/runs/7")).status == 401


async def test_a_post_that_has_started_a_short_run_gets_all_of_it() -> None:
    house = serving(ai_sdk())
    house.go_on.set()

    async def ask(request: StarletteRequest) -> Response:
        await house.start()
        await house.run().wait()
        return await for_starlette.run_response(house.push, request, house.run())

    app = Starlette(routes=[Route("/runs", ask, methods=["POST"])])
    async with house.push.lifespan(), Client(app).open("/runs", method="POST", json={"ask": "why?"}) as page:
        assert types_of(await page.events(7))[-2:] == ["finish", "[DONE]"]
        await page.wait_returned()


async def test_a_run_of_another_live_push_raises_with_the_fix() -> None:
    house, other = serving(), House()
    request = StarletteRequest({"type": "http", "method": "GET", "path": "/", "headers": []})
    with pytest.raises(ValueError, match=r"run_response\(push, request, push\.run\('7'\)\)"):
        await for_starlette.run_response(house.push, request, other.run())
    with pytest.raises(TypeError, match=r"takes a Run, not '7': push\.run\(id\)"):
        await for_starlette.run_response(house.push, request, "7")  # type: ignore[arg-type]


async def test_a_broker_that_is_away_is_a_503(app: ASGIApp) -> None:
    house = serving()
    async with house.push.lifespan(), Client(app) as client:
        house.broker.away = True
        answer = await client.request("GET", "/runs/7")
    # After another status an EventSource would not come back.
    assert (answer.status, b"event: livepush.refused" in answer.body) == (200, True)
    assert b"secret" not in answer.body
