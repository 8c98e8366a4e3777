"""FastAPI: an event stream as the response of a path operation, after its dependencies have ended."""

from contextlib import AsyncExitStack

try:
    from fastapi import HTTPException, Request
except ModuleNotFoundError as error:
    raise ImportError("this needs FastAPI: pip install 'livepush_asgi[fastapi]'") from error

from starlette.types import Receive, Scope, Send

from ..app.livepush import LivePush
from ..app.service import SSEStreamService
from ..grant import Authorize, Grant, Refusal
from .route import open_for_route, refusal_headers
from .starlette import EventStreamResponse as StarletteResponse


class EventStreamResponse(StarletteResponse):
    """A response that ends the request's `yield` dependencies before its stream begins.

    FastAPI keeps them open until a response was sent, so a database session would be held for as long as
    its stream lives. https://fastapi.tiangolo.com/tutorial/dependencies/dependencies-with-yield/
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """End the dependencies, then send the stream."""
        dependencies = scope.get("fastapi_inner_astack")
        if isinstance(dependencies, AsyncExitStack):
            try:
                await dependencies.aclose()
            except BaseException:
                await self.stream.body.aclose()
                raise
        await super().__call__(scope, receive, send)


async def sse_streaming_response(
    service: SSEStreamService | LivePush,
    request: Request,
    *,
    channel: str | None = None,
    slot_key: str | None = None,
    grant: Grant | None = None,
    authorize: Authorize | None = None,
) -> EventStreamResponse:
    """Open a stream and return it as the response of a path operation.

    With `authorize`, a function as LivePush takes it, no revocation is missed. Without it, decide before this
    call and pass a `channel` (with a `slot_key`) or a `grant`.

    Raises HTTPException: 429 with `Retry-After: 5` when the cap is full, 503 when the slots or the broker are
    away, 401 for a grant that has expired, and the status that `authorize` refuses with. For a cause in the
    component's `soft_refusals`, and while the process is ending, the response is a soft refusal.
    """
    try:
        stream = await open_for_route(service, request.scope, channel, slot_key, grant, authorize)
    except Refusal as refusal:
        raise HTTPException(refusal.status, refusal.detail, refusal_headers(refusal)) from refusal
    return EventStreamResponse(stream)
