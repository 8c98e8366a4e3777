"""Litestar: an event stream as the response of a route handler.

Litestar ends `yield` dependencies when the handler has returned: none is open while a stream lives.
"""

from collections.abc import AsyncIterable, Awaitable
from datetime import datetime
from http import HTTPStatus
from typing import Any, Unpack

try:
    from litestar import Request, Response
    from litestar.datastructures import State
    from litestar.exceptions import HTTPException
    from litestar.response.base import ASGIResponse
    from litestar.response.streaming import ASGIStreamingResponse
    from litestar.types import Receive, Scope, Send
except ModuleNotFoundError as error:
    raise ImportError("this needs Litestar: pip install 'livepush_asgi[litestar]'") from error

from ..app.generator import SourceTerms, open_source
from ..app.livepush import LivePush
from ..app.run import Run
from ..app.service import FiniteStream, refusal_headers
from ..grant import Refusal
from .route import CONTENT_TYPE, RouteStream, StreamService, StreamTerms, open_for_route, open_run

# Nothing here depends on the types of the application's users and authentication.
AnyRequest = Request[Any, Any, State]


class EventStreamResponse(Response[bytes]):
    """A response that carries its stream as raw ASGI. Annotate the handler's return with it.

    `@get("/stream", media_type="text/event-stream")` has the OpenAPI document name the type as well.
    """

    def __init__(self, stream: RouteStream) -> None:
        headers = {**stream.headers, "content-type": CONTENT_TYPE}
        super().__init__(b"", headers=headers, media_type=CONTENT_TYPE)
        self.stream = stream

    # Any: Litestar passes these arguments to its own class, and they differ by release.
    def to_asgi_response(self, app: Any, request: Any, **options: Any) -> ASGIResponse:
        """Return the response that Litestar sends, with the application's own headers and cookies."""
        return _ASGIEventStream(
            iterator=self.stream.body,
            background=self.background or options.get("background"),
            cookies=[*self.cookies, *(options.get("cookies") or ())],
            headers={**(options.get("headers") or {}), **self.headers},
            media_type=CONTENT_TYPE,
            status_code=self.status_code or options.get("status_code"),
        )


class _ASGIEventStream(ASGIStreamingResponse):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream past Litestar's iteration."""
        body: Any = self.iterator
        await body.respond(receive, send, self.encode_headers())
        await self.after_response()


async def sse_streaming_response(
    service: StreamService, request: AnyRequest, **terms: Unpack[StreamTerms]
) -> EventStreamResponse:
    """Open a stream and return it as the response of a route handler.

    The terms are a `channel` (and a `slot_key`), a `grant`, or an `authorize`: see StreamTerms. Raises
    HTTPException: 429 when the cap is full, 503 when the slots or the broker are away, 401 for a grant that
    has expired, or what `authorize` refuses with. A soft refusal is a response.
    """
    return await _response(open_for_route(service, request.scope, **terms))


async def run_response(
    push: LivePush,
    request: AnyRequest,
    run: Run,
    *,
    slot_key: str | None = None,
    expires_at: datetime | float | None = None,
) -> EventStreamResponse:
    """Return a run, `push.run(id, dialect=...)`, as the response of a route handler.

    The caller has decided that the client may read it. The client gets the output from the beginning, or
    from its last event id, then the end, and the response ends. It gets the status `dialect.idle`, such as
    204, where there is no such run and where it has all of it. The stream takes a slot of `slot_key`, and
    ends at `expires_at`. Raises HTTPException: 429 when the cap is full, 503 when the slots or the
    broker are away, 401 for `expires_at` in the past. A soft refusal is a response; a dialect without control
    events gets none. Raises ValueError for a run of another LivePush.
    """
    return await _response(open_run(push, request.scope, run, slot_key=slot_key, expires_at=expires_at))


async def event_stream_response(
    request: AnyRequest, source: AsyncIterable[object], **terms: Unpack[SourceTerms]
) -> EventStreamResponse:
    """Return the events of an async iterator as the response of a route handler, without a broker.

    `source` yields Events, or data for one as `publish` takes it: `yield {"n": 1}` sends JSON. It runs no
    further than the client takes: while a send waits, it produces one event more. It is closed when it ends
    or raises, when the client leaves or takes nothing for `Timing.send_timeout`, and in a drain. Its
    `finally` may then await for 3 seconds. For the terms (`push`, `slot_key`, `expires_at`,
    `control_events`) see SourceTerms. Raises HTTPException: 429 when the cap is full, 503 when the slots are
    away, 401 for `expires_at` in the past. A soft refusal is a response. Litestar has ended the
    handler's `yield` dependencies when the source runs.
    """
    return await _response(open_source(request.scope, source, **terms))


async def _response(opening: Awaitable[RouteStream]) -> EventStreamResponse:
    try:
        stream = await opening
    except Refusal as refusal:
        detail, headers = refusal.detail or "", refusal_headers(refusal)
        if refusal.status == HTTPStatus.NO_CONTENT:
            # Litestar gives every HTTPException a body, and a 204 must have none.
            return EventStreamResponse(FiniteStream(headers, status=refusal.status))
        raise HTTPException(detail, status_code=refusal.status, headers=headers) from refusal
    return EventStreamResponse(stream)
