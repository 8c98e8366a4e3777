"""Applications of frameworks that have one small route, `GET /pub`, and what people put in front of them."""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.traffic import Publish, start_publishing
from livepush_asgi.runtime.asgi import AnyASGIApp

if TYPE_CHECKING:
    from django.urls import URLPattern
    from fastapi import FastAPI
    from quart import Quart


class Application(NamedTuple):
    """An application under load: its label in a table, the function that makes it, the path of its stream."""

    label: str
    make: Callable[[], AnyASGIApp]
    path: str = "/events"

    @property
    def environment(self) -> dict[str, str]:
        """What `benchmarks.made` reads."""
        return {"APPLICATION": f"{self.make.__module__}:{self.make.__name__}"}


def fastapi(publish: Publish) -> "FastAPI":
    from fastapi import FastAPI, Request

    app = FastAPI()

    @app.get("/pub")
    async def pub(request: Request) -> str:
        start_publishing(publish, request.query_params)
        return "ok"

    return app


def django(publish: Publish, *urls: "URLPattern") -> AnyASGIApp:
    from django.conf import settings
    from django.core.asgi import get_asgi_application
    from django.http import HttpRequest, HttpResponse
    from django.urls import path

    async def pub(request: HttpRequest) -> HttpResponse:
        start_publishing(publish, request.GET)
        return HttpResponse("ok")

    own = (path("pub", pub), *urls)
    settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF=own, SECRET_KEY="secret", USE_TZ=True)
    return get_asgi_application()  # type: ignore[no-any-return]


def quart(publish: Publish) -> "Quart":
    from quart import Quart, request

    app = Quart(__name__)

    @app.get("/pub")
    async def pub() -> str:
        start_publishing(publish, request.args)
        return "ok"

    return app


def litestar(publish: Publish) -> AnyASGIApp:
    from litestar import Litestar, Request, get

    @get("/pub")
    async def pub(request: Request) -> str:  # type: ignore[type-arg]
        start_publishing(publish, request.query_params)
        return "ok"

    return Litestar([pub])  # type: ignore[return-value]


def add_five_middleware(app: "FastAPI") -> None:
    """Put the middleware in front that applications usually have."""
    from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
    from starlette.middleware.cors import CORSMiddleware
    from starlette.middleware.gzip import GZipMiddleware
    from starlette.middleware.sessions import SessionMiddleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import Request
    from starlette.responses import Response

    async def pass_on(request: Request, call_next: RequestResponseEndpoint) -> Response:
        return await call_next(request)

    app.add_middleware(BaseHTTPMiddleware, dispatch=pass_on)
    app.add_middleware(GZipMiddleware)
    app.add_middleware(SessionMiddleware, secret_key="secret")
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["*"])
    app.add_middleware(CORSMiddleware, allow_origins=["*"])
