"""The application of the doctor's tests. Each path is a stream, or a way not to be one."""

import asyncio
import os
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from livepush_asgi import (
    Cors,
    Grant,
    LivePush,
    LivePushMiddleware,
    MemoryBroker,
    Refusal,
    StreamRequest,
    Timing,
    public,
)
from livepush_asgi.grant import Authorize
from livepush_asgi.http.probe import ProbeRule

PAGE = "<!doctype html><form>Name <input> Password <input type=password></form>"
ALLOWED = "https://app.example"


def members(request: StreamRequest) -> Grant:
    if request.headers.get("authorization") != "Bearer me":
        raise Refusal(401, "Who are you?")
    return Grant(channels="news")


def full(request: StreamRequest) -> Grant:
    raise Refusal(429, "Come back later.", soft=True)


def stream(authorize: Authorize, probe: ProbeRule | None = lambda request: True) -> LivePush:
    heartbeat = float(os.environ.get("HEARTBEAT", "15"))
    return LivePush(
        MemoryBroker(),
        authorize,
        timing=Timing(heartbeat_interval=heartbeat),
        cors=Cors({ALLOWED}, credentials=True),
        probe=probe,
    )


def page(request: Request) -> Response:
    return HTMLResponse(PAGE)


def to_login(request: Request) -> Response:
    return RedirectResponse("/login")


def around(request: Request) -> Response:
    return RedirectResponse("/around")


def broken(request: Request) -> Response:
    return PlainTextResponse("Bad Gateway", 502)


async def somebody_elses(request: Request) -> Response:
    async def body() -> AsyncIterator[bytes]:
        yield b"data: hello\n\n"
        await asyncio.sleep(60)

    return StreamingResponse(body(), media_type="text/event-stream")


routes = [
    Route("/login", page),
    Route("/old", to_login),
    Route("/around", around),
    Route("/broken", broken),
    Route("/foreign", somebody_elses),
    Mount("/mounted", stream(public("news"))),
    # A middleware that compresses whatever it gets, as Starlette's did before it knew event streams.
    Mount("/compressed", GZipMiddleware(stream(public("news")), minimum_size=0, exclude_content_types=())),
    # As it is today.
    Mount("/spared", GZipMiddleware(stream(public("news")), minimum_size=0)),
    Mount("/unprobed", stream(public("news"), None)),
    Mount("/deaf", stream(public("news"), lambda request: False)),
    Mount("/members", stream(members, members)),
    Mount("/deaf-members", stream(members, lambda request: False)),
    Mount("/full", stream(full, None)),
]
app = LivePushMiddleware(Starlette(routes=routes), stream(public("news")), path="/events")
