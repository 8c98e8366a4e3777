"""The application of the tests with real servers whose streams come from generators.

`GET /events?kind=ticking` is a stream of the framework that ROUTE names, or of none. Without `push=0` it is
one of the LivePush of `push.py`. `GET /generators` tells what became of the generators; each that was closed
writes a line to the log.
"""

import asyncio
import json
import os
from collections.abc import AsyncGenerator, Callable
from urllib.parse import parse_qs

import anyio

from livepush_asgi import send_event_stream
from livepush_asgi.runtime.asgi import ASGIApp, Receive, Scope, Send

from .push import numbers, push, rest

KINDS = ("ticking", "silent", "endless", "failing")
counts = {"running": 0, "closed": 0, "produced": 0}


async def generate(kind: str) -> AsyncGenerator[str]:
    counts["running"] += 1
    try:
        while True:
            counts["produced"] += 1
            yield "x" * 1000
            if kind == "ticking":
                await anyio.sleep(0.01)
            elif kind == "silent":
                await anyio.sleep_forever()
            elif kind == "failing":
                raise ValueError("as it was told")
    finally:
        counts["running"] -= 1
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.01)
        counts["closed"] += 1
        print("a generator was closed", flush=True)


async def raw(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        raise ValueError("this application knows nothing but HTTP")
    query = {name: values[-1] for name, values in parse_qs(scope["query_string"].decode()).items()}
    # The client of `visit.reader` names no kind, and waits for the open event.
    control_events = "kind" not in query
    source = generate(query.get("kind", "endless"))
    if query.get("push") == "0":
        await send_event_stream(scope, receive, send, source, control_events=control_events)
    else:
        await send_event_stream(
            scope, receive, send, source, push=push, slot_key="k", control_events=control_events
        )


def starlette() -> ASGIApp:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    from livepush_asgi.contrib.starlette import event_stream_response

    async def events(request: Request) -> Response:
        return await event_stream_response(request, generate(request.query_params["kind"]), push=push)

    return Starlette(routes=[Route("/events", events)])


def fastapi() -> ASGIApp:
    from fastapi import FastAPI, Request
    from starlette.responses import Response

    from livepush_asgi.contrib.fastapi import event_stream_response

    served = FastAPI()

    @served.get("/events")
    async def events(request: Request, kind: str) -> Response:
        return await event_stream_response(request, generate(kind), push=push)

    @served.post("/ask")
    async def ask(request: Request, question: dict[str, str]) -> Response:
        return await event_stream_response(request, generate(question["kind"]), push=push)

    return served


def behind_a_middleware() -> ASGIApp:
    from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
    from starlette.requests import Request
    from starlette.responses import Response

    async def pass_through(request: Request, call_next: RequestResponseEndpoint) -> Response:
        return await call_next(request)

    return BaseHTTPMiddleware(starlette(), dispatch=pass_through)


def quart() -> ASGIApp:
    from quart import Quart, Response, request

    from livepush_asgi.contrib.quart import event_stream_response

    served = Quart(__name__)

    @served.get("/events")
    async def events() -> Response:
        return await event_stream_response(request, generate(request.args["kind"]), push=push)

    # It and Litestar spell out every message, and so differ from ASGI's plain mappings.
    return served  # type: ignore[return-value]


def litestar() -> ASGIApp:
    from litestar import Litestar, Request, get
    from litestar.datastructures import State

    from livepush_asgi.contrib.litestar import EventStreamResponse, event_stream_response

    @get("/events")
    async def events(request: Request[object, object, State], kind: str) -> EventStreamResponse:
        return await event_stream_response(request, generate(kind), push=push)

    return Litestar([events])  # type: ignore[return-value]


def django() -> ASGIApp:
    from django.conf import settings
    from django.core.asgi import get_asgi_application
    from django.http import HttpRequest, HttpResponseBase
    from django.urls import path

    from livepush_asgi.contrib.django import event_stream_response

    async def events(request: HttpRequest) -> HttpResponseBase:
        return await event_stream_response(request, generate(request.GET["kind"]), push=push)

    settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF=(path("events", events),), SECRET_KEY="for tests")
    application: ASGIApp = get_asgi_application()
    return application


ROUTES: dict[str, Callable[[], ASGIApp]] = {
    "starlette": starlette,
    "middleware": behind_a_middleware,
    "fastapi": fastapi,
    "quart": quart,
    "litestar": litestar,
    "django": django,
}
served = ROUTES[os.environ["ROUTE"]]() if "ROUTE" in os.environ else raw


async def tell(send: Send) -> None:
    try:
        tasks = len(asyncio.all_tasks())
    except RuntimeError:
        tasks = 0
    found = numbers()
    content = json.dumps(
        {**counts, "tasks": tasks, "streams": found["streams"], "resident_kib": found["resident_kib"]}
    ).encode()
    headers = [(b"content-length", str(len(content)).encode()), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": content})


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        raise ValueError("this application knows nothing but HTTP")
    if scope["path"] == "/generators":
        await tell(send)
    else:
        await (rest if scope["path"] == "/statistics" else served)(scope, receive, send)
