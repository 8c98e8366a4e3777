"""FastAPI: an event stream as the response of a path operation, after its dependencies have ended."""

from collections.abc import AsyncIterable, Awaitable
from contextlib import AsyncExitStack
from typing import Unpack

try:
    from fastapi import HTTPException, Request
except ModuleNotFoundError as error:
    raise ImportError("this needs FastAPI: pip install 'livepush_asgi[fastapi]'") from error

from starlette.types import Receive, Scope, Send

from ..app.generator import SourceTerms, open_source
from ..app.service import refusal_headers
from ..grant import Refusal
from .route import RouteStream, StreamService, StreamTerms, open_for_route
from .starlette import EventStreamResponse as StarletteResponse


class EventStreamResponse(StarletteResponse):
    """A response that ends the request's `yield` dependencies before its stream begins.

    FastAPI keeps them open until a response was sent, so a database session would be held for as long as
    its stream lives. https://fastapi.tiangolo.com/tutorial/dependencies/dependencies-with-yield/

    `@app.get("/stream", response_class=EventStreamResponse)` has the OpenAPI document say that the path
    operation answers with `text/event-stream`.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """End the dependencies, then send the stream."""
        dependencies = scope.get("fastapi_inner_astack")
        if isinstance(dependencies, AsyncExitStack):
            try:
                await dependencies.aclose()
            except BaseException:
                await self.stream.body.aclose()
                raise
        await super().__call__(scope, receive, send)


async def sse_streaming_response(
    service: StreamService, request: Request, **terms: Unpack[StreamTerms]
) -> EventStreamResponse:
    """Open a stream and return it as the response of a path operation.

    The terms are a `channel` (and a `slot_key`), a `grant`, or an `authorize`: see StreamTerms. Raises
    HTTPException: 429 when the cap is full, 503 when the slots or the broker are away, 401 for a grant that
    has expired, or what `authorize` refuses with. A soft refusal is a response.
    """
    return EventStreamResponse(await _opened(open_for_route(service, request.scope, **terms)))


async def event_stream_response(
    request: Request, source: AsyncIterable[object], **terms: Unpack[SourceTerms]
) -> StarletteResponse:
    """Return the events of an async iterator as the response of a path operation, without a broker.

    `source` yields Events, or data for one as `publish` takes it: `yield {"n": 1}` sends JSON. It runs no
    further than the client takes: while a send waits, it produces one event more. It is closed when it ends
    or raises, when the client leaves or takes nothing for `Timing.send_timeout`, and in a drain. Its
    `finally` may then await for 3 seconds. For the terms (`push`, `slot_key`, `expires_at`,
    `control_events`) see SourceTerms. Raises HTTPException: 429 when the cap is full, 503 when the slots are
    away, 401 for `expires_at` in the past. A soft refusal is a response. The request's `yield` dependencies
    end after the source was closed, so that it may use them.
    """
    return StarletteResponse(await _opened(open_source(request.scope, source, **terms)))


async def _opened(opening: Awaitable[RouteStream]) -> RouteStream:
    try:
        return await opening
    except Refusal as refusal:
        raise HTTPException(refusal.status, refusal.detail, refusal_headers(refusal)) from refusal
