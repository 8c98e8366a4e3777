"""Quart: an event stream as the response of a route."""

try:
    from quart import Request, Response
    from werkzeug.exceptions import HTTPException, ServiceUnavailable, TooManyRequests, default_exceptions
except ModuleNotFoundError as error:
    raise ImportError("this needs Quart: pip install 'livepush_asgi[quart]'") from error

from ..app.livepush import LivePush
from ..app.service import SSEStreamService
from ..grant import Grant, Refusal
from .route import CONTENT_TYPE, open_for_route


async def sse_streaming_response(
    service: SSEStreamService | LivePush,
    request: Request,
    *,
    channel: str | None = None,
    slot_key: str | None = None,
    grant: Grant | None = None,
) -> Response:
    """Open a stream and return it as the response of a route. `RESPONSE_TIMEOUT` does not end it.

    Raises TooManyRequests (429 with `Retry-After: 5`) when the cap is full, ServiceUnavailable when the
    slots or the broker are away, and Unauthorized for a grant that has expired. For a cause in the
    component's `soft_refusals`, and while the process is ending, the response is a soft refusal. Quart
    cancels it when the client has gone.
    """
    try:
        stream = await open_for_route(
            service,
            request.scope,
            request.headers,
            request.args,
            channel=channel,
            slot_key=slot_key,
            grant=grant,
        )
    except Refusal as refusal:
        raise _exception_of(refusal) from refusal
    response = Response(stream.body, content_type=CONTENT_TYPE, headers=stream.headers)
    response.timeout = None
    return response


def _exception_of(refusal: Refusal) -> HTTPException:
    kind = default_exceptions[refusal.status]
    if issubclass(kind, (TooManyRequests, ServiceUnavailable)):
        return kind(refusal.detail, retry_after=refusal.retry_after)
    return kind(refusal.detail)
