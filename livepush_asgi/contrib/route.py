"""The stream of a route, or the refusal to answer with: the part that all frameworks share."""

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import TypedDict, Unpack, cast

from ..app.livepush import LivePush
from ..app.service import FiniteStream, SSEStream, SSEStreamService, soft_refusal
from ..errors import BrokerUnavailableError, InvalidGrantError
from ..grant import Authorize, Grant, Refusal, StreamRequest
from ..http.authorize import INVALID, REFUSED_ERRORS, Refused, refused_for
from ..runtime.asgi import Scope
from ..runtime.failure_log import fields

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


def refusal_text(refusal: Refusal) -> str:
    """Return the text of a refusal's body. A 204 has none."""
    return "" if refusal.status == HTTPStatus.NO_CONTENT else refusal.detail or ""


def _grant_or_authorize(
    channel: str | None = None,
    slot_key: str | None = None,
    grant: Grant | None = None,
    authorize: Authorize | None = None,
    **unknown: object,
) -> Grant | Authorize:
    if unknown:
        names = ", ".join(f"`{name}`" for name in sorted(unknown))
        raise TypeError(
            f"the stream of a route takes no {names}; it takes {', '.join(StreamTerms.__annotations__)}. "
            "A Grant has the rest: grant=Grant(channels=..., replay=..., expires_at=...)"
        )
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
        logger.info(
            "a client named an invalid channel or slot key, and got a 400: %s",
            error,
            extra=fields("invalid_name", error=str(error)),
        )
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
        return soft_refusal(refused, service.push)
    except REFUSED_ERRORS as error:
        return soft_refusal(refused_for(error, service.push.soft_refusals), service.push)
