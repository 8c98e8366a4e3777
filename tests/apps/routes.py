"""The application of the tests with real servers, its stream behind what hides the server from the component.

That is a route of the framework that the environment names in ROUTE, or a middleware with a `receive` of its
own, one of which also names another address.
"""

import os
from collections.abc import Callable

from livepush_asgi.runtime.asgi import ASGIApp, Message, Receive, Scope, Send

from .push import app as push_app
from .push import push, rest

CHANNEL = "c"


def behind_a_middleware() -> ASGIApp:
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Mount

    async def pass_through(request: Request, call_next: RequestResponseEndpoint) -> Response:
        return await call_next(request)

    middleware = [Middleware(BaseHTTPMiddleware, dispatch=pass_through)]
    return Starlette(routes=[Mount("/", app=push_app)], middleware=middleware)


def forwarded() -> ASGIApp:
    async def with_another_address(scope: Scope, receive: Receive, send: Send) -> None:
        async def receive_here() -> Message:
            return await receive()

        await push_app({**scope, "client": ("203.0.113.9", 0)}, receive_here, send)

    return with_another_address


def starlette() -> ASGIApp:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    from livepush_asgi.contrib.starlette import sse_streaming_response

    async def events(request: Request) -> Response:
        return await sse_streaming_response(push, request, channel=CHANNEL)

    return Starlette(routes=[Route("/events", events)])


def quart() -> ASGIApp:
    from quart import Quart, Response, request

    from livepush_asgi.contrib.quart import sse_streaming_response

    served = Quart(__name__)

    @served.get("/events")
    async def events() -> Response:
        return await sse_streaming_response(push, request, channel=CHANNEL)

    # It and Litestar spell out every message, and so differ from ASGI's plain mappings.
    return served  # type: ignore[return-value]


def litestar() -> ASGIApp:
    from litestar import Litestar, Request, get
    from litestar.datastructures import State

    from livepush_asgi.contrib.litestar import EventStreamResponse, sse_streaming_response

    @get("/events")
    async def events(request: Request[object, object, State]) -> EventStreamResponse:
        return await sse_streaming_response(push, request, channel=CHANNEL)

    return Litestar([events])  # type: ignore[return-value]


def django() -> ASGIApp:
    from django.conf import settings
    from django.core.asgi import get_asgi_application
    from django.http import HttpRequest, HttpResponseBase
    from django.urls import path

    from livepush_asgi.contrib.django import sse_streaming_response

    async def events(request: HttpRequest) -> HttpResponseBase:
        return await sse_streaming_response(push, request, channel=CHANNEL)

    settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF=(path("events", events),), SECRET_KEY="for tests")
    application = get_asgi_application()

    async def without_lifespan(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise ValueError("Django knows no lifespan")
        await application(scope, receive, send)

    return without_lifespan


ROUTES: dict[str, Callable[[], ASGIApp]] = {
    "middleware": behind_a_middleware,
    "forwarded": forwarded,
    "starlette": starlette,
    "quart": quart,
    "litestar": litestar,
    "django": django,
}
served = ROUTES[os.environ.get("ROUTE", "middleware")]()


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    await (rest if scope.get("path") == "/statistics" else served)(scope, receive, send)
