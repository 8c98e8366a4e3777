"""Starlette's sessions and users in an `authorize`: middleware that has not run, and a logout meanwhile.

In memory, so on both event loops.
"""

from collections.abc import Callable

import anyio
import pytest
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, BaseUser, SimpleUser
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import HTTPConnection
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from livepush_asgi import Authorize, Grant, LivePush, LivePushMiddleware, MemoryBroker, StreamRequest
from livepush_asgi.testing import Client

SESSIONS = Middleware(SessionMiddleware, secret_key="only for tests")


def by_session(request: StreamRequest) -> Grant:
    if user := HTTPConnection(request.scope).session.get("user"):
        return Grant(channels=f"user:{user}", slot_key=user)
    raise HTTPException(401, "Log in first.")


def by_user(request: StreamRequest) -> Grant:
    user = HTTPConnection(request.scope).user
    if not user.is_authenticated:
        raise HTTPException(401, "Log in first.")
    return Grant(channels=f"user:{user.display_name}", slot_key=user.display_name)


def inside(authorize: Authorize, *middleware: Middleware) -> ASGIApp:
    push = LivePush(MemoryBroker(), authorize)
    return Starlette(routes=[Mount("/events", push)], middleware=middleware, lifespan=push.lifespan)


def outside(authorize: Authorize, *middleware: Middleware) -> ASGIApp:
    return LivePushMiddleware(Starlette(middleware=middleware), LivePush(MemoryBroker(), authorize))


@pytest.mark.parametrize(
    ("make_app", "middleware"),
    [(inside, []), (outside, [SESSIONS])],
    ids=["no middleware", "inside of the stream"],
)
@pytest.mark.parametrize(("authorize", "missing"), [(by_session, "Session"), (by_user, "Authentication")])
async def test_middleware_that_has_not_run_is_an_error_and_no_anonymous_client(
    authorize: Authorize,
    missing: str,
    make_app: Callable[..., ASGIApp],
    middleware: list[Middleware],
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Client(make_app(authorize, *middleware), lifespan=True) as client:
        answer = await client.request("GET", "/events/")
    assert (answer.status, b"Middleware" in answer.body) == (500, False)
    assert f"{missing}Middleware must be installed" in caplog.text


async def test_a_session_cookie_that_is_absent_or_forged_is_a_401() -> None:
    async with Client(inside(by_session, SESSIONS), lifespan=True) as client:
        for cookies in ({}, {"session": "forged"}):
            assert (await client.request("GET", "/events/", cookies=cookies)).status == 401


class Logins(AuthenticationBackend):
    """A table of logins."""

    def __init__(self) -> None:
        self.users = {"sid": "ada"}

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, BaseUser] | None:
        user = self.users.get(conn.cookies.get("sid", ""))
        return None if user is None else (AuthCredentials(), SimpleUser(user))


class Pause:
    """Middleware that lets a request wait when its user is known and its stream is not asked for yet."""

    def __init__(self, app: ASGIApp, arrived: anyio.Event, goes_on: anyio.Event) -> None:
        self.app, self.arrived, self.goes_on = app, arrived, goes_on

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self.arrived.set()
            await self.goes_on.wait()
        await self.app(scope, receive, send)


@pytest.mark.parametrize("asks_again", [True, False])
async def test_a_logout_between_the_middleware_and_the_stream_is_seen_by_one_that_asks_again(
    asks_again: bool,
) -> None:
    """What the middleware has found is old: with it, a stream opens for a user who has logged out."""
    logins, arrived, goes_on = Logins(), anyio.Event(), anyio.Event()

    async def authorize(request: StreamRequest) -> Grant:
        if asks_again and await logins.authenticate(HTTPConnection(request.scope)) is None:
            raise HTTPException(401, "Log in first.")
        return by_user(request)

    push = LivePush(MemoryBroker(), authorize)
    middleware = [
        Middleware(AuthenticationMiddleware, backend=logins),
        Middleware(Pause, arrived=arrived, goes_on=goes_on),
    ]
    app = Starlette(routes=[Mount("/events", push)], middleware=middleware, lifespan=push.lifespan)

    async def log_out() -> None:
        await arrived.wait()
        logins.users.clear()
        await push.disconnect(slot_key="ada")
        goes_on.set()

    async with Client(app, lifespan=True) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(log_out)
        async with client.open("/events/", cookies={"sid": "sid"}) as stream:
            assert stream.status == (401 if asks_again else 200)
