"""Quart: an event stream as the response of a route."""

from collections.abc import AsyncIterable, Awaitable
from datetime import datetime
from typing import Unpack

try:
    from quart import Request, Response
    from werkzeug.exceptions import HTTPException, default_exceptions
except ModuleNotFoundError as error:
    raise ImportError("this needs Quart: pip install 'livepush_asgi[quart]'") from error

from ..app.generator import SourceTerms, open_source
from ..app.livepush import LivePush
from ..app.run import Run
from ..app.service import refusal_headers
from ..grant import Refusal
from .route import (
    CONTENT_TYPE,
    RouteStream,
    StreamService,
    StreamTerms,
    open_for_route,
    open_run,
    refusal_text,
)


async def sse_streaming_response(
    service: StreamService, request: Request, **terms: Unpack[StreamTerms]
) -> Response:
    """Open a stream and return it as the response of a route. `RESPONSE_TIMEOUT` does not end it.

    The terms are a `channel` (and a `slot_key`), a `grant`, or an `authorize`: see StreamTerms. Raises
    TooManyRequests when the cap is full, ServiceUnavailable when the slots or the broker are away,
    Unauthorized for a grant that has expired, or the exception for what `authorize` refuses with. A soft
    refusal is a response. Quart cancels the response when the client has gone.
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
    ends at `expires_at`. Raises TooManyRequests when the cap is full, ServiceUnavailable when
    the slots or the broker are away, Unauthorized for `expires_at` in the past. A soft refusal is a response;
    a dialect without control events gets none. `RESPONSE_TIMEOUT` does not end it. Raises ValueError for a
    run of another LivePush.
    """
    return await _response(open_run(push, request.scope, run, slot_key=slot_key, expires_at=expires_at))


async def event_stream_response(
    request: Request, source: AsyncIterable[object], **terms: Unpack[SourceTerms]
) -> Response:
    """Return the events of an async iterator as the response of a route, without a broker.

    `source` yields Events, or data for one as `publish` takes it: `yield {"n": 1}` sends JSON. It runs no
    further than the client takes: while a send waits, it produces one event more. It is closed when it ends
    or raises, when the client leaves or takes nothing for `Timing.send_timeout`, and in a drain. Its
    `finally` may then await for 3 seconds. For the terms (`push`, `slot_key`, `expires_at`,
    `control_events`) see SourceTerms. Raises TooManyRequests when the cap is full, ServiceUnavailable when
    the slots are away, Unauthorized for `expires_at` in the past. A soft refusal is a response.
    `RESPONSE_TIMEOUT` does not end it.
    """
    return await _response(open_source(request.scope, source, **terms))


async def _response(opening: Awaitable[RouteStream]) -> Response:
    try:
        stream = await opening
    except Refusal as refusal:
        # Werkzeug sends header fields only as part of a whole response.
        text, headers = refusal_text(refusal), refusal_headers(refusal)
        answer = Response(text, refusal.status, headers, content_type="text/plain; charset=utf-8")
        exception = default_exceptions.get(refusal.status, HTTPException)
        raise exception(refusal.detail, response=answer) from refusal
    response = Response(stream.body, content_type=CONTENT_TYPE, headers=stream.headers)
    response.timeout = None
    return response
