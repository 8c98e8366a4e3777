"""The application of `app.py` where people mount it: in frameworks, behind middleware, and in their routes.

`APPLICATIONS` has all of them, in the order of the table.
"""

from benchmarks import frameworks
from benchmarks.app import plain, push
from benchmarks.frameworks import Application
from livepush_asgi import LivePushMiddleware
from livepush_asgi.runtime.asgi import AnyASGIApp, Receive, Scope, Send


def middleware() -> AnyASGIApp:
    return LivePushMiddleware(plain, push)


def around_fastapi() -> AnyASGIApp:
    return LivePushMiddleware(frameworks.fastapi(push.publish), push)


def around_django() -> AnyASGIApp:
    return LivePushMiddleware(frameworks.django(push.publish), push)


def around_quart() -> AnyASGIApp:
    return LivePushMiddleware(frameworks.quart(push.publish), push)  # type: ignore[arg-type]


def around_litestar() -> AnyASGIApp:
    return LivePushMiddleware(frameworks.litestar(push.publish), push)


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

    app = FastAPI(lifespan=push.lifespan)
    app.mount("/events", push)
    app.mount("/", plain)
    frameworks.add_five_middleware(app)
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


def starlette_route() -> AnyASGIApp:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Mount, Route

    from livepush_asgi.contrib.starlette import sse_streaming_response

    async def events(request: Request) -> Response:
        return await sse_streaming_response(push, request, channel="c")

    return Starlette(routes=[Route("/events", events), Mount("/", plain)], lifespan=push.lifespan)


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
    from quart import Response, request

    from livepush_asgi.contrib.quart import sse_streaming_response

    app = frameworks.quart(push.publish)

    @app.get("/events")
    async def events() -> Response:
        return await sse_streaming_response(push, request, channel="c")

    return running(app)  # type: ignore[arg-type]


def django_view() -> AnyASGIApp:
    from django.http import HttpRequest, HttpResponseBase
    from django.urls import path

    from livepush_asgi.contrib.django import sse_streaming_response

    async def events(request: HttpRequest) -> HttpResponseBase:
        return await sse_streaming_response(push, request, channel="c")

    return running(frameworks.django(push.publish, path("events", events)))


def running(app: AnyASGIApp) -> AnyASGIApp:
    """Return an application that starts `push` and stops it, and whose streams are all `app`'s own."""
    return LivePushMiddleware(app, push, "/unused")


APPLICATIONS = (
    Application("LivePushMiddleware", middleware),
    Application("around FastAPI", around_fastapi),
    Application("around Django", around_django),
    Application("around Quart", around_quart),
    Application("around Litestar", around_litestar),
    Application("mounted in Starlette", starlette_mount, "/events/"),
    Application("mounted in FastAPI", fastapi_mount, "/events/"),
    Application("behind five middleware", fastapi_stack, "/events/"),
    Application("route of Starlette", starlette_route),
    Application("route of FastAPI", fastapi_route),
    Application("route of Litestar", litestar_route),
    Application("view of Quart", quart_view),
    Application("view of Django", django_view),
)
