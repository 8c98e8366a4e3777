"""Django: an event stream as the response of an asynchronous view, under ASGI.

Django gives each request a thread and keeps it, with the database connections opened in it, until the
response has ended. `sse_streaming_response` closes the connections before the stream begins; the idle thread
stays. For thousands of clients put LivePushMiddleware in front of Django: its streams have no threads. Its
`authorize` runs outside of Django's request cycle, which replaces broken connections: decorate it with
`uses_database`, or ask only for the user, by `user_of`.
"""

from collections.abc import AsyncIterable, Awaitable, Callable, Coroutine
from functools import wraps
from importlib import import_module
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, Unpack, cast, overload

try:
    from asgiref.sync import sync_to_async
    from django.conf import settings
    from django.contrib.auth import get_user
    from django.core.exceptions import ImproperlyConfigured
    from django.db import DEFAULT_DB_ALIAS, close_old_connections, connections
    from django.http import HttpRequest, HttpResponse, HttpResponseBase, StreamingHttpResponse
except ModuleNotFoundError as error:
    raise ImportError("this needs Django: pip install 'livepush_asgi[django]'") from error

from ..app.generator import SourceTerms, open_source
from ..app.livepush import LivePush
from ..app.service import refusal_headers
from ..grant import Authorize, Refusal, StreamRequest
from ..runtime.asgi import Scope
from ..wire.cursor import Position
from .route import CONTENT_TYPE, RouteStream, StreamService, StreamTerms, open_for_route, refusal_text

if TYPE_CHECKING:
    from django.contrib.auth.base_user import AbstractBaseUser
    from django.contrib.auth.models import AnonymousUser

BY_WSGI = (
    "a stream needs ASGI, and this request came by WSGI: serve the project's asgi.py (`uvicorn "
    "project.asgi:application`), or put 'daphne' first into INSTALLED_APPS, so that runserver speaks ASGI; "
    "in a test, use AsyncRequestFactory"
)

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
    return _closing(function, close_old_connections)


def _closing(function: Callable[P, object], close: Callable[[], None]) -> Callable[P, Awaitable[object]]:
    """Return the function with `close` called before and after it, in asgiref's thread."""

    @sync_to_async
    def in_the_thread(*arguments: P.args, **options: P.kwargs) -> object:
        close()
        try:
            return function(*arguments, **options)
        finally:
            close()

    @wraps(function)
    async def with_database(*arguments: P.args, **options: P.kwargs) -> object:
        # An asynchronous function only makes its coroutine in the thread.
        result = await in_the_thread(*arguments, **options)
        if not isawaitable(result):
            return result
        try:
            return await result
        finally:
            await sync_to_async(close)()

    return with_database


async def user_of(request: StreamRequest) -> "AbstractBaseUser | AnonymousUser":
    """Return the user of the request's session: AnonymousUser without a login, as `request.user` of a view.

        async def authorize(request):
            user = await user_of(request)
            if not user.is_authenticated:
                return Refusal(401)
            return Grant(channels=f"user:{user.pk}", slot_key=str(user.pk))

    The session is read and never changed. It is looked up in asgiref's thread, as with `uses_database`. A
    request without a session cookie costs no query.
    """
    return await _load_user(request)


class _ReadSession(dict[str, object]):
    """The data of a session, for `get_user`, which ends or renames a session that it finds outdated.

    A stream cannot set a cookie, so a renamed session would log its user out.
    """

    def flush(self) -> None:
        """Do nothing."""

    def cycle_key(self) -> None:
        """Do nothing."""


@uses_database
def _load_user(request: StreamRequest) -> "AbstractBaseUser | AnonymousUser":
    cookie = request.cookies.get(settings.SESSION_COOKIE_NAME)
    http_request = HttpRequest()
    http_request.session = _ReadSession()
    if cookie:
        store = import_module(settings.SESSION_ENGINE).SessionStore(cookie)
        http_request.session.update(store.load())
    return get_user(http_request)


# Django ships no types: its class is Any to mypy.
class EventStreamResponse(StreamingHttpResponse):  # type: ignore[misc]
    """A streaming response that no middleware compresses."""

    def __init__(self, stream: RouteStream) -> None:
        super().__init__(stream.body, content_type=CONTENT_TYPE, headers=stream.headers)

    def has_header(self, header: str) -> bool:
        """Return whether a middleware has to leave this header alone."""
        # GZipMiddleware would compress each chunk into a gzip file of its own. Browsers read the first and
        # drop the rest, so every event would be lost in silence. GZipMiddleware ignores `no-transform`, but
        # leaves a response alone that has an encoding, and asks here.
        return header.lower() == "content-encoding" or bool(super().has_header(header))


