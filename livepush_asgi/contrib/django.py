"""Django: an event stream as the response of an asynchronous view, under ASGI.

Django gives each request a thread and keeps it, with the database connections opened in it, until the
response has ended. So the connections are closed here before the stream begins; the idle thread stays.
Where thousands listen, put LivePushMiddleware in front of Django: its streams have no threads. Its
`authorize` runs outside of Django's request cycle, which replaces broken connections: decorate it with
`uses_database`.
"""

from collections.abc import Awaitable, Callable, Coroutine
from functools import wraps
from inspect import isawaitable, iscoroutinefunction
from typing import Any, ParamSpec, TypeVar, overload

try:
    from asgiref.sync import sync_to_async
    from django.db import close_old_connections, connections
    from django.http import HttpRequest, HttpResponse, HttpResponseBase, StreamingHttpResponse
except ModuleNotFoundError as error:
    raise ImportError("this needs Django: pip install 'livepush_asgi[django]'") from error

from ..app.livepush import LivePush
from ..app.service import SSEStream, SSEStreamService
from ..grant import Authorize, Decision, Grant, Refusal, StreamRequest
from ..runtime.asgi import Scope
from .route import SoftRefusal, headers_of, open_for_route, text_of

CONTENT_TYPE = "text/event-stream"

P = ParamSpec("P")
T = TypeVar("T")


@overload
def uses_database(function: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Awaitable[T]]: ...


@overload
def uses_database(function: Callable[P, T]) -> Callable[P, Awaitable[T]]: ...


def uses_database(function: Callable[P, object]) -> Callable[P, Awaitable[object]]:
    """Let an `authorize` (or a snapshot) that is called outside of Django's views use Django's ORM.

        @uses_database
        def authorize(request):
            user = Session.objects.get(key=request.cookies["sessionid"]).user
            return Grant(channels=f"user:{user.pk}", slot_key=str(user.pk))

    Database connections that are broken or too old are closed before and after it, as Django does for its
    own requests: without that, one lost connection makes every later call fail. A synchronous function
    runs in asgiref's thread for code that is sensitive to threads, one call at a time; an asynchronous one
    runs on the event loop, and what it passes to `sync_to_async`, or asks the asynchronous ORM for, runs
    in that thread.
    """
    if iscoroutinefunction(function):

        @wraps(function)
        async def asynchronous(*arguments: P.args, **options: P.kwargs) -> object:
            await sync_to_async(close_old_connections)()
            try:
                return await function(*arguments, **options)
            finally:
                await sync_to_async(close_old_connections)()

        return asynchronous

    def in_the_thread(*arguments: P.args, **options: P.kwargs) -> object:
        close_old_connections()
        try:
            return function(*arguments, **options)
        finally:
            close_old_connections()

    @wraps(function)
    async def synchronous(*arguments: P.args, **options: P.kwargs) -> object:
        return await sync_to_async(in_the_thread)(*arguments, **options)

    return synchronous


# Django ships no types, so its class is Any to mypy.
class EventStreamResponse(StreamingHttpResponse):  # type: ignore[misc]
    """A streaming response that no middleware compresses."""

    def __init__(self, stream: SSEStream | SoftRefusal) -> None:
        super().__init__(stream.body, content_type=CONTENT_TYPE, headers=stream.headers)

    def has_header(self, header: str) -> bool:
        """Return whether a middleware has to leave this header alone."""
        # GZipMiddleware compresses each chunk into a gzip file of its own, of which browsers read the
        # first and drop the rest: every event would be lost without a word. It knows no `no-transform`;
        # it leaves alone what has an encoding, and asks here.
        return header.lower() == "content-encoding" or bool(super().has_header(header))


async def sse_streaming_response(
    service: SSEStreamService | LivePush,
    request: HttpRequest,
    *,
    channel: str | None = None,
    slot_key: str | None = None,
    grant: Grant | None = None,
    authorize: Authorize | None = None,
) -> HttpResponseBase:
    """Open a stream and return it as the response of a view.

    `authorize` gets a StreamRequest and decides, as the one of a LivePush does, and no revocation is missed
    then. It may use Django's ORM: see `uses_database`. A decision that is made before this call goes in as a
    `channel` (with a `slot_key`) or a `grant`.

    When the cap is full it is a 429 with `Retry-After: 5`; a 503 when the slots or the broker are
    away; a 401 for a grant that has expired; and what `authorize` refuses with. For a cause in the
    component's `soft_refusals`, and while the process is ending, it is a soft refusal. The request's database
    connections are closed, but those in a transaction; a later query opens one again. Django cancels the
    response when the client has gone.
    """
    await sync_to_async(_close_connections)()
    try:
        stream = await open_for_route(
            service,
            _scope_of(request),
            channel=channel,
            slot_key=slot_key,
            grant=grant,
            authorize=None if authorize is None else _with_database(authorize),
        )
    except Refusal as refusal:
        return HttpResponse(
            text_of(refusal),
            status=refusal.status,
            content_type="text/plain; charset=utf-8",
            headers=headers_of(refusal),
        )
    if request.method == "HEAD":
        await stream.body.aclose()
        return HttpResponse(content_type=CONTENT_TYPE, headers=stream.headers)
    return EventStreamResponse(stream)


def _scope_of(request: HttpRequest) -> Scope:
    # Only a request that came by ASGI has a scope.
    scope: Scope | None = getattr(request, "scope", None)
    if scope is not None:
        return scope
    headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in request.headers.items()]
    query = request.META.get("QUERY_STRING", "").encode()
    return {"type": "http", "path": request.path, "headers": headers, "query_string": query}


def _with_database(authorize: Authorize) -> Authorize:
    """Let `authorize` use Django's ORM, and close the connections that it has opened."""
    decide = uses_database(authorize)

    async def decide_and_close(request: StreamRequest) -> Decision:
        try:
            decision = await decide(request)
            # What a partial or a callable object returns may be a coroutine still.
            return await decision if isawaitable(decision) else decision
        finally:
            await sync_to_async(_close_connections)()

    return decide_and_close


def _close_connections() -> None:
    # Persistent ones (CONN_MAX_AGE) too: their thread serves no other request. In a transaction is what
    # a test case has around its tests.
    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:
            connection.close()
