"""Quart: an event stream as the response of a route."""

try:
    from quart import Request, Response
    from werkzeug.exceptions import HTTPException, default_exceptions
except ModuleNotFoundError as error:
    raise ImportError("this needs Quart: pip install 'livepush_asgi[quart]'") from error

from ..app.livepush import LivePush
from ..app.service import SSEStreamService
from ..grant import Authorize, Grant, Refusal
from .route import CONTENT_TYPE, open_for_route, refusal_headers, refusal_text


async def sse_streaming_response(
    service: SSEStreamService | LivePush,
    request: Request,
    *,
    channel: str | None = None,
    slot_key: str | None = None,
    grant: Grant | None = None,
    authorize: Authorize | None = None,
) -> Response:
    """Open a stream and return it as the response of a route. `RESPONSE_TIMEOUT` does not end it.

    With `authorize`, a function as LivePush takes it, no revocation is missed. Without it, decide before this
    call and pass a `channel` (with a `slot_key`) or a `grant`.

    Raises TooManyRequests (429 with `Retry-After: 5`) when the cap is full, ServiceUnavailable when the slots
    or the broker are away, Unauthorized for a grant that has expired, and the exception of the status that
    `authorize` refuses with. For a cause in the component's `soft_refusals`, and while the process is ending,
    the response is a soft refusal. Quart cancels the response when the client has gone.
    """
    try:
        stream = await open_for_route(service, request.scope, channel, slot_key, grant, authorize)
    except Refusal as refusal:
        # Werkzeug sends header fields only as part of a whole response.
        text, headers = refusal_text(refusal), refusal_headers(refusal)
        answer = Response(text, refusal.status, headers, content_type="text/plain; charset=utf-8")
        exception = default_exceptions.get(refusal.status, HTTPException)
        raise exception(refusal.detail, response=answer) from refusal
    response = Response(stream.body, content_type=CONTENT_TYPE, headers=stream.headers)
    response.timeout = None
    return response
