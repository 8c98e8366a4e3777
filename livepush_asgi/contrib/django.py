"""Django: an event stream as the response of an asynchronous view, under ASGI.

Django gives each request a thread and keeps it, with the database connections opened in it, until the
response has ended. So the connections are closed here before the stream begins; the idle thread stays.
Where thousands listen, put LivePushMiddleware in front of Django: its streams have no threads.
"""

try:
    from asgiref.sync import sync_to_async
    from django.db import connections
    from django.http import HttpRequest, HttpResponse, HttpResponseBase, StreamingHttpResponse
except ModuleNotFoundError as error:
    raise ImportError("this needs Django: pip install 'livepush_asgi[django]'") from error

from ..app import LivePush
from ..request import Grant, Refusal
from ..service import SSEStream, SSEStreamService
from .opening import SoftRefusal, headers_of, last_event_id, open_for_route

CONTENT_TYPE = "text/event-stream"


# Django ships no types, so its class is Any to mypy.
class EventStreamResponse(StreamingHttpResponse):  # type: ignore[misc]
    """A streaming response that no middleware compresses."""

    def __init__(self, stream: SSEStream | SoftRefusal) -> None:
        super().__init__(stream.body, content_type=CONTENT_TYPE, headers=stream.headers)

    def has_header(self, header: str) -> bool:
        """Return whether a middleware has to leave this header alone."""
        # GZipMiddleware compresses each chunk into a gzip file of its own, of which browsers read the
        # first and drop the rest: every event would be lost without a word. It knows no `no-transform`;
        # it leaves alone what has an encoding, and asks here.
        return header.lower() == "content-encoding" or bool(super().has_header(header))


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
    away; a 401 for a grant that has expired. For a cause in the component's `soft_refusals`, and while
    the process is ending, it is a soft refusal. The request's database connections are closed, but those
    in a transaction; a later query opens one again. Django cancels the response when the client has gone.
    """
    await sync_to_async(_close_connections)()
    try:
        stream = await open_for_route(
            service,
            channel=channel,
            slot_key=slot_key,
            grant=grant,
            last_event_id=last_event_id(request.headers, request.GET),
            # Only a request that came by ASGI has a scope.
            client=getattr(request, "scope", {}).get("client"),
        )
    except Refusal as refusal:
        return HttpResponse(
            refusal.detail,
            status=refusal.status,
            content_type="text/plain; charset=utf-8",
            headers=headers_of(refusal),
        )
    if request.method == "HEAD":
        await stream.body.aclose()
        return HttpResponse(content_type=CONTENT_TYPE, headers=stream.headers)
    return EventStreamResponse(stream)


def _close_connections() -> None:
    # Persistent ones (CONN_MAX_AGE) too: their thread serves no other request. In a transaction is what
    # a test case has around its tests.
    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:
            connection.close()
