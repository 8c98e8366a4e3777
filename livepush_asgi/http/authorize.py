"""Decider: calls `authorize` and turns its result or its exception into a Grant or a refusal."""

import inspect
import logging
import time
from collections.abc import Awaitable, Callable, Collection
from typing import Generic, TypeVar

from ..errors import (
    AuthorizationUnavailableError,
    AuthorizeError,
    CapExceededError,
    GrantExpiredError,
    GrantRevokedError,
    InvalidGrantError,
    NotRunningError,
    ProcessFullError,
    SlotsUnavailableError,
)
from ..grant import Grant, Refusal, StreamRequest
from ..process.process import Process
from ..process.revocation import deciding
from ..runtime.asgi import Receive
from ..runtime.callbacks import ClientLeftError
from ..runtime.failure_log import FailureLog, fields
from ..wire.reasons import RefusalCause
from .framework_errors import refusal_of

logger = logging.getLogger("livepush_asgi")

R = TypeVar("R", bound=StreamRequest)
#: The class of the grant: Grant, or PublishGrant.
G = TypeVar("G")

#: The causes for which an application may choose soft refusals.
SOFT_CAUSES = frozenset(
    {RefusalCause.CAP, RefusalCause.FULL, RefusalCause.SLOTS, RefusalCause.EXPIRED, RefusalCause.ERROR}
)
#: The causes with soft refusals only: the client did nothing wrong and may reconnect in a moment.
ALWAYS_SOFT = frozenset({RefusalCause.DRAIN, RefusalCause.REVOKED})
#: The `Retry-After`, in seconds, of a refusal that says to come back and not when.
RETRY_AFTER = 5
#: The detail of a 400: `authorize` raised InvalidGrantError.
INVALID = "The request names no valid channel or key."
# An `authorize` runs on the event loop, also an asynchronous one that does not wait. A warning is logged if
# it takes longer than BLOCKING_TIME, in seconds, BLOCKING_CALLS times in a row: on a busy machine a single
# call may take long without blocking. A call that waits is not measured.
BLOCKING_TIME = 0.02
BLOCKING_CALLS = 5
BLOCKED = "%s blocks the event loop, and every stream with it, the last time for %.3f s: "
IN_A_THREAD = (
    "decorate it with asgiref.sync's sync_to_async (with uses_database for Django's ORM), or make it "
    "asynchronous"
)
AWAIT = (
    "it is asynchronous and calls something that is not; use an asynchronous library, or run that call in a "
    "thread (`await sync_to_async(...)(...)`)"
)

# The status, detail and cause of the refusal for each error. A class precedes its base class.
_REFUSALS: dict[type[Exception], tuple[int, str, RefusalCause]] = {
    ProcessFullError: (429, "The server has all the streams it can hold.", RefusalCause.FULL),
    CapExceededError: (429, "Too many open streams.", RefusalCause.CAP),
    SlotsUnavailableError: (503, "The server cannot count its streams now.", RefusalCause.SLOTS),
    GrantExpiredError: (401, "The login has expired.", RefusalCause.EXPIRED),
    GrantRevokedError: (503, "The stream was revoked while it was opened.", RefusalCause.REVOKED),
    NotRunningError: (503, "The server is restarting.", RefusalCause.DRAIN),
}
#: The errors that refuse a stream before it opens.
REFUSED_ERRORS = tuple(_REFUSALS)


class Refused(Refusal):
    """A refusal with its cause. Raised when a request is refused a stream."""

    def __init__(self, refusal: Refusal, cause: RefusalCause) -> None:
        super().__init__(
            refusal.status,
            refusal.detail,
            soft=refusal.soft,
            retry_after=refusal.retry_after,
            headers=refusal.headers,
        )
        self.cause = cause


def refused_for(error: Exception, soft_refusals: Collection[RefusalCause] = ()) -> Refused:
    """Return the refusal for one of REFUSED_ERRORS."""
    status, detail, cause = next(found for kind, found in _REFUSALS.items() if isinstance(error, kind))
    # An application that chose soft refusals for a full cap gets them for a full process too.
    causes = {cause, RefusalCause.CAP} if cause is RefusalCause.FULL else {cause}
    soft = not causes.isdisjoint((*ALWAYS_SOFT, *soft_refusals))
    return Refused(Refusal(status, detail, soft=soft, retry_after=getattr(error, "retry_after", None)), cause)


def hardened(refusal: Refusal) -> Refusal:
    """Return a refusal as one with its own status, for a client that takes a soft one for an answer.

    A 429 or 503 says when to come back.
    """
    comes_back = refusal.status in (429, 503) and refusal.retry_after is None
    retry_after = RETRY_AFTER if comes_back else refusal.retry_after
    return Refusal(refusal.status, refusal.detail, retry_after=retry_after, headers=refusal.headers)


def wrong_decision(name: str, decision: object, kind: type[object]) -> AuthorizeError:
    """Return the error for a function of the application that returned something else."""
    return AuthorizeError(
        f"{name} returned {type(decision).__name__}, not a {kind.__name__} or a Refusal. "
        "Is a `return` missing, or an `await` in front of what it calls?"
    )


