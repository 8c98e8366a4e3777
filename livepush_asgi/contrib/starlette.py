"""Starlette: an event stream as the response of a route."""

try:
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import StreamingResponse
    from starlette.types import Receive, Scope, Send
except ModuleNotFoundError as error:
    raise ImportError("this needs Starlette: pip install 'livepush_asgi[starlette]'") from error

from ..app.livepush import LivePush
from ..app.service import SSEStream, SSEStreamService
from ..grant import Authorize, Grant, Refusal
from .route import SoftRefusal, headers_of, open_for_route


class EventStreamResponse(StreamingResponse):
    """A response that carries its stream as raw ASGI, past Starlette's iteration.

    Whoever takes `body_iterator` instead gets the same bytes. Headers and background tasks are the
    response's own, as with any other.
    """

    media_type = "text/event-stream"

    def __init__(self, stream: SSEStream | SoftRefusal) -> None:
        super().__init__(stream.body, headers=stream.headers)
        # The standard knows no other encoding, and Starlette would name it.
        self.headers["content-type"] = self.media_type
        self.stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream; to a HEAD only its headers."""
        if scope["type"] == "http" and scope["method"] != "HEAD":
            await self.stream.body.respond(receive, send, self.raw_headers)
        else:
            await self.stream.body.aclose()
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        if self.background is not None:
            await self.background()


async def sse_streaming_response(
    service: SSEStreamService | LivePush,
    request: Request,
    *,
    channel: str | None = None,
    slot_key: str | None = None,
    grant: Grant | None = None,
    authorize: Authorize | None = None,
) -> EventStreamResponse:
    """Open a stream and return it as the response of a route.

    `authorize` gets a StreamRequest and decides, as the one of a LivePush does, and no revocation is missed
    then. A decision that is made before this call goes in as a `channel` (with a `slot_key`) or a `grant`.

    Raises HTTPException: 429 with `Retry-After: 5` when the cap is full, 503 when the slots or the
    broker are away, 401 for a grant that has expired, and what `authorize` refuses with. For a cause in the
    component's `soft_refusals`, and while the process is ending, the response is a soft refusal.
    """
    try:
        stream = await open_for_route(
            service,
            request.scope,
            channel=channel,
            slot_key=slot_key,
            grant=grant,
            authorize=authorize,
        )
    except Refusal as refusal:
        raise HTTPException(refusal.status, refusal.detail, headers_of(refusal)) from refusal
    return EventStreamResponse(stream)
