"""Authenticators and permissions of Django REST framework in an `authorize`."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib.auth import login
from django.contrib.sessions.backends.db import SessionStore
from django.core.management import call_command
from django.db import connection, connections
from django.http import HttpRequest

from livepush_asgi import Authorize, Grant, LivePush, LivePushMiddleware, MemoryBroker, Refusal, StreamRequest
from livepush_asgi.contrib.django import uses_database
from livepush_asgi.testing import Client

from .apps.django_project import configure

configure()

# Both need a configured Django.
from rest_framework.authentication import (  # noqa: E402
    BaseAuthentication,
    SessionAuthentication,
    TokenAuthentication,
)
from rest_framework.exceptions import AuthenticationFailed, PermissionDenied  # noqa: E402
from rest_framework.permissions import AllowAny, IsAdminUser, IsAuthenticated  # noqa: E402

from livepush_asgi.contrib.rest_framework import authenticated  # noqa: E402

pytestmark = pytest.mark.real_time

BOTH = [TokenAuthentication(), SessionAuthentication()]


@pytest.fixture
def anyio_backend() -> str:
    # asgiref needs asyncio.
    return "asyncio"


@pytest.fixture(scope="module")
def database() -> None:
    call_command("migrate", verbosity=0)


@pytest.fixture
async def user(database: None) -> Any:
    from django.contrib.auth.models import User

    await User.objects.all().adelete()
    return await User.objects.acreate_user("ada")


def token_of(user: Any) -> str:
    from rest_framework.authtoken.models import Token

    return f"Token {Token.objects.create(user=user).key}"


def session_of(user: Any) -> str:
    request = HttpRequest()
    request.session = SessionStore()
    login(request, user, "django.contrib.auth.backends.ModelBackend")
    request.session.save()
    return str(request.session.session_key)


def granting(authenticators: Sequence[BaseAuthentication] | None, *permissions: Any) -> Authorize:
    @authenticated(authenticators=authenticators, permissions=permissions or None)
    def authorize(request: Any) -> Grant:
        if request.query_params.get("room") == "closed":
            raise PermissionDenied("The room is closed.")
        # The ORM works here.
        assert request.user.groups.count() == 0
        return Grant(channels=f"user:{request.user.pk}", slot_key=str(request.user.pk))

    return authorize


@asynccontextmanager
async def served(authorize: Authorize) -> AsyncIterator[tuple[LivePush, Client]]:
    async def django(scope: object, receive: object, send: object) -> None:
        raise AssertionError

    push = LivePush(MemoryBroker(), authorize)
    async with push.lifespan(), Client(LivePushMiddleware(django, push)) as client:
        yield push, client


async def status(client: Client, **request: Any) -> int:
    async with client.open("/events", **request) as stream:
        return stream.status


async def test_a_token_or_a_session_gets_a_stream_and_leaves_no_connection(user: Any) -> None:
    token = await sync_to_async(token_of)(user)
    session = await sync_to_async(session_of)(user)
    async with served(granting(BOTH)) as (push, client):
        async with client.open("/events", headers={"authorization": token}) as stream:
            assert await uses_database(lambda: connection.connection)() is None
            await push.publish(f"user:{user.pk}", "hello")
            assert (await stream.next_event()).data == "hello"
        assert await status(client, cookies={settings.SESSION_COOKIE_NAME: session}) == 200
        assert await status(client, cookies={settings.SESSION_COOKIE_NAME: "forged"}) == 401
    await sync_to_async(connections.close_all)()


async def test_who_is_not_authenticated_gets_what_a_view_answers(user: Any) -> None:
    async with served(granting(BOTH)) as (_, client):
        nobody = await client.request("GET", "/events")
        assert (nobody.status, nobody.headers["www-authenticate"]) == (401, "Token")
        wrong = await client.request("GET", "/events", headers={"authorization": "Token wrong"})
        assert (wrong.status, wrong.headers["www-authenticate"]) == (401, "Token")
        assert json.loads(wrong.body)["detail"] == "Invalid token."
    # Such an authenticator names no scheme by which to authenticate.
    async with served(granting([SessionAuthentication()])) as (_, client):
        assert await status(client) == 403


async def test_a_permission_that_is_missing_is_a_403(user: Any) -> None:
    token = await sync_to_async(token_of)(user)
    mine: dict[str, Any] = {"headers": {"authorization": token}}
    async with served(granting(BOTH, IsAuthenticated(), IsAdminUser())) as (_, client):
        assert await status(client, **mine) == 403
        assert await status(client) == 401
        user.is_staff = True
        await user.asave()
        assert await status(client, **mine) == 200
        closed = await client.request("GET", "/events", query={"room": "closed"}, **mine)
        assert (closed.status, json.loads(closed.body)["detail"]) == (403, "The room is closed.")


async def test_a_user_who_is_deactivated_is_refused_while_the_stream_opens_and_later(user: Any) -> None:
    token = await sync_to_async(token_of)(user)
    async with served(granting(BOTH)) as (push, client):
        async with client.open("/events", headers={"authorization": token}) as stream:
            assert stream.status == 200
            user.is_active = False
            await user.asave()
            await push.disconnect(slot_key=str(user.pk))
            assert await stream.wait_ended() == "revoked"
        assert await status(client, headers={"authorization": token}) == 401


async def test_everybody_is_refused_unless_the_permissions_say_otherwise(user: Any) -> None:
    """Catches the default of the settings, AllowAny, which would grant a channel of AnonymousUser."""
    async with served(granting(None)) as (_, client):
        assert await status(client) in (401, 403)

    @authenticated(permissions=[AllowAny()])
    def for_all(request: Any) -> Grant:
        assert not request.user.is_authenticated
        return Grant(channels="news")

    async with served(for_all) as (_, client):
        assert await status(client) == 200


async def test_an_authenticator_whose_error_has_a_structure_and_a_query_that_is_no_text(user: Any) -> None:
    class Structured(BaseAuthentication):  # type: ignore[misc]
        def authenticate(self, request: Any) -> None:
            raise AuthenticationFailed({"code": "expired", "detail": "The token has ended."})

        def authenticate_header(self, request: Any) -> str:
            return 'Bearer realm="api"'

    async with served(granting([Structured()])) as (_, client):
        answer = await client.request("GET", "/events")
        assert (answer.status, answer.headers["www-authenticate"]) == (401, 'Bearer realm="api"')
        assert json.loads(json.loads(answer.body)["detail"])["code"] == "expired"
    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b"\xff"}
    with pytest.raises(Refusal, match="400"):
        await cast("Callable[[StreamRequest], Awaitable[object]]", granting(BOTH))(StreamRequest(scope))
