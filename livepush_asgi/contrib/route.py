"""The stream of a route, or the refusal to answer with: the part that all frameworks share."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from ..app.livepush import LivePush
from ..app.service import SSEStream, SSEStreamService, sse_headers
from ..errors import BrokerUnavailableError, InvalidGrantError
from ..grant import Grant, Refusal
from ..http.authorize import INVALID, REFUSED_ERRORS, refused_for
from ..http.driver import STREAM_HEADERS, RawHeaders
from ..http.responses import soft_block
from ..runtime.asgi import Receive, Send

logger = logging.getLogger("livepush_asgi")

CONTENT_TYPE = "text/event-stream"
RETRY_AFTER = 5


class Fields(Protocol):
    """Header fields, or query parameters, as each framework's own class has them."""

    def get(self, name: str, /) -> str | None:
        """Return one value, None if there is none."""
        ...


class FiniteBody:
    """A body of one block, or of none, in the place of a stream's. It holds nothing to give back."""

    def __init__(self, block: bytes) -> None:
        self._blocks = [block] if block else []

    def __aiter__(self) -> "FiniteBody":
        return self

    async def __anext__(self) -> bytes:
        if not self._blocks:
            raise StopAsyncIteration
        return self._blocks.pop()

    async def aclose(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""

    async def respond(self, receive: Receive, send: Send, headers: RawHeaders = STREAM_HEADERS) -> None:
        """Send the block as a whole ASGI response."""
        await send({"type": "http.response.start", "status": 200, "headers": list(headers)})
        await send({"type": "http.response.body", "body": b"".join(self._blocks), "more_body": False})


@dataclass
class FiniteStream:
    """Stands for an SSEStream where none is open: the answer to HEAD, or a soft refusal."""

    headers: dict[str, str]
    body: FiniteBody


RouteStream = SSEStream | FiniteStream


async def open_for_route(
    service: SSEStreamService | LivePush,
    scope: Mapping[str, object],
    headers: Fields,
    query: Fields,
    *,
    channel: str | None,
    slot_key: str | None,
    grant: Grant | None,
) -> RouteStream:
    """Open a stream for a channel and a slot key, or for a Grant. Raises Refusal where there is none.

    A cause that is among the component's `soft_refusals`, or a drain, is a FiniteStream instead: a process
    that is about to be replaced must not turn its clients away for good.
    """
    if isinstance(service, LivePush):
        service = SSEStreamService.of(service)
    granted = _granted(channel, slot_key, grant)
    last_event_id = headers.get("last-event-id")
    if last_event_id is None:
        last_event_id = query.get("last_event_id")
    try:
        stream = await service.open_granted(granted, last_event_id=last_event_id, client=scope.get("client"))
    except BrokerUnavailableError as error:
        raise Refusal(503, "No stream can be opened now.", retry_after=RETRY_AFTER) from error
    except REFUSED_ERRORS as error:
        return _soft_refusal(service.push, granted, error)
    if scope.get("method") == "HEAD":
        await stream.body.aclose()
        return FiniteStream(stream.headers, FiniteBody(b""))
    return stream


def refusal_headers(refusal: Refusal) -> dict[str, str]:
    """Return the header fields of a refusal, `Retry-After` among them if it has one."""
    retry_after = {} if refusal.retry_after is None else {"Retry-After": str(refusal.retry_after)}
    return {**refusal.headers, **retry_after}


def _soft_refusal(push: LivePush, grant: Grant, error: Exception) -> FiniteStream:
    refused = refused_for(error, push.soft_refusals)
    if not refused.refusal.soft:
        raise refused.refusal from error
    control_events = push.control_events if grant.control_events is None else grant.control_events
    block = soft_block(refused.refusal, refused.cause, push.timing, control_events=control_events)
    return FiniteStream(sse_headers(), FiniteBody(block))


def _granted(channel: str | None, slot_key: str | None, grant: Grant | None) -> Grant:
    if grant is not None:
        if channel is not None or slot_key is not None:
            raise TypeError(
                "name either a channel (and a slot_key) or a grant: a Grant brings its own slot_key"
            )
        return grant
    if channel is None:
        raise TypeError("name either a channel (and a slot_key) or a grant")
    try:
        return Grant(channels=channel, slot_key=slot_key)
    except InvalidGrantError as error:
        # Routes make names of what their clients send.
        logger.info("a client named an invalid channel or slot key, and got a 400: %s", error)
        raise Refusal(400, INVALID) from error
