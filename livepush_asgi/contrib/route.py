"""The stream of a route, or the refusal to answer with: the part that all frameworks share."""

import logging
from collections.abc import Mapping
from datetime import datetime
from http import HTTPStatus
from typing import TypedDict, Unpack, cast

from ..app.livepush import LivePush
from ..app.run import Run
from ..app.runs import authorize_once
from ..app.service import FiniteStream, SSEStream, SSEStreamService, soft_refusal
from ..errors import BrokerUnavailableError, InvalidGrantError
from ..grant import Authorize, Grant, Refusal, RunAccess, StreamRequest
from ..http.authorize import INVALID, REFUSED_ERRORS, RETRY_AFTER, Refused, hardened, refused_for
from ..runtime.asgi import Scope
from ..runtime.failure_log import fields
from ..wire.reasons import RefusalCause

logger = logging.getLogger("livepush_asgi")

CONTENT_TYPE = "text/event-stream"

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
    return await _answer(service, scope, _grant_or_authorize(**terms), hard=False, soft=False)


async def open_run(
    push: LivePush,
    scope: Mapping[str, object],
    run: Run,
    *,
    slot_key: str | None = None,
    expires_at: datetime | float | None = None,
) -> RouteStream:
    """Open a stream of a run, in its dialect, for a client that may read it.

    Raises Refusal if the client gets no stream: with the status `dialect.idle` where there is no such run, or
    the client has all of it, and with `Retry-After` for a 429 or 503. In a dialect without control events
    none is soft: its client would take the soft refusal for an answer.
    """
    if not isinstance(run, Run):
        raise TypeError(f"run_response takes a Run, not {run!r:.100}: push.run(id)")
    if run._push is not push:
        raise ValueError(
            "this run is of another LivePush than the one that serves it: "
            f"run_response(push, request, push.run({run.id!r:.100}))"
        )
    access = RunAccess(slot_key=slot_key, expires_at=expires_at)

    async def allowed(request: StreamRequest) -> RunAccess:
        return access

    authorize = authorize_once(run, allowed)
    try:
        soft = run.dialect.control_events
        return await _answer(push, scope, authorize, hard=not soft, soft=soft)
    except Refusal as refusal:
        # A cache may keep a 204 or a 404 otherwise.
        refusal.headers.setdefault("cache-control", "no-store")
        raise


async def _answer(
    service: StreamService,
    scope: Mapping[str, object],
    terms: Grant | Authorize,
    *,
    hard: bool,
    soft: bool,
) -> RouteStream:
    """Answer a request. `hard`: no refusal is soft; `soft`: that of a broker which is away is."""
    if isinstance(service, LivePush):
        service = SSEStreamService.of(service)
    stream: RouteStream
    try:
        stream = await _open(service, terms, StreamRequest(cast("Scope", scope)), soft=soft)
    except Refused as refused:
        if hard:
            raise hardened(refused) from refused
        stream = soft_refusal(refused, service.push)
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


async def _open(
    service: SSEStreamService, terms: Grant | Authorize, request: StreamRequest, *, soft: bool
) -> SSEStream:
    """Open a stream. Raises Refused, with a 503 if the broker is away, which may be `soft`."""
    try:
        if not isinstance(terms, Grant):
            return await service.open_authorized(terms, request)
        return await service.open_granted(
            terms, last_event_id=request.last_event_id, client=request.scope.get("client")
        )
    except BrokerUnavailableError as error:
        refusal = Refusal(503, "No stream can be opened now.", soft=soft, retry_after=RETRY_AFTER)
        raise Refused(refusal, RefusalCause.ERROR) from error
    except REFUSED_ERRORS as error:
        raise refused_for(error, service.push.soft_refusals) from error
