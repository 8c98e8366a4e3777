"""Quart: an event stream as the response of a route."""

from typing import Unpack

try:
    from quart import Request, Response
    from werkzeug.exceptions import HTTPException, default_exceptions
except ModuleNotFoundError as error:
    raise ImportError("this needs Quart: pip install 'livepush_asgi[quart]'") from error

from ..grant import Refusal
from .route import CONTENT_TYPE, StreamService, StreamTerms, open_for_route, refusal_headers, refusal_text


async def sse_streaming_response(
    service: StreamService, request: Request, **terms: Unpack[StreamTerms]
) -> Response:
    """Open a stream and return it as the response of a route. `RESPONSE_TIMEOUT` does not end it.

    The terms are a `channel` (and a `slot_key`), a `grant`, or an `authorize`: see StreamTerms. Raises
    TooManyRequests when the cap is full, ServiceUnavailable when the slots or the broker are away,
    Unauthorized for a grant that has expired, or the exception for what `authorize` refuses with. A soft
    refusal is a response. Quart cancels the response when the client has gone.
    """
    try:
        stream = await open_for_route(service, request.scope, **terms)
    except Refusal as refusal:
        # Werkzeug sends header fields only as part of a whole response.
        text, headers = refusal_text(refusal), refusal_headers(refusal)
        answer = Response(text, refusal.status, headers, content_type="text/plain; charset=utf-8")
        exception = default_exceptions.get(refusal.status, HTTPException)
        raise exception(refusal.detail, response=answer) from refusal
    response = Response(stream.body, content_type=CONTENT_TYPE, headers=stream.headers)
    response.timeout = None
    return response
