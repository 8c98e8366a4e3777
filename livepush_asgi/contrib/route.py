"""The stream of a route, or the refusal to answer with: the part that all frameworks share."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import cast

from ..app.livepush import LivePush
from ..app.service import SSEStream, SSEStreamService, sse_headers
from ..errors import BrokerUnavailableError, InvalidGrantError
from ..grant import Authorize, Grant, Refusal, StreamRequest
from ..http.authorize import INVALID, REFUSED_ERRORS, Refused, refused_for
from ..http.driver import STREAM_HEADERS, RawHeaders
from ..http.responses import soft_block
from ..runtime.asgi import Receive, Scope, Send

logger = logging.getLogger("livepush_asgi")

CONTENT_TYPE = "text/event-stream"
RETRY_AFTER = 5


class FiniteBody:
    """A body of one block, or of none, in the place of a stream's. It holds nothing to give back."""

    def __init__(self, block: bytes = b"", status: int = 200) -> None:
        self._blocks = [block] if block else []
        self._status = status

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
        await send({"type": "http.response.start", "status": self._status, "headers": list(headers)})
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
    channel: str | None,
    slot_key: str | None,
    grant: Grant | None,
    authorize: Authorize | None,
) -> RouteStream:
    """Open a stream for a channel and a slot key, for a Grant, or by an `authorize`.

    Raises Refusal if the client gets no stream. For a cause in the component's `soft_refusals`, and in a
    drain, returns a FiniteStream instead: `EventSource` never comes back after another status than 200.
    """
    if isinstance(service, LivePush):
        service = SSEStreamService.of(service)
    terms = _terms(channel, slot_key, grant, authorize)
    stream = await _open(service, terms, StreamRequest(cast("Scope", scope)))
    if scope.get("method") == "HEAD":
        await stream.body.aclose()
        return FiniteStream(stream.headers, FiniteBody())
    return stream


def refusal_headers(refusal: Refusal) -> dict[str, str]:
    """Return the header fields of a refusal, with `Retry-After` if it has one."""
    retry_after = {} if refusal.retry_after is None else {"Retry-After": str(refusal.retry_after)}
    return {**refusal.headers, **retry_after}


def refusal_text(refusal: Refusal) -> str:
    """Return the text of a refusal's body. A 204 has none."""
    return "" if refusal.status == HTTPStatus.NO_CONTENT else refusal.detail or ""


def _terms(
    channel: str | None, slot_key: str | None, grant: Grant | None, authorize: Authorize | None
) -> Grant | Authorize:
    if [channel, grant, authorize].count(None) != 2 or (channel is None and slot_key is not None):
        raise TypeError(
            "name a channel (and a slot_key), or a grant, or an authorize: a Grant brings its own slot_key"
        )
    if channel is None:
        return cast("Grant | Authorize", authorize if grant is None else grant)
    try:
        return Grant(channels=channel, slot_key=slot_key)
    except InvalidGrantError as error:
        # Routes make names of what their clients send.
        logger.info("a client named an invalid channel or slot key, and got a 400: %s", error)
        raise Refusal(400, INVALID) from error


async def _open(service: SSEStreamService, terms: Grant | Authorize, request: StreamRequest) -> RouteStream:
    try:
        if not isinstance(terms, Grant):
            return await service.open_authorized(terms, request)
        return await service.open_granted(
            terms, last_event_id=request.last_event_id, client=request.scope.get("client")
        )
    except BrokerUnavailableError as error:
        raise Refusal(503, "No stream can be opened now.", retry_after=RETRY_AFTER) from error
    except Refused as refused:
        return _soft_refusal(refused, service.push, terms)
    except REFUSED_ERRORS as error:
        return _soft_refusal(refused_for(error, service.push.soft_refusals), service.push, terms)


def _soft_refusal(refused: Refused, push: LivePush, terms: Grant | Authorize) -> FiniteStream:
    """Return the response of a soft refusal. Raises a refusal that is not soft."""
    if not refused.soft:
        raise refused
    granted = terms.control_events if isinstance(terms, Grant) else None
    control_events = push.control_events if granted is None else granted
    block = soft_block(refused, refused.cause, push.timing, control_events=control_events)
    return FiniteStream({**sse_headers(), **refusal_headers(refused)}, FiniteBody(block))
