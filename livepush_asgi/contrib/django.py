"""Django: an event stream as the response of an asynchronous view, under ASGI.

Django gives each request a thread and keeps it, with the database connections opened in it, until the
response has ended. `sse_streaming_response` closes the connections before the stream begins; the idle thread
stays. For thousands of clients put LivePushMiddleware in front of Django: its streams have no threads. Its
`authorize` runs outside of Django's request cycle, which replaces broken connections: decorate it with
`uses_database`, or ask only for the user, by `user_of`.
"""

import os
import threading
from collections.abc import AsyncIterable, Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial, wraps
from importlib import import_module
from inspect import isawaitable, iscoroutinefunction
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, Unpack, cast, overload

try:
    from asgiref.sync import sync_to_async
    from django.conf import settings
    from django.contrib.auth import get_user
    from django.core import mail
    from django.core.exceptions import ImproperlyConfigured
    from django.db import DEFAULT_DB_ALIAS, close_old_connections, connections
    from django.http import HttpRequest, HttpResponse, HttpResponseBase, StreamingHttpResponse
except ModuleNotFoundError as error:
    raise ImportError("this needs Django: pip install 'livepush_asgi[django]'") from error

from ..app.generator import SourceTerms, open_source
from ..app.livepush import LivePush
from ..app.run import Run
from ..app.service import refusal_headers
from ..grant import Authorize, Grant, Refusal, StreamRequest
from ..runtime.asgi import Scope
from ..wire.cursor import Position
from .route import (
    CONTENT_TYPE,
    RouteStream,
    StreamService,
    StreamTerms,
    open_for_route,
    open_run,
    refusal_text,
)

if TYPE_CHECKING:
    from django.contrib.auth.base_user import AbstractBaseUser
    from django.contrib.auth.models import AnonymousUser

