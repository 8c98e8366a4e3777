"""Starlette's and FastAPI's routes: refusals, dependencies, headers, background tasks, what is around them.

In memory, so on both event loops. Real servers: `test_frameworks.py`.
"""

import gc
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Annotated

import anyio
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, Request
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from livepush_asgi import (
    BrokerUnavailableError,
    Grant,
    LivePush,
    MemoryBroker,
    RefusalCause,
    public,
)
from livepush_asgi.contrib import fastapi as for_fastapi
from livepush_asgi.contrib import starlette as for_starlette
from livepush_asgi.testing import Client
from livepush_asgi.testing import Stream as ClientStream

from .house import House
from .virtual_clock import let_pass


def starlette_app(house: House, *middleware: Middleware) -> ASGIApp:
    async def route(request: Request) -> Response:
        return await for_starlette.sse_streaming_response(house.service, request, grant=house.grant())

    return Starlette(routes=[Route("/route", route)], middleware=middleware)


def fastapi_app(house: House, *middleware: Middleware) -> ASGIApp:
    app = FastAPI(middleware=middleware)

    @app.get("/route")
    async def route(request: Request) -> Response:
        return await for_fastapi.sse_streaming_response(house.service, request, grant=house.grant())

    return app


APPS: dict[str, Callable[..., ASGIApp]] = {"starlette": starlette_app, "fastapi": fastapi_app}


@pytest.fixture(params=APPS)
def make_app(request: pytest.FixtureRequest) -> Callable[..., ASGIApp]:
    return APPS[request.param]


@pytest.fixture
async def house() -> AsyncIterator[House]:
    house = House()
    yield house
    await house.service.aclose()


async def test_a_route_streams_and_a_full_cap_is_a_429(
    make_app: Callable[..., ASGIApp], house: House
) -> None:
    async with Client(make_app(house)) as client, client.open("/route") as stream:
        assert (await stream.next_event(control=True)).event == "livepush.open"
        await house.broker.publish("c", "hello")
        assert (await stream.next_event()).data == "hello"
        refused = await client.request("GET", "/route")
        assert (refused.status, refused.headers["retry-after"]) == (429, "5")
        # Nothing about whose slots they are, and how many.
        assert b"Too many open streams." in refused.body
    assert stream.headers["content-type"] == "text/event-stream"
    assert stream.headers["cache-control"] == "no-cache, no-transform"
    assert stream.headers["x-accel-buffering"] == "no"
    assert house.slots.held("k") == 0


async def test_an_absent_broker_is_a_503(make_app: Callable[..., ASGIApp], house: House) -> None:
    house.broker.fail_subscribe(BrokerUnavailableError("the password is secret"))
    async with Client(make_app(house)) as client:
        answer = await client.request("GET", "/route")
    assert (answer.status, answer.headers["retry-after"]) == (503, "5")
    assert b"secret" not in answer.body
    assert house.slots.held("k") == 0


async def test_a_grant_that_has_expired_is_a_401(make_app: Callable[..., ASGIApp], house: House) -> None:
    house.expires_at = time.time() - 1
    async with Client(make_app(house)) as client:
        answer = await client.request("GET", "/route")
    assert answer.status == 401
    assert "retry-after" not in answer.headers


@pytest.mark.parametrize("channel", ["", "livepush.commands"])
async def test_a_channel_of_the_client_that_names_none_is_a_400(
    channel: str, house: House, caplog: pytest.LogCaptureFixture
) -> None:
    async def route(request: Request) -> Response:
        name = request.query_params["channel"]
        return await for_starlette.sse_streaming_response(house.service, request, channel=name)

    async with Client(Starlette(routes=[Route("/route", route)])) as client:
        answer = await client.request("GET", "/route", query={"channel": channel})
    assert (answer.status, answer.body) == (400, b"The request names no valid channel or key.")
    # Litestar sets the root logger to INFO, in whichever test comes first.
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_route_of_an_ending_process_tells_its_clients_to_come_back(
    make_app: Callable[..., ASGIApp], house: House
) -> None:
    """`EventSource` never comes back after a 503, and the next process would serve it."""
    async with Client(make_app(house)) as client:
        async with client.open("/route") as stream:
            await stream.next_event(control=True)
        await house.service.aclose()
        async with client.open("/route") as refused:
            assert await told(refused) == {"reason": "drain", "status": 503}
    assert refused.status == 200
    assert (refused.retry or 0) >= 1
    assert refused.headers["content-type"] == "text/event-stream"
    assert house.service.statistics()["refused"][RefusalCause.DRAIN] == 1


async def told(refused: ClientStream) -> dict[str, object]:
    event = await refused.next_event(name="livepush.refused")
    await refused.wait_ended()
    data: dict[str, object] = json.loads(event.data)
    return {name: data[name] for name in ("reason", "status")}


