"""FastAPI: an event stream as the response of a path operation, after its dependencies have ended."""

from contextlib import AsyncExitStack
from typing import Unpack

try:
    from fastapi import HTTPException, Request
except ModuleNotFoundError as error:
    raise ImportError("this needs FastAPI: pip install 'livepush_asgi[fastapi]'") from error

from starlette.types import Receive, Scope, Send

from ..grant import Refusal
from .route import StreamService, StreamTerms, open_for_route, refusal_headers
from .starlette import EventStreamResponse as StarletteResponse


class EventStreamResponse(StarletteResponse):
    """A response that ends the request's `yield` dependencies before its stream begins.

    `@app.get("/stream", response_class=EventStreamResponse)` has the OpenAPI document say that the path
    operation answers with `text/event-stream`.

    FastAPI keeps them open until a response was sent, so a database session would be held for as long as
    its stream lives. https://fastapi.tiangolo.com/tutorial/dependencies/dependencies-with-yield/
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
    try:
        stream = await open_for_route(service, request.scope, **terms)
    except Refusal as refusal:
        raise HTTPException(refusal.status, refusal.detail, refusal_headers(refusal)) from refusal
    return EventStreamResponse(stream)
