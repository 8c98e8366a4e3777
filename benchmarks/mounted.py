"""The application of `app.py` where people mount it: in frameworks, behind middleware, and in their routes.

Each attribute is one application, made when a server asks for it: `benchmarks.mounted:fastapi_mount`.
"""

from collections.abc import Callable

from benchmarks.app import plain, push
from livepush_asgi import LivePushMiddleware
from livepush_asgi.runtime.asgi import AnyASGIApp


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
    from livepush_asgi.runtime.asgi import Receive, Scope, Send

    @get("/events")
    async def events(request: Request) -> Response:  # type: ignore[type-arg]
        return await sse_streaming_response(push, request, channel="c")

    @asgi("/pub", is_mount=True, copy_scope=True)
    async def pub(scope: Scope, receive: Receive, send: Send) -> None:
        await plain({**scope, "path": "/pub"}, receive, send)

    return Litestar([events, pub], lifespan=[push.lifespan])  # type: ignore[return-value]


APPLICATIONS: dict[str, Callable[[], AnyASGIApp]] = {
    made.__name__: made
    for made in (middleware, fastapi_mount, starlette_mount, fastapi_stack, fastapi_route, litestar_route)
}


def __getattr__(name: str) -> AnyASGIApp:
    if name not in APPLICATIONS:
        raise AttributeError(name)
    return APPLICATIONS[name]()
