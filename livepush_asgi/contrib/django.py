"""Django: an event stream as the response of an asynchronous view, under ASGI.

An asynchronous view holds no database connection while its stream lives: Django's connections belong to
the threads of its synchronous code, and `ATOMIC_REQUESTS` cannot be used with asynchronous views.
https://docs.djangoproject.com/en/stable/topics/async/
"""

try:
    from django.http import HttpRequest, HttpResponse, HttpResponseBase, StreamingHttpResponse
except ModuleNotFoundError as error:
    raise ImportError("this needs Django: pip install 'livepush_asgi[django]'") from error

from ..app import LivePush
from ..request import Grant, Refusal
from ..service import SSEStreamService
from .opening import open_for_route

CONTENT_TYPE = "text/event-stream"


async def sse_streaming_response(
    service: SSEStreamService | LivePush,
    request: HttpRequest,
    *,
    channel: str | None = None,
    slot_key: str | None = None,
    grant: Grant | None = None,
) -> HttpResponseBase:
    """Open a stream and return it as the response of a view.

    When the cap is full it is a 429 with `Retry-After: 5`; a 503 when the slots or the broker are
    away, or the process is ending. Django cancels the response when the client has gone, and closes
    it when a middleware has put another in its place; both give everything back at once.
    """
    try:
        stream = await open_for_route(service, channel=channel, slot_key=slot_key, grant=grant)
    except Refusal as refusal:
        headers = {"Retry-After": str(refusal.retry_after)}
        return HttpResponse(
            refusal.detail, status=refusal.status, content_type="text/plain; charset=utf-8", headers=headers
        )
    if request.method == "HEAD":
        await stream.body.aclose()
        return HttpResponse(content_type=CONTENT_TYPE, headers=stream.headers)
    return StreamingHttpResponse(stream.body, content_type=CONTENT_TYPE, headers=stream.headers)
