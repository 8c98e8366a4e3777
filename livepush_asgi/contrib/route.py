"""What every framework's file begins with: a stream for a route, or the refusal to answer with."""

import logging
from dataclasses import dataclass
from http import HTTPStatus

from ..app.livepush import LivePush
from ..app.service import SSEStream, SSEStreamService, sse_headers
from ..errors import BrokerUnavailableError, InvalidGrantError
from ..grant import Authorize, Grant, Refusal, StreamRequest
from ..http.authorize import INVALID, REFUSED_ERRORS, Refused, refused_for
from ..http.driver import STREAM_HEADERS, RawHeaders
from ..http.responses import soft_block
from ..runtime.asgi import Receive, Scope, Send

logger = logging.getLogger("livepush_asgi")

RETRY_AFTER = 5


def headers_of(refusal: Refusal) -> dict[str, str]:
    """Return the header fields of a refusal, `Retry-After` among them if it has one."""
    retry_after = {} if refusal.retry_after is None else {"Retry-After": str(refusal.retry_after)}
    return {**refusal.headers, **retry_after}


def text_of(refusal: Refusal) -> str:
    """Return the text of a refusal's body. A 204 has none."""
    return "" if refusal.status == HTTPStatus.NO_CONTENT else refusal.detail or ""


class SoftRefusalBody:
    """The one block of a soft refusal, where a stream has its bytes. It holds nothing."""

    def __init__(self, block: bytes) -> None:
        self._blocks = [block]

    def __aiter__(self) -> "SoftRefusalBody":
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
class SoftRefusal:
    """In the place of an SSEStream: 200 and a reconnection time, so that `EventSource` comes back."""

    headers: dict[str, str]
    body: SoftRefusalBody


async def open_for_route(
    service: SSEStreamService | LivePush,
    scope: Scope,
    *,
    channel: str | None,
    slot_key: str | None,
    grant: Grant | None,
    authorize: Authorize | None,
) -> SSEStream | SoftRefusal:
    """Open a stream for a channel and a slot key, for a Grant, or by an `authorize`.

    Raises a Refusal where there is none, but not for the causes in the component's `soft_refusals`, and never
    in a drain: a process that is about to be replaced must not turn its clients away for good.
    """
    if isinstance(service, LivePush):
        service = SSEStreamService.of(service)
    push, request = service.push, StreamRequest(scope)
    control_events = push.control_events
    terms = _terms(channel, slot_key, grant, authorize)
    try:
        if not isinstance(terms, Grant):
            return await service.open_authorized(terms, request)
        if terms.control_events is not None:
            control_events = terms.control_events
        return await service.open_granted(
            terms, last_event_id=request.last_event_id, client=scope.get("client")
        )
    except BrokerUnavailableError as error:
        raise Refusal(503, "No stream can be opened now.", retry_after=RETRY_AFTER) from error
    except Refused as refused:
        return _refuse_softly(refused, push, control_events)
    except REFUSED_ERRORS as error:
        return _refuse_softly(refused_for(error, push.soft_refusals), push, control_events)


def _refuse_softly(refused: Refused, push: LivePush, control_events: bool) -> SoftRefusal:
    """Return a soft refusal. Raises one that is not."""
    if not refused.soft:
        raise refused
    block = soft_block(refused, refused.cause, push.timing, control_events=control_events)
    return SoftRefusal({**sse_headers(), **refused.headers}, SoftRefusalBody(block))


def _terms(
    channel: str | None, slot_key: str | None, grant: Grant | None, authorize: Authorize | None
) -> Grant | Authorize:
    if [channel, grant, authorize].count(None) != 2:
        raise TypeError("name a channel (and a slot_key), or a grant, or an authorize")
    if channel is not None:
        try:
            return Grant(channels=channel, slot_key=slot_key)
        except InvalidGrantError as error:
            # Routes make names of what their clients send.
            logger.info("a client asked for what no grant can have, and got a 400: %s", error)
            raise Refusal(400, INVALID) from error
    if slot_key is not None:
        raise TypeError("slot_key goes with a channel; a Grant brings its own")
    terms = authorize if grant is None else grant
    assert terms is not None
    return terms