class Decider(Generic[R, G]):
    """Calls `authorize` for a request, and waits for at most `timeout` seconds.

    `kind` is the class of its grants, `name` its name in log lines.

    A synchronous function runs on the event loop, because a thread costs as much as the rest of a connect.
    The application wraps a function that blocks in `sync_to_async` of asgiref.
    """

    def __init__(
        self,
        authorize: Callable[[R], G | Refusal | Awaitable[G | Refusal]],
        soft_refusals: Collection[RefusalCause],
        timeout: float,
        kind: type[G],
        name: str = "authorize",
    ) -> None:
        self._authorize = authorize
        self._kind = kind
        self._name = name
        self._decisions = (kind, Refusal)
        self._soft_refusals = soft_refusals
        self._timeout = timeout
        self._failures = FailureLog()
        # How many calls in a row have blocked.
        self._blocking = 0

    async def decide(
        self,
        request: R,
        process: Process,
        receive: Receive | None = None,
        authorize: Callable[[R], object] | None = None,
        *,
        may_be_soft: bool = True,
    ) -> G:
        """Return the grant of `authorize`, or of the application's `authorize` if None is given.

        It may have expired already: see `check_expiry`.

        Raises Refused, NotRunningError in a drain, and ClientLeftError.
        """
        try:
            decision = await self.decision(request, process, receive, authorize)
        except (NotRunningError, ClientLeftError):
            raise
        except InvalidGrantError as error:
            self._failures.log(
                logging.WARNING,
                "%s raised InvalidGrantError; the client got a 400: %s",
                self._name,
                error,
                extra=fields("invalid_grant", name=self._name, error=str(error)),
            )
            decision = Refusal(400, INVALID)
        except Exception as error:
            raise self._failed(
                error, soft=may_be_soft and RefusalCause.ERROR in self._soft_refusals
            ) from None
        if isinstance(decision, Refusal):
            raise Refused(decision, RefusalCause.AUTHORIZE)
        return decision

    async def decision(
        self, request: R, process: Process, receive: Receive | None, authorize: Callable[[R], object] | None
    ) -> G | Refusal:
        """Return what `authorize` returns, or the refusal that it raises. Raises its other exceptions."""
        try:
            decision: object = self._call(authorize or self._authorize, request)
            if not isinstance(decision, self._kind) and inspect.isawaitable(decision):
                token = deciding.set(request)
                try:
                    decision = await process.callbacks.result(
                        decision,
                        receive=receive,
                        timeout=self._timeout,
                        on_first_step=self._on_first_step,
                    )
                finally:
                    deciding.reset(token)
            if not isinstance(decision, self._decisions):
                raise wrong_decision(self._name, decision, self._kind)
            if isinstance(decision, Grant):
                process.check_replay(decision)
        except Refusal as refusal:
            return refusal
        except Exception as error:
            if (meant := self._refusal_meant(error)) is None:
                raise
            return meant
        assert isinstance(decision, self._decisions)
        return decision

    def _call(self, authorize: Callable[[R], object], request: R) -> object:
        begun = time.perf_counter()
        decision: object = None
        try:
            decision = authorize(request)
            return decision
        finally:
            # Anything else is awaited, and blocks then, if it does.
            if decision is None or isinstance(decision, self._decisions):
                self._count_blocking(time.perf_counter() - begun, IN_A_THREAD)

    def _on_first_step(self, took: float) -> None:
        self._count_blocking(took, AWAIT)

    def _count_blocking(self, took: float, advice: str) -> None:
        self._blocking = self._blocking + 1 if took > BLOCKING_TIME else 0
        if self._blocking >= BLOCKING_CALLS:
            self._failures.log(
                logging.WARNING,
                BLOCKED + advice,
                self._name,
                took,
                extra=fields("authorize_blocks", name=self._name, seconds=took),
            )

    def _failed(self, error: Exception, *, soft: bool) -> Refused:
        """Log an exception of `authorize` that is no refusal, and return the refusal for it."""
        status, text = 500, "%s failed; the client got %s"
        if isinstance(error, AuthorizationUnavailableError):
            status = 503
        elif isinstance(error, TimeoutError):
            status, text = 503, "%s took longer than Timing.authorize_timeout; the client got %s"
        answer = "a soft refusal (200)" if soft else f"a {status}"
        self._failures.log(
            logging.ERROR,
            text,
            self._name,
            answer,
            error=error,
            extra=fields("authorize_failed", name=self._name, status=status),
        )
        retry_after = getattr(error, "retry_after", None) if status == 503 else None
        return Refused(Refusal(status, soft=soft, retry_after=retry_after), RefusalCause.ERROR)

    def _refusal_meant(self, error: Exception) -> Refusal | None:
        """Return the refusal that an HTTP error of a framework means, or None for any other exception.

        Raises AuthorizeError for an HTTP error that is no refusal.
        """
        try:
            return refusal_of(error)
        except Exception as wrong:
            raise AuthorizeError(f"{self._name} raised an HTTP error that is no refusal ({wrong})") from error
