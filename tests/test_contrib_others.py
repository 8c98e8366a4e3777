"""Django, Quart and Litestar: what their routes do when nobody reads the stream, and what stays open."""

import gc
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.test import override_settings
from django.urls import path
from litestar import HttpMethod, Litestar, Request, get
from litestar import route as route_handler
from litestar.background_tasks import BackgroundTask
from litestar.datastructures import State
from litestar.di import NamedDependency
from quart import Quart, Response, request

from livepush_asgi import BrokerUnavailableError, Grant, RefusalCause
from livepush_asgi.contrib import django as for_django
from livepush_asgi.contrib import litestar as for_litestar
from livepush_asgi.contrib import quart as for_quart
from livepush_asgi.runtime.asgi import ASGIApp
from livepush_asgi.testing import Client

from .apps.django_project import configure
from .house import House
from .serving import REPOSITORY
from .valkey import until

# All three are made for asyncio, and Django closes responses in a thread.
pytestmark = pytest.mark.real_time


HOUSE = House("c", "d")


async def django_route(request: HttpRequest) -> HttpResponseBase:
    return await for_django.sse_streaming_response(HOUSE.service, request, grant=HOUSE.grant())


async def django_dropped(request: HttpRequest) -> HttpResponseBase:
    await django_route(request)
    return HttpResponse("something else")


urlpatterns = [path("route", django_route), path("dropped", django_dropped)]


def django_app() -> ASGIApp:
    app: ASGIApp = get_asgi_application()
    return app


def quart_app() -> ASGIApp:
    app = Quart(__name__)
    app.config["RESPONSE_TIMEOUT"] = 0.2

    @app.get("/route")
    async def route() -> Response:
        return await for_quart.sse_streaming_response(HOUSE.service, request, grant=HOUSE.grant())

    @app.get("/dropped")
    async def dropped() -> str:
        await route()
        return "something else"

    return app  # type: ignore[return-value]


def litestar_app() -> ASGIApp:
    async def session() -> AsyncIterator[str]:
        HOUSE.log.append("opened")
        yield "user"
        HOUSE.log.append("closed")

    @get("/route", dependencies={"user": session})
    async def route(
        request: Request[Any, Any, State], user: NamedDependency[str]
    ) -> for_litestar.EventStreamResponse:
        return await for_litestar.sse_streaming_response(HOUSE.service, request, grant=HOUSE.grant())

    @get("/dropped")
    async def dropped(request: Request[Any, Any, State]) -> str:
        grant = Grant(channels="c", slot_key="k")
        await for_litestar.sse_streaming_response(HOUSE.service, request, grant=grant)
        return "something else"

    return Litestar([route, dropped])  # type: ignore[return-value]


APPS: dict[str, Callable[[], ASGIApp]] = {
    "django": django_app,
    "quart": quart_app,
    "litestar": litestar_app,
}


@pytest.fixture(params=APPS)
def app(request: pytest.FixtureRequest) -> Iterator[ASGIApp]:
    global HOUSE
    HOUSE = House("c", "d")
    configure()
    with override_settings(ROOT_URLCONF=__name__):
        yield APPS[request.param]()


async def until_free() -> None:
    await until(lambda: HOUSE.slots.held("k") == 0, within=1)


async def test_a_route_streams_refuses_and_frees_its_slot(app: ASGIApp) -> None:
    async with Client(app) as client:
        async with client.open("/route") as stream:
            await stream.next_event(control=True)
            await HOUSE.broker.publish("d", "hello")
            assert (await stream.next_event()).data == "hello"
            refused = await client.request("GET", "/route")
            assert (refused.status, refused.headers["retry-after"]) == (429, "5")
        await until_free()
    assert stream.headers["content-type"] == "text/event-stream"
    assert stream.headers["cache-control"] == "no-cache, no-transform"
    assert stream.headers["x-accel-buffering"] == "no"
    assert "content-length" not in stream.headers
    await HOUSE.service.aclose()


async def test_an_absent_broker_is_a_503_without_internals(app: ASGIApp) -> None:
    HOUSE.broker.fail_subscribe(BrokerUnavailableError("the password is secret"))
    async with Client(app) as client:
        answer = await client.request("GET", "/route")
    assert (answer.status, answer.headers["retry-after"]) == (503, "5")
    assert b"secret" not in answer.body
    assert HOUSE.slots.held("k") == 0
    await HOUSE.service.aclose()


async def test_a_grant_that_has_expired_is_a_401(app: ASGIApp) -> None:
    HOUSE.expires_at = time.time() - 1
    async with Client(app) as client:
        answer = await client.request("GET", "/route")
    assert answer.status == 401
    assert "retry-after" not in answer.headers
    assert b"The login has expired." in answer.body
    await HOUSE.service.aclose()


