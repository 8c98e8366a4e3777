"""Endpoint: handles one HTTP request, from its method to its stream or its refusal."""

from collections.abc import Callable, Collection
from contextlib import suppress
from typing import NamedTuple

from ..errors import GrantExpiredError, GrantRevokedError, InvalidGrantError, NotRunningError
from ..grant import Authorize, Grant, Refusal, StreamRequest
from ..process.process import NOT_RUNNING, Process, check_expiry
from ..runtime.asgi import Receive, Send
from ..runtime.callbacks import ClientLeftError
from ..settings import Timing
from ..stream.stream import Stream
from ..wire.reasons import RefusalCause
from .authorize import ALWAYS_SOFT, REFUSED_ERRORS, Decider, Refused, hardened, refused_for
from .cors import Cors, RawHeader
from .driver import DISCONNECT_ERRORS, stream_headers
from .probe import QUERY as PROBE
from .probe import ProbePlan, Probes
from .responses import ALLOWED_METHODS, answer, refuse, refuse_softly, soft_block

# How often a request is authorized before it is refused, if a revocation outdates each decision.
ATTEMPTS = 3
# The status that nginx logs for a client that has disconnected. Middleware may need a response.
CLIENT_CLOSED_REQUEST = 499


class Endpoint:
    """Answers HTTP requests for streams. It holds configuration only, and no state of a request.

    `name` is the name of `authorize` in log lines. With `hard` no refusal is soft.
    """

    def __init__(
        self,
        authorize: Authorize,
        timing: Timing,
        cors: Cors | None,
        control_events: bool,
        soft_refusals: Collection[RefusalCause],
        count_refusal: Callable[[RefusalCause], None],
        probes: Probes | None = None,
        *,
        name: str = "authorize",
        hard: bool = False,
    ) -> None:
        self._timing = timing
        self._cors = cors
        self._control_events = control_events
        self._soft_refusals = ALWAYS_SOFT | frozenset(soft_refusals)
        self._hard = hard
        causes = () if hard else self._soft_refusals
        self._decider = Decider(authorize, causes, timing.authorize_timeout, Grant, name)
        self._count_refusal = count_refusal
        self._probes = probes

    async def __call__(
        self,
        process: Process | None,
        request: StreamRequest,
        receive: Receive,
        send: Send,
        authorize: Authorize | None = None,
        methods: bytes = ALLOWED_METHODS,
    ) -> "OpenedStream | None":
        """Answer one request, or return the stream for it, which the caller has to drive.

        `process` is None if the LivePush has stopped. The request is authorized by the `authorize` of its
        path or of the application. `methods` are those of its path, for `Allow` and for a preflight.
        """
        method = request.scope["method"]
        headers = self.cors_headers(request)
        if request.is_foreign:
            await refuse(send, Refusal(404), headers, body=method != "HEAD")
        elif request.is_too_long:
            await refuse(send, Refusal(414), headers, body=method != "HEAD")
        elif method == "OPTIONS":
            await self._answer_options(request, send, methods)
        elif method not in ("GET", "HEAD"):
            refusal = Refusal(405, headers={"allow": methods.decode()})
            await refuse(send, refusal, headers)
        elif method == "HEAD":
            await self._answer_head(process, request, headers, receive, send, authorize)
        elif self._probes is not None and PROBE in request.query:
            await self._answer_probe(self._probes, process, request, headers, receive, send)
        else:
            return await self._answer_get(process, request, headers, receive, send, authorize)
        return None

    def cors_headers(self, request: StreamRequest) -> list[RawHeader]:
        """Return the header fields of a response to the page that sends this request."""
        return [] if self._cors is None else self._cors.answer(request.headers.get("origin"))

    async def _answer_options(self, request: StreamRequest, send: Send, methods: bytes) -> None:
        headers: list[RawHeader] = [(b"allow", methods)]
        if self._cors is not None:
            headers += self._cors.preflight(request.headers.get("origin"), methods)
        await answer(send, 204, headers)

    async def _answer_head(
        self,
        process: Process | None,
        request: StreamRequest,
        headers: list[RawHeader],
        receive: Receive,
        send: Send,
        authorize: Authorize | None,
    ) -> None:
        try:
            process = _require_accepting(process)
            grant = await self._decider.decide(request, process, receive, authorize, may_be_soft=False)
            check_expiry(grant)
        except Refused as refused:
            await refuse(send, self._firm(refused), headers, body=False)
        except REFUSED_ERRORS as error:
            await refuse(send, self._firm(refused_for(error)), headers, body=False)
        except ClientLeftError:
            await _answer_closed(send)
        else:
            await send(
                {"type": "http.response.start", "status": 200, "headers": [*stream_headers(grant), *headers]}
            )
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _answer_get(
        self,
        process: Process | None,
        request: StreamRequest,
        headers: list[RawHeader],
        receive: Receive,
        send: Send,
        authorize: Authorize | None,
    ) -> "OpenedStream | None":
        try:
            stream = await self.open(process, request, receive, authorize)
            return OpenedStream(stream, [*stream_headers(stream.grant), *headers])
        except Refused as error:
            refused = error
        except REFUSED_ERRORS as error:
            refused = refused_for(error, self._soft_refusals)
        except ClientLeftError:
            await _answer_closed(send)
            return None
        self._count_refusal(refused.cause)
        await self._refuse(refused, headers, send)
        return None

    async def _answer_probe(
        self,
        probes: Probes,
        process: Process | None,
        request: StreamRequest,
        headers: list[RawHeader],
        receive: Receive,
        send: Send,
    ) -> None:
        # A probe counts in no statistics, neither as a stream nor as a refusal.
        try:
            process = _require_accepting(process)
            plan = await _plan_of(probes, request)
        except NotRunningError as error:
            await self._refuse(refused_for(error), headers, send)
            return
        except Refused as refused:
            await self._refuse(refused, headers, send)
            return
        await probes.send(
            plan, request.scope, lambda: not process.accepting or process.ended, headers, receive, send
        )

    async def open(
        self,
        process: Process | None,
        request: StreamRequest,
        receive: Receive | None = None,
        authorize: Authorize | None = None,
    ) -> Stream:
        """Authorize a request, by the `authorize` of its route or of the application, and open its stream.

        If a revocation outdates the decision, the request is authorized again. Raises Refused, one of
        REFUSED_ERRORS, and ClientLeftError.
        """
        if process is None:
            raise NotRunningError(NOT_RUNNING)
        requested_at = process.scheduler.now()
        process.admit()
        try:
            if not process.arrivals.proceeds():
                await process.arrivals.wait()
            for attempts_left in reversed(range(ATTEMPTS)):
                if not process.revoker.listening:
                    await process.revoker.listen()
                decided_at = process.revoker.log.number
                grant = await self._decider.decide(request, process, receive, authorize)
                given = grant.control_events
                try:
                    return await process.open(
                        grant,
                        decided_at=decided_at,
                        control_events=self._control_events if given is None else given,
                        last_event_id=request.last_event_id,
                        request=request,
                        authorize=authorize,
                        receive=receive,
                        requested_at=requested_at,
                    )
                except GrantRevokedError:
                    if not attempts_left:
                        raise
            raise AssertionError
        finally:
            process.pending -= 1

    async def decide_again(
        self, request: StreamRequest, process: Process, authorize: Authorize | None = None
    ) -> Grant | None:
        """Return the current grant for an open stream, or None if `authorize` now refuses it.

        Raises what `authorize` raises, unless it is a refusal.
        """
        try:
            decision = await self._decider.decision(request, process, None, authorize)
            if isinstance(decision, Refusal):
                return None
            check_expiry(decision)
        except (InvalidGrantError, GrantExpiredError):
            return None
        return decision

    def _firm(self, refused: Refused) -> Refusal:
        return hardened(refused) if self._hard else refused

    async def _refuse(self, refused: Refused, headers: list[RawHeader], send: Send) -> None:
        if self._hard or not refused.soft:
            await refuse(send, self._firm(refused), headers)
            return
        block = soft_block(refused, refused.cause, self._timing)
        await refuse_softly(send, refused, block, headers)


class OpenedStream(NamedTuple):
    """An open stream, and the headers of its response."""

    stream: Stream
    headers: list[RawHeader]


def _require_accepting(process: Process | None) -> Process:
    """Return the process. Raises NotRunningError if it does not accept new streams."""
    if process is None or not process.accepting:
        raise NotRunningError(NOT_RUNNING)
    return process


async def _answer_closed(send: Send) -> None:
    """Send a response after the client has disconnected."""
    with suppress(*DISCONNECT_ERRORS):
        await refuse(send, Refusal(CLIENT_CLOSED_REQUEST), [])


async def _plan_of(probes: Probes, request: StreamRequest) -> ProbePlan:
    try:
        return await probes.plan(request)
    except Refusal as refusal:
        raise Refused(refusal, RefusalCause.AUTHORIZE) from None
