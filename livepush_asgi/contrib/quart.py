"""Quart: an event stream as the response of a route."""

from typing import cast

try:
    from quart import Request, Response
    from werkzeug.exceptions import HTTPException, default_exceptions
except ModuleNotFoundError as error:
    raise ImportError("this needs Quart: pip install 'livepush_asgi[quart]'") from error

from ..app.livepush import LivePush
from ..app.service import SSEStreamService
from ..grant import Authorize, Grant, Refusal
from ..runtime.asgi import Scope
from .route import headers_of, open_for_route, text_of

CONTENT_TYPE = "text/event-stream"


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

    `authorize` gets a StreamRequest and decides, as the one of a LivePush does, and no revocation is missed
    then. A decision that is made before this call goes in as a `channel` (with a `slot_key`) or a `grant`.

    Raises TooManyRequests (429 with `Retry-After: 5`) when the cap is full, ServiceUnavailable when the
    slots or the broker are away, Unauthorized for a grant that has expired, and what `authorize` refuses
    with. For a cause in the component's `soft_refusals`, and while the process is ending, the response is a
    soft refusal. Quart cancels it when the client has gone.
    """
    try:
        stream = await open_for_route(
            service,
            cast("Scope", request.scope),
            channel=channel,
            slot_key=slot_key,
            grant=grant,
            authorize=authorize,
        )
    except Refusal as refusal:
        raise _exception_of(refusal) from refusal
    if request.method == "HEAD":
        await stream.body.aclose()
        return Response(b"", content_type=CONTENT_TYPE, headers=stream.headers)
    response = Response(stream.body, content_type=CONTENT_TYPE, headers=stream.headers)
    response.timeout = None
    return response


def _exception_of(refusal: Refusal) -> HTTPException:
    # Werkzeug has a class for most statuses. Only a response of its own has the refusal's header fields.
    kind = default_exceptions.get(refusal.status, HTTPException)
    response = Response(
        text_of(refusal), refusal.status, headers_of(refusal), content_type="text/plain; charset=utf-8"
    )
    return kind(refusal.detail, response=response)
