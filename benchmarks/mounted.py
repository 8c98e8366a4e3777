"""The application of `app.py` where people mount it: in frameworks, behind middleware, and in their routes.

Each attribute is one application, made when a server asks for it: `benchmarks.mounted:fastapi_mount`.
"""

from collections.abc import Callable

from benchmarks.app import plain, push
from livepush_asgi import LivePushMiddleware
from livepush_asgi.runtime.asgi import AnyASGIApp, Receive, Scope, Send


def middleware() -> AnyASGIApp:
    return LivePushMiddleware(plain, push)


def fastapi_mount() -> AnyASGIApp:
    from fastapi import FastAPI

    app = FastAPI(lifespan=push.lifespan)
    app.mount("/events", push)
    app.mount("/", plain)
    return app


def starlette_mount() -> AnyASGIApp:
    from starlette.applications import Starlette

    app = Starlette(lifespan=push.lifespan)
    app.mount("/events", push)
    app.mount("/", plain)
    return app


def fastapi_stack() -> AnyASGIApp:
    """The mount behind the middleware that applications usually have."""
    from fastapi import FastAPI
    from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
    from starlette.middleware.cors import CORSMiddleware
    from starlette.middleware.gzip import GZipMiddleware
    from starlette.middleware.sessions import SessionMiddleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import Request
    from starlette.responses import Response

    async def pass_on(request: Request, call_next: RequestResponseEndpoint) -> Response:
        return await call_next(request)

    app = FastAPI(lifespan=push.lifespan)
    app.mount("/events", push)
    app.mount("/", plain)
    app.add_middleware(BaseHTTPMiddleware, dispatch=pass_on)
    app.add_middleware(GZipMiddleware)
    app.add_middleware(SessionMiddleware, secret_key="secret")
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["*"])
    app.add_middleware(CORSMiddleware, allow_origins=["*"])
    return app


def fastapi_route() -> AnyASGIApp:
    from fastapi import FastAPI, Request
    from starlette.responses import Response

    from livepush_asgi.contrib.fastapi import sse_streaming_response

    app = FastAPI(lifespan=push.lifespan)

    @app.get("/events")
    async def events(request: Request) -> Response:
        return await sse_streaming_response(push, request, channel="c")

    app.mount("/", plain)
    return app


def litestar_route() -> AnyASGIApp:
    from litestar import Litestar, Request, Response, asgi, get

    from livepush_asgi.contrib.litestar import sse_streaming_response

    @get("/events")
    async def events(request: Request) -> Response:  # type: ignore[type-arg]
        return await sse_streaming_response(push, request, channel="c")

    @asgi("/pub", is_mount=True, copy_scope=True)
    async def pub(scope: Scope, receive: Receive, send: Send) -> None:
        await plain({**scope, "path": "/pub"}, receive, send)

    return Litestar([events, pub], lifespan=[push.lifespan])  # type: ignore[return-value]


def quart_view() -> AnyASGIApp:
    from quart import Quart, Response, request

    from livepush_asgi.contrib.quart import sse_streaming_response

    app = Quart(__name__)

    @app.get("/events")
    async def events() -> Response:
        return await sse_streaming_response(push, request, channel="c")

    return with_plain(app.asgi_app)  # type: ignore[arg-type]


def django_view() -> AnyASGIApp:
    from django.conf import settings
    from django.core.asgi import get_asgi_application
    from django.http import HttpRequest, HttpResponseBase
    from django.urls import path

    from livepush_asgi.contrib.django import sse_streaming_response

    async def events(request: HttpRequest) -> HttpResponseBase:
        return await sse_streaming_response(push, request, channel="c")

    settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF=(path("events", events),), SECRET_KEY="secret")
    return with_plain(get_asgi_application())


def with_plain(app: AnyASGIApp) -> AnyASGIApp:
    """Return an application that publishes at `/pub`, runs `push`, and passes on the rest to `app`."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        is_own = scope["type"] == "http" and scope["path"] == "/pub"
        await (plain if is_own else app)(scope, receive, send)  # type: ignore[arg-type]

    return LivePushMiddleware(serve, push, "/unused")


#: The label, the name and the path of each application.
MOUNTED = (
    ("LivePushMiddleware", "middleware", "/events"),
    ("mounted in Starlette", "starlette_mount", "/events/"),
    ("mounted in FastAPI", "fastapi_mount", "/events/"),
    ("behind five middleware", "fastapi_stack", "/events/"),
    ("route of FastAPI", "fastapi_route", "/events"),
    ("route of Litestar", "litestar_route", "/events"),
    ("view of Quart", "quart_view", "/events"),
    ("view of Django", "django_view", "/events"),
)
APPLICATIONS: dict[str, Callable[[], AnyASGIApp]] = {
    made.__name__: made
    for made in (
        middleware,
        starlette_mount,
        fastapi_mount,
        fastapi_stack,
        fastapi_route,
        litestar_route,
        quart_view,
        django_view,
    )
}


def __getattr__(name: str) -> AnyASGIApp:
    if name not in APPLICATIONS:
        raise AttributeError(name)
    return APPLICATIONS[name]()