async def test_a_process_that_is_ending_tells_its_clients_to_come_back(app: ASGIApp) -> None:
    async with Client(app) as client:
        async with client.open("/route") as stream:
            await stream.next_event(control=True)
        await HOUSE.service.aclose()
        async with client.open("/route") as refused:
            event = await refused.next_event(name="livepush.refused")
            await refused.wait_ended()
    assert (refused.status, json.loads(event.data)["reason"]) == (200, "drain")
    assert refused.headers["content-type"] == "text/event-stream"
    assert refused.headers["cache-control"] == "no-cache, no-transform"
    assert HOUSE.service.statistics()["refused"][RefusalCause.DRAIN] == 1


@pytest.mark.parametrize(("header", "query"), [("~", ""), (None, "last_event_id=~")], ids=["header", "query"])
async def test_a_client_that_comes_back_is_told_what_it_may_have_missed(
    app: ASGIApp, header: str | None, query: str
) -> None:
    async with Client(app) as client, client.open("/route", last_event_id=header, query=query) as stream:
        events = [await stream.next_event(control=True) for _ in range(3)]
    assert [event.event for event in events] == ["livepush.open", "livepush.gap", "livepush.gap"]
    assert [json.loads(event.data)["channel"] for event in events[1:]] == ["c", "d"]
    await HOUSE.service.aclose()


async def test_head_gets_the_headers_and_holds_nothing(app: ASGIApp) -> None:
    async with Client(app) as client:
        answer = await client.request("HEAD", "/route")
    # Litestar answers it only where a handler says so, and then without asking for a body.
    assert (answer.status, answer.body) == (200, b"") or answer.status == 405
    assert HOUSE.slots.held("k") == 0
    await HOUSE.service.aclose()


async def test_a_response_that_is_dropped_gives_its_slot_back(app: ASGIApp) -> None:
    async with Client(app) as client:
        assert (await client.request("GET", "/dropped")).body == b"something else"
        gc.collect()
        await until_free()
    await HOUSE.service.aclose()


async def test_quarts_response_timeout_does_not_end_a_stream() -> None:
    global HOUSE
    HOUSE = House("c", "d")
    async with Client(quart_app()) as client, client.open("/route") as stream:
        await stream.next_event(control=True)
        start = time.monotonic()
        with pytest.raises(TimeoutError):
            # Three times the timeout that the application has.
            await stream.next_event(0.6)
        assert time.monotonic() - start >= 0.6
        await HOUSE.broker.publish("c", "still here")
        assert (await stream.next_event()).data == "still here"
    await HOUSE.service.aclose()


async def test_litestars_dependencies_end_before_the_stream_begins() -> None:
    global HOUSE
    HOUSE = House("c", "d")
    async with Client(litestar_app()) as client, client.open("/route") as stream:
        await stream.next_event(control=True)
        assert HOUSE.log == ["opened", "closed"]
    await HOUSE.service.aclose()


async def test_litestars_own_headers_cookies_and_tasks_are_kept() -> None:
    global HOUSE
    HOUSE = House("c", "d")

    async def afterwards() -> None:
        HOUSE.log.append("background")

    @get("/route", response_headers={"x-layer": "kept"})
    async def route(request: Request[Any, Any, State]) -> for_litestar.EventStreamResponse:
        response = await for_litestar.sse_streaming_response(
            HOUSE.service, request, channel="c", slot_key="k"
        )
        response.headers["x-own"] = "kept"
        response.set_cookie("seen", "yes")
        response.background = BackgroundTask(afterwards)
        return response

    async with Client(Litestar([route])) as client, client.open("/route") as stream:  # type: ignore[arg-type]
        await stream.next_event(control=True)
        await HOUSE.service.aclose()
        assert await stream.wait_ended() == "drain"
        assert HOUSE.log == ["background"]
    assert [stream.headers[name] for name in ("x-layer", "x-own")] == ["kept", "kept"]
    assert stream.headers["set-cookie"].startswith("seen=yes")


async def test_litestar_answers_a_head_where_a_handler_says_so() -> None:
    global HOUSE
    HOUSE = House("c", "d")

    @route_handler("/route", http_method=[HttpMethod.GET, HttpMethod.HEAD])
    async def route(request: Request[Any, Any, State]) -> for_litestar.EventStreamResponse:
        return await for_litestar.sse_streaming_response(HOUSE.service, request, channel="c", slot_key="k")

    async with Client(Litestar([route])) as client:  # type: ignore[arg-type]
        answer = await client.request("HEAD", "/route")
        assert (answer.status, answer.body) == (200, b"")
        assert answer.headers["content-type"] == "text/event-stream"
        assert HOUSE.slots.held("k") == 0
    await HOUSE.service.aclose()


@pytest.mark.parametrize("name", ["Starlette", "FastAPI", "Django", "Quart", "Litestar"])
def test_a_missing_framework_is_named_with_its_remedy(name: str) -> None:
    program = f"""
import sys
sys.modules["{name.lower()}"] = None
import livepush_asgi.contrib
try:
    import livepush_asgi.contrib.{name.lower()}
except ImportError as error:
    assert str(error) == "this needs {name}: pip install 'livepush_asgi[{name.lower()}]'", error
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, check=True)
