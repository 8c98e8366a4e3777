"""Django's login in an `authorize`: the user of a session, and the sessions that are none any more."""

from collections.abc import AsyncIterator, Iterator
from importlib import import_module
from runpy import run_path
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.db import connection
from django.db.backends.signals import connection_created
from django.http import HttpRequest
from django.test import AsyncRequestFactory, RequestFactory, override_settings

from livepush_asgi import Authorize, LivePush, LivePushMiddleware, MemoryBroker
from livepush_asgi.contrib.django import needs_asgi, sse_streaming_response, uses_database
from livepush_asgi.testing import Client

from .apps.django_project import configure
from .serving import REPOSITORY

configure()

pytestmark = pytest.mark.real_time

ENGINES = ["db", "cached_db", "cache", "file", "signed_cookies"]


@pytest.fixture
def anyio_backend() -> str:
    # asgiref needs asyncio.
    return "asyncio"


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Iterator[str]:
    name = f"django.contrib.sessions.backends.{request.param}"
    with override_settings(SESSION_ENGINE=name):
        yield name


def prepare() -> None:
    from django.contrib.auth.models import User

    call_command("migrate", verbosity=0)
    User.objects.all().delete()


@pytest.fixture
async def user() -> Any:
    from django.contrib.auth.models import User

    await sync_to_async(prepare)()
    return await User.objects.acreate_user("ada", password="lovelace")


def log_in(user: Any) -> Any:
    """Return the session of a login, as Django's own view of it saves it."""
    from django.contrib.auth import login

    request = HttpRequest()
    request.session = import_module(settings.SESSION_ENGINE).SessionStore()
    login(request, user, "django.contrib.auth.backends.ModelBackend")
    request.session.save()
    return request.session


#: The `authorize` that the guide shows.
authorize: Authorize = run_path(str(REPOSITORY / "docs/snippets/login/authorize.py"))["authorize"]


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async def django(scope: object, receive: object, send: object) -> None:
        raise AssertionError

    push = LivePush(MemoryBroker(), authorize)
    async with push.lifespan(), Client(LivePushMiddleware(django, push)) as client:
        yield client


async def status(client: Client, cookie: str | None) -> int:
    cookies = None if cookie is None else {settings.SESSION_COOKIE_NAME: cookie}
    async with client.open("/events", cookies=cookies) as stream:
        return stream.status


async def test_the_user_of_a_session_gets_a_stream(client: Client, user: Any, engine: str) -> None:
    session = await sync_to_async(log_in)(user)
    assert await status(client, session.session_key) == 200
    forged = ["", "x", session.session_key[:-1] + "!", "é" * 40, "a" * 32]
    assert [await status(client, cookie) for cookie in forged] == [401] * len(forged)


async def test_without_a_cookie_the_database_is_not_asked(client: Client, user: Any) -> None:
    made = []

    def note(**_: object) -> None:
        made.append(1)

    connection_created.connect(note)
    try:
        await sync_to_async(lambda: connection.close())()
        assert await status(client, None) == 401
        assert made == []
        session = await sync_to_async(log_in)(user)
        assert await status(client, session.session_key) == 200
        # No connection is left open while nothing is asked.
        assert await uses_database(lambda: connection.connection)() is None
    finally:
        connection_created.disconnect(note)


async def test_a_user_that_may_not_log_in_any_more_is_nobody(client: Client, user: Any) -> None:
    session = await sync_to_async(log_in)(user)
    user.is_active = False
    await user.asave()
    assert await status(client, session.session_key) == 401


async def test_a_changed_password_ends_the_login_and_leaves_the_session_to_django(
    client: Client, user: Any
) -> None:
    from django.contrib.sessions.models import Session

    session = await sync_to_async(log_in)(user)
    user.set_password("another")
    await user.asave()
    assert await status(client, session.session_key) == 401
    assert await Session.objects.filter(session_key=session.session_key).aexists()


async def test_a_rotated_secret_key_does_not_rename_the_session(client: Client, user: Any) -> None:
    """Django gives such a session a new name, and a stream cannot set the cookie with it."""
    session = await sync_to_async(log_in)(user)
    with override_settings(SECRET_KEY="a new one", SECRET_KEY_FALLBACKS=[settings.SECRET_KEY]):
        assert [await status(client, session.session_key) for _ in range(2)] == [200, 200]


def test_the_path_of_the_middleware_says_why_it_reaches_django() -> None:
    """Catches the 404 without a reason under runserver."""
    with pytest.raises(ImproperlyConfigured, match=r"came by WSGI.*asgi\.py.*daphne"):
        needs_asgi(RequestFactory().get("/events"))
    with pytest.raises(ImproperlyConfigured, match=r"no LivePushMiddleware has answered '/events'"):
        needs_asgi(AsyncRequestFactory().get("/events"))


async def test_a_view_under_wsgi_says_what_to_do() -> None:
    push = LivePush(MemoryBroker(), authorize)
    async with push.lifespan():
        with pytest.raises(
            ImproperlyConfigured, match=r"came by WSGI.*asgi\.py.*daphne.*AsyncRequestFactory"
        ):
            await sse_streaming_response(push, RequestFactory().get("/"), channel="news")
        response = await sse_streaming_response(push, AsyncRequestFactory().get("/"), channel="news")
        assert response.status_code == 200
        response.close()