#: How many threads look up what `uses_database` functions ask for, and so database connections, per process.
LOOKUP_THREADS = 4
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
            user = user_of_sync(request)
            if not user.is_authenticated:
                return Refusal(401)
            return Grant(channels=[f"team:{team.pk}" for team in user.teams.all()], slot_key=str(user.pk))

    A synchronous function runs in one of LOOKUP_THREADS threads. Their database connections are kept as
    CONN_MAX_AGE says, and from one call to the next while many wait. A call that waits for a thread is
    dropped when its request has left or timed out. Under Django's test runner, whose test cases have a
    transaction in one thread, the function runs in asgiref's thread. An asynchronous function runs on the
    event loop, and what it passes to `sync_to_async`, or asks the asynchronous ORM for, runs in asgiref's
    thread, one call at a time.

    Connections that are broken or too old are closed before and after it, as Django does for its own
    requests. If a connection that was open before breaks during the call, such as after a restart of the
    database, it is replaced and the function is called once more. So what the function does has to be
    repeatable, as a look-up is.
    """

    is_asynchronous = iscoroutinefunction(function) or iscoroutinefunction(type(function).__call__)

    @wraps(function)
    async def with_database(*arguments: P.args, **options: P.kwargs) -> object:
        call = partial(function, *arguments, **options)
        if is_asynchronous:
            return await _look_up_async(cast("Callable[[], Awaitable[object]]", call))
        result = await _in_a_thread(partial(_look_up, call))
        return await result if isawaitable(result) else result

    return with_database


async def _in_a_thread(function: Callable[[], T]) -> T:
    global _in_flight
    # The test runners of Django and of pytest-django set it.
    if hasattr(mail, "outbox"):
        return await sync_to_async(function)()
    _in_flight += 1
    try:
        return await sync_to_async(function, thread_sensitive=False, executor=_threads)()
    finally:
        _in_flight -= 1


def _look_up(call: Callable[[], T]) -> T:
    opened = _open_connections()
    try:
        try:
            return call()
        except Exception:
            if not _close_broken(opened):
                raise
        return call()
    finally:
        # In a wave this thread takes the next call at once, and a connection takes longer than a look-up.
        _thread.keeps_connections = _in_flight >= 2 * LOOKUP_THREADS
        if not _thread.keeps_connections:
            close_old_connections()


async def _look_up_async(call: Callable[[], Awaitable[T]]) -> T:
    opened = await sync_to_async(_open_connections)()
    try:
        try:
            return await call()
        except Exception:
            if not await sync_to_async(_close_broken)(opened):
                raise
        return await call()
    finally:
        await sync_to_async(close_old_connections)()


# Django ships no types: its connections are Any to mypy.
def _open_connections() -> list[Any]:
    """Close the connections of this thread that Django would close before a request, and return the rest."""
    if not getattr(_thread, "keeps_connections", False):
        close_old_connections()
    found = connections.all(initialized_only=True)
    return [connection for connection in found if connection.connection is not None]


def _close_broken(opened: list[Any]) -> bool:
    """Close those connections that have broken. Return whether there were any."""
    broken = [
        connection
        for connection in opened
        if connection.errors_occurred
        and not connection.in_atomic_block
        and (connection.connection is None or not connection.is_usable())
    ]
    for connection in broken:
        connection.close()
    return bool(broken)


def _make_threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(LOOKUP_THREADS, thread_name_prefix="livepush-django")


_threads = _make_threads()
_thread = threading.local()
# How many calls run or wait for a thread.
_in_flight = 0


def _reset_after_fork() -> None:
    # A forked process has none of the threads of its parent.
    global _threads, _in_flight
    _threads, _in_flight = _make_threads(), 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)


async def user_of(request: StreamRequest) -> "AbstractBaseUser | AnonymousUser":
    """Return the user of the request's session: AnonymousUser without a login, as `request.user` of a view.

        async def authorize(request):
            user = await user_of(request)
            if not user.is_authenticated:
                return Refusal(401)
            return Grant(channels=f"user:{user.pk}", slot_key=str(user.pk))

    The session is read and never changed. It is looked up in a thread, as with `uses_database`. A request
    without a session cookie costs no query. An `authorize` that asks the database for more than the user
    is a synchronous function with `uses_database`, which calls `user_of_sync`: so it waits for a thread once.
    """
    if not request.cookies.get(settings.SESSION_COOKIE_NAME):
        return user_of_sync(request)
    return await _user_in_a_thread(request)


def user_of_sync(request: StreamRequest) -> "AbstractBaseUser | AnonymousUser":
    """Return the user as `user_of` does, in a synchronous function with `uses_database`."""
    cookie = request.cookies.get(settings.SESSION_COOKIE_NAME)
    http_request = HttpRequest()
    http_request.session = _ReadSession()
    if cookie:
        store = import_module(settings.SESSION_ENGINE).SessionStore(cookie)
        http_request.session.update(store.load())
    return get_user(http_request)


_user_in_a_thread = uses_database(user_of_sync)


class _ReadSession(dict[str, object]):
    """The data of a session, for `get_user`, which ends or renames a session that it finds outdated.

    A stream cannot set a cookie, so a renamed session would log its user out.
    """

    def flush(self) -> None:
        """Do nothing."""

    def cycle_key(self) -> None:
        """Do nothing."""


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
        terms["authorize"] = _in_request(authorize)
    return await _response(open_for_route(service, _scope_of(request), **terms))


async def run_response(
    push: LivePush,
    request: HttpRequest,
    run: Run,
    *,
    slot_key: str | None = None,
    expires_at: datetime | float | None = None,
) -> HttpResponseBase:
    """Return a run, `push.run(id, dialect=...)`, as the response of a view.

    The caller has decided that the client may read it. The client gets the output from the beginning, or
    from its last event id, then the end, and the response ends. It gets the status `dialect.idle`, such as
    204, where there is no such run and where it has all of it. The stream takes a slot of `slot_key`, and
    ends at `expires_at`. A client that gets no stream gets a 429 when the cap is full, a 503
    when the slots or the broker are away, a 401 for `expires_at` in the past. A soft refusal is a response; a
    dialect without control events gets none. The request's database connections are closed, as by
    `sse_streaming_response`. Raises ValueError for a run of another LivePush, and ImproperlyConfigured under
    WSGI.
    """
    _check_asgi(request)
    await sync_to_async(_close_connections)()
    opening = open_run(push, _scope_of(request), run, slot_key=slot_key, expires_at=expires_at)
    return await _response(opening)


def needs_asgi(request: HttpRequest) -> HttpResponseBase:
    """Tell why the path of LivePushMiddleware reaches Django: `path("events", needs_asgi)` in the URLconf.

    The middleware answers its path itself. Under WSGI, such as runserver without daphne, nothing calls it,
    and the path would be a 404 without a reason. Raises ImproperlyConfigured.
    """
    _check_asgi(request)
    raise ImproperlyConfigured(
        f"no LivePushMiddleware has answered {request.path!r}: put it around get_asgi_application() in "
        "asgi.py, with this path, and serve that application"
    )


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


def _in_request(authorize: Authorize) -> Authorize:
    """Call it in the thread of the request, and close the connections that it opens."""

    @sync_to_async
    def call(request: StreamRequest) -> object:
        try:
            return authorize(request)
        finally:
            _close_connections()

    async def in_request(request: StreamRequest) -> Grant | Refusal:
        # An asynchronous function only makes its coroutine in the thread.
        decision = await call(request)
        if not isawaitable(decision):
            return cast("Grant | Refusal", decision)
        try:
            return cast("Grant | Refusal", await decision)
        finally:
            await sync_to_async(_close_connections)()

    return in_request


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
