"""Endpoint: one HTTP request, from its method to its stream or its refusal."""

import inspect
import logging
import time
from collections.abc import Callable, Collection
from typing import NamedTuple, Protocol

from .answers import ALLOWED_METHODS, answer, refuse, refuse_softly, soft_block
from .carrier import STREAM_HEADERS
from .cors import Cors, RawHeader
from .errors import (
    AuthorizeError,
    CapExceededError,
    GrantExpiredError,
    NotRunningError,
    ProcessFullError,
    SlotsUnavailableError,
)
from .probe import QUERY as PROBE
from .probe import ProbePlan, Probes
from .reasons import RefusalCause
from .request import Authorize, Grant, Refusal, StreamRequest, is_foreign
from .run import Run
from .settings import Timing
from .stream import Stream
from .types import Receive, Scope, Send

logger = logging.getLogger("livepush_asgi")

SOFT_CAUSES = frozenset({RefusalCause.CAP, RefusalCause.FULL, RefusalCause.SLOTS, RefusalCause.EXPIRED})


class Refused(Exception):
    """Raised on the way to a stream when there will be none."""

    def __init__(self, refusal: Refusal, cause: RefusalCause) -> None:
        self.refusal = refusal
        self.cause = cause
        super().__init__(str(refusal))


def refused_for(
    error: CapExceededError | SlotsUnavailableError | GrantExpiredError | NotRunningError,
    soft_refusals: Collection[RefusalCause] = (),
) -> Refused:
    """Return how a client is refused because of an error on the way to its stream."""
    if isinstance(error, ProcessFullError):
        status, detail, cause = 429, "The server has all the streams it can hold.", RefusalCause.FULL
    elif isinstance(error, CapExceededError):
        status, detail, cause = 429, "Too many open streams.", RefusalCause.CAP
    elif isinstance(error, SlotsUnavailableError):
        status, detail, cause = 503, "The server cannot count its streams now.", RefusalCause.SLOTS
    elif isinstance(error, GrantExpiredError):
        status, detail, cause = 401, "The login has expired.", RefusalCause.EXPIRED
    else:
        status, detail, cause = 503, "The server is restarting.", RefusalCause.DRAIN
    retry_after = getattr(error, "retry_after", None)
    # Whoever spares a client the end at a full cap does so at a full process.
    soft = cause in soft_refusals or (cause is RefusalCause.FULL and RefusalCause.CAP in soft_refusals)
    return Refused(Refusal(status, detail, soft=soft, retry_after=retry_after), cause)


def check_expiry(grant: Grant) -> None:
    """Raise GrantExpiredError if the grant is over."""
    if grant.expiry is not None and grant.expiry <= time.time():
        raise GrantExpiredError("the grant was over before its stream was opened")


