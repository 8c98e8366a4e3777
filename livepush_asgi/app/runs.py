"""RunsEndpoint: the application of `LivePush.runs`, which streams runs to their clients and cancels them."""

import json
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from functools import partial
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, NamedTuple

from ..dialects import Dialect
from ..errors import BrokerUnavailableError, NotRunningError
from ..grant import Authorize, Decision, Refusal, RunAccess, RunGrant, StreamRequest
from ..http.authorize import REFUSED_ERRORS, Decider, hardened, refused_for, wrong_decision
from ..http.cors import Cors
from ..http.driver import DISCONNECT_ERRORS, drive
from ..http.endpoint import CLIENT_CLOSED_REQUEST, Endpoint
from ..http.responses import ALLOWED_METHODS, answer, refuse
from ..process.process import NOT_RUNNING, check_expiry
from ..runtime.asgi import Receive, Scope, Send
from ..runtime.callbacks import ClientLeftError
from .run import Run, RunStatus

if TYPE_CHECKING:
    from .livepush import LivePush

#: What decides about a client of a run.
AuthorizeRun = Callable[[StreamRequest, Run], RunAccess | Refusal | Awaitable[RunAccess | Refusal]]
Access = Callable[[StreamRequest], Awaitable[RunAccess | Refusal]]

#: The methods of a run's own path.
RUN_METHODS = ALLOWED_METHODS + b", DELETE"
#: The path of the stream below that of the run: the AI SDK asks for it.
STREAM = "stream"
# The longest id of a run in a path, in characters. What a broker makes of it names a channel there.
MAX_ID = 256
AWAY = "The server cannot reach its broker now."


def authorize_once(run: Run, access: Access) -> Authorize:
    """Return the `authorize` of one stream of a run, which asks `access` whenever it is called.

    It asks the log of the run once. An open stream is authorized again if revocations may have been lost:
    the run may have ended by then, and the client has not had all of it.
    """
    granted: RunGrant | None = None

    async def authorize(request: StreamRequest) -> Decision:
        nonlocal granted
        allowed = await access(request)
        if isinstance(allowed, Refusal):
            return allowed
        if granted is None:
            decision = await run.grant(request)
            if isinstance(decision, Refusal):
                return decision
            granted = decision
        return replace(granted, slot_key=allowed.slot_key, expires_at=allowed.expires_at)

    return authorize


class RunsEndpoint:
    """The ASGI application of `LivePush.runs`. It passes lifespan and WebSockets on to `push`."""

    def __init__(
        self, push: "LivePush", authorize_run: AuthorizeRun, dialect: Dialect | None, cors: Cors | None
    ) -> None:
        # Raises for a broker without history.
        written_in = push.run("any", dialect=dialect).dialect
        self._push = push
        self._authorize_run = authorize_run
        self._dialect = dialect
        self._endpoint = Endpoint(
            _refuse_all,
            push.timing,
            cors,
            push.control_events,
            push.soft_refusals,
            push._count_refusal,
            name="authorize_run",
            hard=not written_in.control_events,
        )
        self._decider = Decider(_refuse_all, (), push.timing.authorize_timeout, RunAccess, "authorize_run")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one ASGI connection."""
        if scope["type"] != "http":
            await self._push(scope, receive, send)
            return
        streaming = None
        # A client that has left needs no answer.
        with suppress(*DISCONNECT_ERRORS):
            streaming = await self._answer(StreamRequest(scope), receive, send)
        # An open stream need not keep its scope in memory.
        del scope
        if streaming is not None:
            await streaming

    async def _answer(
        self, request: StreamRequest, receive: Receive, send: Send
    ) -> Coroutine[Any, Any, None] | None:
        """Answer one request, or return a coroutine that sends its stream."""
        method, target = request.scope["method"], None if request.is_foreign else _target_of(request.path)
        if target is None:
            await refuse(send, Refusal(404), self._endpoint.cors_headers(request), body=method != "HEAD")
            return None
        run = self._push.run(target.id, dialect=self._dialect)
        access = partial(self._access, run)
        if method == "DELETE" and not target.is_stream:
            await self._answer_cancel(run, access, request, receive, send)
            return None
        opened = await self._endpoint(
            await self._push._current_process(),
            request,
            receive,
            send,
            authorize_once(run, access),
            ALLOWED_METHODS if target.is_stream else RUN_METHODS,
        )
        return None if opened is None else drive(*opened, receive, send, request.scope.get("client"))

    async def _access(self, run: Run, request: StreamRequest) -> RunAccess | Refusal:
        decision: object = self._authorize_run(request, run)
        if not isinstance(decision, (RunAccess, Refusal)) and isawaitable(decision):
            decision = await decision
        if not isinstance(decision, (RunAccess, Refusal)):
            raise wrong_decision("authorize_run", decision, RunAccess)
        return decision

    async def _answer_cancel(
        self, run: Run, access: Access, request: StreamRequest, receive: Receive, send: Send
    ) -> None:
        headers = self._endpoint.cors_headers(request)
        try:
            status = await self._cancel(run, access, request, receive)
        except ClientLeftError:
            refusal = Refusal(CLIENT_CLOSED_REQUEST)
        except REFUSED_ERRORS as error:
            refusal = refused_for(error)
        except Refusal as refused:
            # To the client of a stream a 204 is a refusal; here it would be a success.
            refusal = Refusal(403, refused.detail) if refused.status == 204 else refused
        else:
            fields = [(b"content-type", b"application/json"), (b"cache-control", b"no-store"), *headers]
            body = {"id": status.id, "state": status.state.value, "count": status.count}
            await answer(send, 200, fields, json.dumps(body).encode())
            return
        await refuse(send, hardened(refusal), headers)

    async def _cancel(self, run: Run, access: Access, request: StreamRequest, receive: Receive) -> RunStatus:
        process = await self._push._current_process()
        if process is None:
            raise NotRunningError(NOT_RUNNING)
        allowed = await self._decider.decide(request, process, receive, access)
        check_expiry(allowed)
        if not allowed.may_cancel:
            raise Refusal(403, "You may not cancel this run.")
        try:
            status = await run.cancel()
        except BrokerUnavailableError as error:
            raise Refusal(503, AWAY) from error
        if status is None:
            raise Refusal(404)
        return status


class _Target(NamedTuple):
    id: str
    is_stream: bool


def _target_of(path: str) -> _Target | None:
    """Return what a path names, None for a path that no run can have."""
    id, _, rest = path[1:].partition("/")
    if not 0 < len(id) <= MAX_ID or not id.isprintable() or rest not in ("", STREAM):
        return None
    return _Target(id, rest == STREAM)


def _refuse_all(request: StreamRequest) -> Refusal:
    """Stand for the `authorize` that each request brings itself."""
    return Refusal(404)
