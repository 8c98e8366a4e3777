"""Starlette: an event stream as the response of a route."""

from collections.abc import AsyncIterable, Awaitable
from datetime import datetime
from http import HTTPStatus
from typing import Unpack

try:
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import Response, StreamingResponse
    from starlette.types import Receive, Scope, Send
except ModuleNotFoundError as error:
    raise ImportError("this needs Starlette: pip install 'livepush_asgi[starlette]'") from error

from ..app.generator import SourceTerms, open_source
from ..app.livepush import LivePush
from ..app.run import Run
from ..app.service import refusal_headers
from ..grant import Refusal
from .route import CONTENT_TYPE, RouteStream, StreamService, StreamTerms, open_for_route, open_run


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


async def run_response(
    push: LivePush,
    request: Request,
    run: Run,
    *,
    slot_key: str | None = None,
    expires_at: datetime | float | None = None,
) -> Response:
    """Return a run, `push.run(id, dialect=...)`, as the response of a route.

    The caller has decided that the client may read it. The client gets the output from the beginning, or
    from its last event id, then the end, and the response ends. It gets the status `dialect.idle`, such as
    204, where there is no such run and where it has all of it. The stream takes a slot of `slot_key`, and
    ends at `expires_at`. Raises HTTPException: 429 when the cap is full, 503 when the slots or the
    broker are away, 401 for `expires_at` in the past. A soft refusal is a response; a dialect without control
    events gets none. Raises ValueError for a run of another LivePush.
    """
    try:
        return await _response(open_run(push, request.scope, run, slot_key=slot_key, expires_at=expires_at))
    except HTTPException as error:
        return without_body(error)


def without_body(error: HTTPException) -> Response:
    """Return the response for a 204, to which an exception handler may give a body. Raises other errors."""
    if error.status_code != HTTPStatus.NO_CONTENT:
        raise error
    return Response(None, error.status_code, error.headers)


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
