"""Starlette: an event stream as the response of a route."""

from collections.abc import AsyncIterable, Awaitable
from typing import Unpack

try:
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import StreamingResponse
    from starlette.types import Receive, Scope, Send
except ModuleNotFoundError as error:
    raise ImportError("this needs Starlette: pip install 'livepush_asgi[starlette]'") from error

from ..app.generator import SourceTerms, open_source
from ..app.service import refusal_headers
from ..grant import Refusal
from .route import CONTENT_TYPE, RouteStream, StreamService, StreamTerms, open_for_route


class EventStreamResponse(StreamingResponse):
    """A response that sends its stream as raw ASGI, past Starlette's iteration.

    A caller that takes `body_iterator` instead gets the same bytes. Headers and background tasks work as for
    any other response.
    """

    media_type = CONTENT_TYPE

    def __init__(self, stream: RouteStream, status_code: int = 200) -> None:
        # FastAPI's OpenAPI document takes the status from this signature.
        super().__init__(stream.body, status_code, stream.headers)
        # Starlette would add a charset; the standard knows UTF-8 only.
        self.headers["content-type"] = self.media_type
        self.stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream."""
        await self.stream.body.respond(receive, send, self.raw_headers)
        if self.background is not None:
            await self.background()


async def sse_streaming_response(
    service: StreamService, request: Request, **terms: Unpack[StreamTerms]
) -> EventStreamResponse:
    """Open a stream and return it as the response of a route.

    The terms are a `channel` (and a `slot_key`), a `grant`, or an `authorize`: see StreamTerms. Raises
    HTTPException: 429 when the cap is full, 503 when the slots or the broker are away, 401 for a grant that
    has expired, or what `authorize` refuses with. A soft refusal is a response.
    """
    return await _response(open_for_route(service, request.scope, **terms))


async def event_stream_response(
    request: Request, source: AsyncIterable[object], **terms: Unpack[SourceTerms]
) -> EventStreamResponse:
    """Return the events of an async iterator as the response of a route, without a broker.

    `source` yields Events, or data for one as `publish` takes it: `yield {"n": 1}` sends JSON. It runs no
    further than the client takes: while a send waits, it produces one event more. It is closed when it ends
    or raises, when the client leaves or takes nothing for `Timing.send_timeout`, and in a drain. Its
    `finally` may then await for 3 seconds. For the terms (`push`, `slot_key`, `expires_at`,
    `control_events`) see SourceTerms. Raises HTTPException: 429 when the cap is full, 503 when the slots are
    away, 401 for `expires_at` in the past. A soft refusal is a response.
    """
    return await _response(open_source(request.scope, source, **terms))


async def _response(opening: Awaitable[RouteStream]) -> EventStreamResponse:
    try:
        stream = await opening
    except Refusal as refusal:
        raise HTTPException(refusal.status, refusal.detail, refusal_headers(refusal)) from refusal
    return EventStreamResponse(stream)