@pytest.mark.parametrize("control_events", [True, False])
async def test_a_route_refuses_softly_for_the_causes_that_its_live_push_names(
    house: House, control_events: bool
) -> None:
    push = LivePush(
        house.broker,
        public("c"),
        slots=house.slots,
        control_events=control_events,
        soft_refusals=[RefusalCause.CAP],
    )

    async def route(request: Request) -> Response:
        response = await for_starlette.sse_streaming_response(push, request, channel="c", slot_key="k")
        response.headers["x-own"] = "kept"
        return response

    app = Starlette(routes=[Route("/route", route)], lifespan=push.lifespan)
    async with Client(app, lifespan=True) as client, client.open("/route"), client.open("/route") as refused:
        body = await refused.read_body()
        assert (refused.status, refused.headers["x-own"]) == (200, "kept")
        # A page without it would take the end of the response for the end of an empty stream.
        assert b"event: livepush.refused" in body
        assert 5000 <= int(body.split(b"retry: ")[1].split(b"\n")[0]) <= 7500
    assert push.statistics()["refused"][RefusalCause.CAP] == 1


async def test_a_route_opens_nothing_for_a_grant_that_is_over() -> None:
    push = LivePush(MemoryBroker(), public("c"))

    async def route(request: Request) -> Response:
        over = Grant(channels="c", expires_at=1.0)
        return await for_starlette.sse_streaming_response(push, request, grant=over)

    app = Starlette(routes=[Route("/route", route)], lifespan=push.lifespan)
    async with Client(app, lifespan=True) as client:
        answer = await client.request("GET", "/route")
    assert (answer.status, b"The login has expired." in answer.body) == (401, True)
    statistics = push.statistics()
    assert (statistics["opened"], statistics["refused"][RefusalCause.EXPIRED]) == (0, 1)


@pytest.mark.parametrize(("header", "query"), [("~", ""), (None, "last_event_id=~")], ids=["header", "query"])
async def test_a_client_that_comes_back_to_a_route_is_told_what_it_may_have_missed(
    make_app: Callable[..., ASGIApp], house: House, header: str | None, query: str
) -> None:
    async with (
        Client(make_app(house)) as client,
        client.open("/route", last_event_id=header, query=query) as stream,
    ):
        assert (await stream.next_event(control=True)).event == "livepush.open"
        gap = await stream.next_event(control=True)
        assert (gap.event, json.loads(gap.data)) == ("livepush.gap", {"channel": "c", "reason": "unknown"})


async def test_a_response_that_somebody_drops_gives_its_slot_back(house: House) -> None:
    async def route(request: Request) -> Response:
        await for_starlette.sse_streaming_response(house.service, request, grant=house.grant())
        return PlainTextResponse("never mind")

    async with Client(Starlette(routes=[Route("/route", route)])) as client:
        assert (await client.request("GET", "/route")).body == b"never mind"
        gc.collect()
        await anyio.wait_all_tasks_blocked()
        assert house.slots.held("k") == 0


class PassThrough(BaseHTTPMiddleware):
    """Touches nothing, but hides the disconnect from what is behind it in some releases."""

    async def dispatch(self, request: Request, call_next: object) -> Response:
        assert callable(call_next)
        response: Response = await call_next(request)
        return response


@pytest.mark.parametrize(
    "middleware", [Middleware(PassThrough), Middleware(GZipMiddleware, minimum_size=1)], ids=["base", "gzip"]
)
async def test_middleware_around_a_route_neither_delays_events_nor_hides_the_disconnect(
    make_app: Callable[..., ASGIApp], house: House, middleware: Middleware
) -> None:
    headers = {"accept-encoding": "gzip"}
    async with (
        Client(make_app(house, middleware)) as client,
        client.open("/route", headers=headers) as stream,
    ):
        await stream.next_event(control=True)
        await house.broker.publish("c", "hello")
        assert (await stream.next_event()).data == "hello"
        await stream.disconnect()
        await let_pass(1)
        assert house.slots.held("k") == 0
    assert "content-encoding" not in stream.headers


async def test_head_gets_the_headers_and_holds_nothing(house: House) -> None:
    async with Client(starlette_app(house)) as client:
        answer = await client.request("HEAD", "/route")
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["content-type"] == "text/event-stream"
    assert house.slots.held("k") == 0


async def test_head_of_an_ending_process_has_no_body(house: House) -> None:
    await house.service.aclose()
    async with Client(starlette_app(house)) as client:
        answer = await client.request("HEAD", "/route")
    assert (answer.status, answer.body, answer.headers["content-type"]) == (200, b"", "text/event-stream")


