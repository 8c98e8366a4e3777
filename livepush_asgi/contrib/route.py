"""The stream of a route, or the refusal to answer with: the part that all frameworks share."""

import logging
from collections.abc import AsyncIterator, Mapping
from http import HTTPStatus
from typing import Self, TypedDict, Unpack, cast

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

StreamService = SSEStreamService | LivePush


class StreamTerms(TypedDict, total=False):
    """What a route opens its stream for: a channel (and a slot key), a Grant, or an `authorize`.

    With `authorize`, a function as LivePush takes it, no revocation is missed. A route that gives a `channel`
    (with a `slot_key`) or a `grant` has decided before.
    """

    channel: str | None
    slot_key: str | None
    grant: Grant | None
    authorize: Authorize | None


class FiniteStream:
    """Stands for an SSEStream where none is open: the answer to HEAD, or a soft refusal.

    It is its own body, of one block or of none, and holds nothing to give back.
    """

    def __init__(self, headers: dict[str, str], block: bytes = b"", status: int = 200) -> None:
        self.headers = headers
        self._block = block
        self._status = status

    @property
    def body(self) -> Self:
        """The stream itself."""
        return self

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._block:
            yield self._block

    async def aclose(self) -> None:
        """Do nothing."""

    async def respond(self, receive: Receive, send: Send, headers: RawHeaders = STREAM_HEADERS) -> None:
        """Send the block as a whole ASGI response."""
        await send({"type": "http.response.start", "status": self._status, "headers": list(headers)})
        await send({"type": "http.response.body", "body": self._block, "more_body": False})


RouteStream = SSEStream | FiniteStream


async def open_for_route(
    service: StreamService, scope: Mapping[str, object], **terms: Unpack[StreamTerms]
) -> RouteStream:
    """Open a stream for a channel and a slot key, for a Grant, or by an `authorize`.

    Raises Refusal if the client gets no stream, with `Retry-After: 5` when the cap is full. For a cause in
    the component's `soft_refusals`, and in a drain, returns a FiniteStream instead, a soft refusal:
    `EventSource` never comes back after another status than 200.
    """
    if isinstance(service, LivePush):
        service = SSEStreamService.of(service)
    stream = await _open(service, _grant_or_authorize(**terms), StreamRequest(cast("Scope", scope)))
    if scope.get("method") == "HEAD":
        await stream.body.aclose()
        return FiniteStream(stream.headers)
    return stream


def refusal_headers(refusal: Refusal) -> dict[str, str]:
    """Return the header fields of a refusal, with `Retry-After` if it has one."""
    retry_after = {} if refusal.retry_after is None else {"Retry-After": str(refusal.retry_after)}
    return {**refusal.headers, **retry_after}


def refusal_text(refusal: Refusal) -> str:
    """Return the text of a refusal's body. A 204 has none."""
    return "" if refusal.status == HTTPStatus.NO_CONTENT else refusal.detail or ""


def _grant_or_authorize(
    channel: str | None = None,
    slot_key: str | None = None,
    grant: Grant | None = None,
    authorize: Authorize | None = None,
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
    return FiniteStream({**sse_headers(), **refusal_headers(refused)}, block)