async def sse_streaming_response(
    service: StreamService, request: HttpRequest, **terms: Unpack[StreamTerms]
) -> HttpResponseBase:
    """Open a stream and return it as the response of a view.

    The terms are a `channel` (and a `slot_key`), a `grant`, or an `authorize`: see StreamTerms. `authorize`
    may use Django's ORM as it is. A client that gets no stream gets a 429 when the cap is full, a 503 when
    the slots or the broker are away, a 401 for a grant that has expired, or what `authorize` refuses with.
    The request's database connections are closed, except in a transaction; a later query opens one again.
    Django cancels the response when the client has gone. Raises ImproperlyConfigured under WSGI.
    """
    _check_asgi(request)
    await sync_to_async(_close_connections)()
    if authorize := terms.get("authorize"):
        terms["authorize"] = cast("Authorize", _closing(authorize, _close_connections))
    return await _response(open_for_route(service, _scope_of(request), **terms))


def publish_in_atomic(
    push: LivePush,
    channel: str,
    data: object,
    *,
    event: str | None = None,
    id: str | int | None = None,
    retry: int | None = None,
    idempotency_key: str | None = None,
    expected_position: Position | str | None = None,
    using: str = DEFAULT_DB_ALIAS,
) -> str:
    """Publish one event in the transaction of a synchronous view, with PostgresBroker; return its event id.

        with transaction.atomic():
            order = Order.objects.create(...)
            publish_in_atomic(push, f"user:{order.user_id}", {"order": order.pk})

    The event exists if and only if the block commits: there is no `on_commit` that a crash could swallow.
    `using` is the alias of the database, which has to be that of the broker. The other arguments are those of
    LivePush.publish. Raises ImproperlyConfigured if the database is not PostgreSQL, and what
    LivePush.publish_in raises: RuntimeError outside of a transaction, for example.
    """
    connection = connections[using]
    if connection.vendor != "postgresql":
        raise ImproperlyConfigured(
            f"the database {using!r} is {connection.vendor}, and the events of PostgresBroker are in "
            "PostgreSQL: name the alias of its database with using=..."
        )
    published: str = push.publish_in(
        connection,
        channel,
        data,
        event=event,
        id=id,
        retry=retry,
        idempotency_key=idempotency_key,
        expected_position=expected_position,
    )
    return published


async def event_stream_response(
    request: HttpRequest, source: AsyncIterable[object], **terms: Unpack[SourceTerms]
) -> HttpResponseBase:
    """Return the events of an async iterator as the response of an asynchronous view, without a broker.

    `source` yields Events, or data for one as `publish` takes it: `yield {"n": 1}` sends JSON. It runs no
    further than the client takes: while a send waits, it produces one event more. It is closed when it ends
    or raises, when the client leaves or takes nothing for `Timing.send_timeout`, and in a drain. Its
    `finally` may then await for 3 seconds. For the terms (`push`, `slot_key`, `expires_at`,
    `control_events`) see SourceTerms. A client that gets no stream gets a 429 when the cap is full, a 503
    when the slots are away, a 401 for `expires_at` in the past. A soft refusal is a response. The request's
    database connections are closed before; a query of the source opens one again. Raises
    ImproperlyConfigured under WSGI.
    """
    _check_asgi(request)
    await sync_to_async(_close_connections)()
    return await _response(open_source(_scope_of(request), source, **terms))


def _check_asgi(request: HttpRequest) -> None:
    if "wsgi.version" in request.META:
        raise ImproperlyConfigured(BY_WSGI)


async def _response(opening: Awaitable[RouteStream]) -> HttpResponseBase:
    try:
        stream = await opening
    except Refusal as refusal:
        text, headers = refusal_text(refusal), refusal_headers(refusal)
        return HttpResponse(text, "text/plain; charset=utf-8", refusal.status, headers=headers)
    return EventStreamResponse(stream)


def _scope_of(request: HttpRequest) -> Scope:
    # Only a request that came by ASGI has a scope.
    scope: Scope | None = getattr(request, "scope", None)
    return scope or {
        "type": "http",
        "method": request.method,
        "path": request.path,
        "query_string": request.META.get("QUERY_STRING", "").encode(),
        "headers": [
            (name.lower().encode(), text.encode("latin-1")) for name, text in request.headers.items()
        ],
    }


def _close_connections() -> None:
    # Persistent connections (CONN_MAX_AGE) too: their thread serves no other request. A connection in a
    # transaction belongs to a test case, which has one around each test.
    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:
            connection.close()