class Endpoint:
    """Answers HTTP requests for streams. Holds configuration only; each request is a call of its own."""

    def __init__(
        self,
        authorize: Authorize,
        timing: Timing,
        cors: Cors | None,
        control_events: bool,
        soft_refusals: Collection[RefusalCause],
        count_refusal: Callable[[RefusalCause], None],
        probes: Probes | None = None,
    ) -> None:
        self._authorize = authorize
        self._timing = timing
        self._cors = cors
        self._control_events = control_events
        self._soft_refusals = frozenset(soft_refusals)
        self._count_refusal = count_refusal
        self._probes = probes

    async def __call__(
        self, run: "RunningGetter", scope: Scope, receive: Receive, send: Send
    ) -> "Opened | None":
        """Answer one request, or return the stream that is its answer: the caller has to carry it."""
        request = StreamRequest(scope)
        method = scope["method"]
        headers = [] if self._cors is None else self._cors.answer(request.headers.get("origin"))
        if is_foreign(scope):
            await refuse(send, Refusal(404), headers, body=method != "HEAD")
        elif method == "OPTIONS":
            await self._answer_options(request, send)
        elif method not in ("GET", "HEAD"):
            refusal = Refusal(405, headers={"allow": ALLOWED_METHODS.decode()})
            await refuse(send, refusal, headers)
        elif method == "HEAD":
            await self._answer_head(request, headers, send)
        elif self._probes is not None and PROBE in request.query:
            await self._answer_probe(self._probes, await run(), request, headers, receive, send)
        else:
            return await self._answer_get(run, request, headers, send)
        return None

    async def _answer_options(self, request: StreamRequest, send: Send) -> None:
        headers: list[RawHeader] = [(b"allow", ALLOWED_METHODS)]
        if self._cors is not None:
            headers += self._cors.preflight(request.headers.get("origin"))
        await answer(send, 204, headers)

    async def _answer_head(self, request: StreamRequest, headers: list[RawHeader], send: Send) -> None:
        try:
            await self._decide(request)
        except Refused as refused:
            await refuse(send, refused.refusal, headers, body=False)
            return
        await send({"type": "http.response.start", "status": 200, "headers": [*STREAM_HEADERS, *headers]})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _answer_get(
        self,
        run: "RunningGetter",
        request: StreamRequest,
        headers: list[RawHeader],
        send: Send,
    ) -> "Opened | None":
        try:
            return Opened(await self._open(await run(), request), [*STREAM_HEADERS, *headers])
        except Refused as refused:
            self._count_refusal(refused.cause)
            await self._refuse(refused, headers, send)
            return None

    async def _answer_probe(
        self,
        probes: Probes,
        run: Run | None,
        request: StreamRequest,
        headers: list[RawHeader],
        receive: Receive,
        send: Send,
    ) -> None:
        # Neither a stream nor a refused one: a probe is no client, and shows in no number.
        try:
            if run is None or run.draining:
                raise refused_for(NotRunningError(), self._soft_refusals)
            plan = await _plan_of(probes, request)
        except Refused as refused:
            await self._refuse(refused, headers, send)
            return
        await probes.carry(plan, request.scope, lambda: run.draining or run.ended, headers, receive, send)

    async def _open(self, run: Run | None, request: StreamRequest) -> Stream:
        if run is None or run.draining:
            raise refused_for(NotRunningError(), self._soft_refusals)
        try:
            with run.admission:
                grant = await self._decide(request)
                events = self._control_events if grant.control_events is None else grant.control_events
                return await run.open(grant, control_events=events, last_event_id=request.last_event_id)
        except (CapExceededError, SlotsUnavailableError) as error:
            raise refused_for(error, self._soft_refusals) from error

    async def _decide(self, request: StreamRequest) -> Grant:
        try:
            decision = self._authorize(request)
            if not isinstance(decision, Grant) and inspect.isawaitable(decision):
                decision = await decision
        except Refusal as refusal:
            decision = refusal
        except Exception:
            logger.exception("authorize raised; the client got a 500")
            raise Refused(Refusal(500), RefusalCause.AUTHORIZE) from None
        if isinstance(decision, Refusal):
            raise Refused(decision, RefusalCause.AUTHORIZE)
        if not isinstance(decision, Grant):
            _log_wrong_decision(decision)
            raise Refused(Refusal(500), RefusalCause.AUTHORIZE)
        try:
            check_expiry(decision)
        except GrantExpiredError as error:
            raise refused_for(error, self._soft_refusals) from None
        return decision

    async def _refuse(self, refused: Refused, headers: list[RawHeader], send: Send) -> None:
        refusal = refused.refusal
        if not refusal.soft:
            await refuse(send, refusal, headers)
            return
        block = soft_block(refusal, refused.cause, self._timing, control_events=self._control_events)
        await refuse_softly(send, refusal, block, headers)


class Opened(NamedTuple):
    """A stream, and the headers of its response."""

    stream: Stream
    headers: list[RawHeader]


class RunningGetter(Protocol):
    """Gives the run that a new stream belongs to, None if the component has stopped."""

    async def __call__(self) -> Run | None:
        """Start the component if nobody has."""
        ...


async def _plan_of(probes: Probes, request: StreamRequest) -> ProbePlan:
    try:
        return await probes.plan(request)
    except Refusal as refusal:
        raise Refused(refusal, RefusalCause.AUTHORIZE) from None


def _log_wrong_decision(decision: object) -> None:
    error = AuthorizeError(
        f"authorize returned {type(decision).__name__}, not a Grant or a Refusal. "
        "Is a `return` missing, or an `await` in front of what it calls?"
    )
    logger.error("%s", error)
