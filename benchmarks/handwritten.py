"""The floor where people write it by hand: behind middleware, in a route, in a view.

Each shows what the framework costs in that place, with the component or without it.
"""

from collections.abc import AsyncIterator

from benchmarks import floor, frameworks
from benchmarks.frameworks import Application
from livepush_asgi.runtime.asgi import AnyASGIApp


async def blocks() -> AsyncIterator[bytes]:
    """Yield what is published to one client from now on, as the body of a response."""
    client = floor.Client()
    floor.clients.setdefault("c", set()).add(client)
    try:
        yield b":\n"
        while True:
            yield await client.next_block()
    finally:
        floor.clients["c"].discard(client)


def behind_five_middleware() -> AnyASGIApp:
    from fastapi import FastAPI

    app = FastAPI()
    app.mount("/", floor.app)
    frameworks.add_five_middleware(app)
    return app


def in_fastapi() -> AnyASGIApp:
    from fastapi.responses import StreamingResponse

    app = frameworks.fastapi(floor.publish)

    @app.get("/events")
    async def events() -> StreamingResponse:
        return StreamingResponse(blocks(), media_type="text/event-stream")

    return app


def in_quart() -> AnyASGIApp:
    from quart import Response

    app = frameworks.quart(floor.publish)

    @app.get("/events")
    async def events() -> Response:
        response = Response(blocks(), mimetype="text/event-stream")
        response.timeout = None
        return response

    return app  # type: ignore[return-value]


def in_django() -> AnyASGIApp:
    from django.http import HttpRequest, StreamingHttpResponse
    from django.urls import path

    async def events(request: HttpRequest) -> StreamingHttpResponse:
        return StreamingHttpResponse(blocks(), content_type="text/event-stream")

    return frameworks.django(floor.publish, path("events", events))


APPLICATIONS = (
    Application("floor behind five middleware", behind_five_middleware),
    Application("floor in a route of FastAPI", in_fastapi),
    Application("floor in a view of Quart", in_quart),
    Application("floor in a view of Django", in_django),
)