async def test_dependencies_end_before_the_stream_begins(house: House) -> None:
    """A database session of a `yield` dependency must not be held for as long as its stream lives."""
    app = FastAPI()

    async def session() -> AsyncIterator[str]:
        house.log.append("opened")
        yield "user"
        house.log.append("closed")

    async def afterwards() -> None:
        house.log.append("background")

    @app.get("/route")
    async def route(
        request: Request, user: Annotated[str, Depends(session)], background: BackgroundTasks
    ) -> Response:
        house.log.append(user)
        background.add_task(afterwards)
        grant = Grant(channels=["c", "d"], slot_key="k")
        response = await for_fastapi.sse_streaming_response(house.service, request, grant=grant)
        response.headers["x-own"] = "kept"
        response.background = background
        return response

    async with Client(app) as client, client.open("/route") as stream:
        await stream.next_event(control=True)
        assert house.log == ["opened", "user", "closed"]
        await house.broker.publish("d", "hello")
        assert (await stream.next_event()).data == "hello"
    assert stream.headers["x-own"] == "kept"
    assert house.log == ["opened", "user", "closed", "background"]


async def test_a_dependency_that_fails_to_close_costs_no_slot(house: House) -> None:
    app = FastAPI()

    async def session() -> AsyncIterator[None]:
        yield
        raise RuntimeError("the database is gone")

    @app.get("/route")
    async def route(request: Request, _: Annotated[None, Depends(session)]) -> Response:
        return await for_fastapi.sse_streaming_response(house.service, request, channel="c", slot_key="k")

    with pytest.raises(RuntimeError, match="the database is gone"):
        async with Client(app) as client:
            await client.request("GET", "/route")
    assert house.slots.held("k") == 0


async def test_fastapis_response_streams_where_no_dependencies_are_kept(house: House) -> None:
    """In an application of Starlette's, and in a release of FastAPI that keeps them somewhere else."""

    async def route(request: Request) -> Response:
        return await for_fastapi.sse_streaming_response(house.service, request, channel="c", slot_key="k")

    app = Starlette(routes=[Route("/route", route)])
    async with Client(app) as client, client.open("/route") as stream:
        await stream.next_event(control=True)
        await house.broker.publish("c", "hello")
        assert (await stream.next_event()).data == "hello"


async def test_fastapi_still_keeps_its_dependencies_where_they_are_looked_for() -> None:
    """If this fails, a release of FastAPI has moved them: `contrib.fastapi` has to follow."""
    app = FastAPI()

    @app.get("/")
    async def route(request: Request) -> dict[str, bool]:
        return {"there": isinstance(request.scope.get("fastapi_inner_astack"), AsyncExitStack)}

    async with Client(app) as client:
        assert json.loads((await client.request("GET", "/")).body) == {"there": True}


async def test_a_live_push_opens_streams_in_routes_too(house: House) -> None:
    push = LivePush(house.broker, lambda request: Grant(channels="c"), slots=house.slots)

    async def route(request: Request) -> Response:
        return await for_starlette.sse_streaming_response(push, request, channel="c", slot_key="k")

    app = Starlette(routes=[Route("/route", route)], lifespan=push.lifespan)
    async with Client(app, lifespan=True) as client, client.open("/route") as stream:
        await stream.next_event(control=True)
        await push.publish("c", "hello", event="greeting")
        assert (await stream.next_event()).event == "greeting"
        await client.shutdown()
        assert await stream.wait_ended() == "drain"


@pytest.mark.parametrize(
    "arguments",
    [{}, {"channel": "c", "grant": Grant(channels="c")}, {"grant": Grant(channels="c"), "slot_key": "k"}],
    ids=["neither", "both", "a key too"],
)
async def test_a_route_names_a_channel_or_a_grant(house: House, arguments: dict[str, object]) -> None:
    request = Request({"type": "http", "headers": [], "query_string": b""})
    with pytest.raises(TypeError, match="name a channel"):
        await for_starlette.sse_streaming_response(house.service, request, **arguments)  # type: ignore[arg-type]


async def test_a_route_with_an_unknown_term_is_told_those_that_it_takes(house: House) -> None:
    request = Request({"type": "http", "headers": [], "query_string": b""})
    with pytest.raises(TypeError, match="takes no `chanel`; it takes channel, slot_key, grant, authorize"):
        await for_starlette.sse_streaming_response(house.service, request, chanel="c")  # type: ignore[call-arg]


async def test_the_openapi_document_names_the_type_of_a_stream(house: House) -> None:
    app = FastAPI()

    @app.get("/route", response_class=for_fastapi.EventStreamResponse)
    async def route(request: Request) -> Response:
        return await for_fastapi.sse_streaming_response(house.service, request, grant=house.grant())

    responses = app.openapi()["paths"]["/route"]["get"]["responses"]
    assert list(responses) == ["200"]
    assert responses["200"]["content"] == {"text/event-stream": {"schema": {"type": "string"}}}
    async with Client(app) as client:
        assert (await client.request("GET", "/openapi.json")).status == 200
        async with client.open("/route") as stream:
            assert (stream.status, stream.headers["content-type"]) == (200, "text/event-stream")
