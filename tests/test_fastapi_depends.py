"""`contrib.fastapi.depends`: an `authorize` that is a tree of dependencies, resolved and ended for each open.

In memory, so on both event loops.
"""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Annotated, Any

import anyio
import pytest
from fastapi import (
    APIRouter,
    BackgroundTasks,
    Body,
    Depends,
    FastAPI,
    Header,
    HTTPException,
    Path,
    Request,
    Security,
)
from fastapi.security import OAuth2PasswordBearer, SecurityScopes
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Mount
from starlette.types import ASGIApp

from livepush_asgi import Authorize, Grant, LivePush, LivePushMiddleware, MemoryBroker, Refusal, Timing
from livepush_asgi.contrib.fastapi import depends, sse_streaming_response
from livepush_asgi.testing import Client

NEWS = Grant(channels="news")
bearer = OAuth2PasswordBearer("login", scopes={"stream": "Listen."})


async def deny() -> None:
    raise HTTPException(403, "Nobody may.", {"x-why": "closed"})


async def news() -> Grant:
    return NEWS


def mounted(
    authorize: Authorize,
    app: FastAPI | None = None,
    path: str = "/events",
    timing: Timing | None = None,
) -> tuple[LivePush, Client]:
    app = app or FastAPI()
    push = LivePush(MemoryBroker(), authorize, timing=timing)
    app.mount(path, push)
    app.router.lifespan_context = push.lifespan
    return push, Client(app, lifespan=True)


async def answered(
    authorize: Authorize, app: FastAPI | None = None, *, timing: Timing | None = None, **request: Any
) -> tuple[int, bytes]:
    """Return the status and the body of a refusal, or 200 and nothing for a stream."""
    _, client = mounted(authorize, app, timing=timing)
    async with client, client.open("/events/", **request) as stream:
        return stream.status, b"" if stream.status == 200 else await stream.read_body()


async def test_the_dependencies_of_the_application_are_not_those_of_a_plain_mount_but_of_depends() -> None:
    """FastAPI resolves them for path operations alone: the plain mount is open to everybody."""
    deny_all = [Depends(deny)]
    assert (await answered(lambda request: NEWS, FastAPI(dependencies=deny_all)))[0] == 200
    status, body = await answered(depends(news), FastAPI(dependencies=deny_all))
    assert (status, json.loads(body)["detail"]) == (403, "Nobody may.")

    async def with_its_own(_: Annotated[None, Depends(deny)]) -> Grant:
        return NEWS

    assert (await answered(depends(with_its_own)))[0] == 403
    assert (await answered(depends(news)))[0] == 200


@pytest.mark.parametrize("denies", ["nothing", "router", "include", "outer", "outer include", "app"])
async def test_the_dependencies_of_the_routers_around_a_mount_deny_too(denies: str) -> None:
    """FastAPI includes the mounts of a router, without its dependencies. Earlier ones leave it out."""

    def around(place: str) -> list[Any]:
        return [Depends(deny)] if place == denies else []

    push = LivePush(MemoryBroker(), depends(news))
    router, outer = APIRouter(dependencies=around("router")), APIRouter(dependencies=around("outer"))
    router.mount("/events", push)
    outer.include_router(router, dependencies=around("include"))
    app = FastAPI(lifespan=push.lifespan, dependencies=around("app"))
    app.include_router(outer, prefix="/api", dependencies=around("outer include"))
    async with Client(app, lifespan=True) as client, client.open("/api/events/") as stream:
        assert stream.status in ((200, 404) if denies == "nothing" else (403, 404))


async def user_of(scopes: SecurityScopes, token: Annotated[str, Depends(bearer)]) -> str:
    user, *given = token.split("+")
    if missing := set(scopes.scopes) - set(given):
        header = {"WWW-Authenticate": f'Bearer scope="{scopes.scope_str}"'}
        raise HTTPException(401, f"Missing: {', '.join(missing)}", header)
    return user


async def streams_of(user: Annotated[str, Security(user_of, scopes=["stream"])]) -> Grant:
    return Grant(channels=f"user:{user}", slot_key=user)


async def test_security_schemes_say_who_the_user_is_and_what_a_client_is_missing() -> None:
    push, client = mounted(depends(streams_of))
    async with client:
        none = await client.request("GET", "/events/")
        assert (none.status, none.headers["www-authenticate"]) == (401, "Bearer")
        few = await client.request("GET", "/events/", headers={"authorization": "Bearer ada"})
        assert (few.status, few.headers["www-authenticate"]) == (401, 'Bearer scope="stream"')
        async with client.open("/events/", headers={"authorization": "Bearer ada+stream"}) as stream:
            await push.publish("user:ada", "hello")
            assert (await stream.next_event()).data == "hello"


async def test_the_dependency_itself_may_be_given_scopes() -> None:
    async def grant(user: Annotated[str, Depends(user_of)], scopes: SecurityScopes) -> Grant:
        return Grant(channels=[user, *scopes.scopes])

    authorize = depends(Security(grant, scopes=["admin"]))
    assert (await answered(authorize, headers={"authorization": "Bearer ada"}))[0] == 401
    assert (await answered(authorize, headers={"authorization": "Bearer ada+admin"}))[0] == 200


async def test_overrides_apply_to_the_dependency_and_below_it() -> None:
    app = FastAPI()

    async def alan() -> str:
        return "alan"

    app.dependency_overrides[user_of] = alan
    assert (await answered(depends(streams_of), app))[0] == 200
    app = FastAPI()
    app.dependency_overrides[streams_of] = deny
    assert (await answered(depends(streams_of), app))[0] == 403


async def test_parameters_come_from_the_path_the_query_headers_and_cookies() -> None:
    async def grant(
        room: str, request: Request, n: int, x_kind: Annotated[str, Header()], last: str = "-"
    ) -> Grant:
        assert request.cookies == {"sid": "s"}
        return Grant(channels=f"{room}:{n}:{x_kind}:{last}")

    push, client = mounted(depends(grant), path="/rooms/{room}")
    async with client:
        right: dict[str, Any] = {"query": {"n": "1"}, "headers": {"x-kind": "k"}, "cookies": {"sid": "s"}}
        async with client.open("/rooms/kitchen/", **right) as stream:
            await push.publish("kitchen:1:k:-", "tea")
            assert (await stream.next_event()).data == "tea"
        wrong = await client.request("GET", "/rooms/kitchen/", query={"n": "many" * 1000})
    assert wrong.status == 422
    detail = json.loads(wrong.body)["detail"]
    assert detail.startswith("query.n: Input should be a valid integer")
    assert "header.x-kind: Field required" in detail
    assert b"manymany" not in wrong.body


@pytest.mark.real_time
async def test_synchronous_dependencies_run_in_threads_and_end_too() -> None:
    log: list[str] = []

    def session() -> Iterator[str]:
        try:
            yield "a session"
        finally:
            log.append("closed")

    def grant(session: Annotated[str, Depends(session)]) -> Grant:
        log.append(session)
        raise HTTPException(403)

    assert (await answered(depends(grant)))[0] == 403
    assert log == ["a session", "closed"]


async def test_in_a_path_operation_it_has_the_parameters_of_the_path() -> None:
    async def member(
        room: Annotated[str, Path()], user: Annotated[str, Depends(user_of)]
    ) -> AsyncIterator[Grant]:
        if room != "kitchen":
            raise HTTPException(403, "You are no member.", {"x-room": room})
        yield Grant(channels=f"room:{room}", slot_key=user)

    authorize = depends(member)
    push = LivePush(MemoryBroker(), lambda request: Refusal(404))
    app = FastAPI(lifespan=push.lifespan)

    @app.get("/rooms/{room}/events")
    async def events(request: Request) -> Response:
        return await sse_streaming_response(push, request, authorize=authorize)

    ada = {"authorization": "Bearer ada"}
    async with Client(app, lifespan=True) as client:
        async with client.open("/rooms/kitchen/events", headers=ada) as stream:
            await push.publish("room:kitchen", "tea")
            assert (await stream.next_event()).data == "tea"
        answer = await client.request("GET", "/rooms/garden/events", headers=ada)
        assert (answer.status, answer.headers["x-room"]) == (403, "garden")
        assert (await client.request("GET", "/rooms/kitchen/events")).status == 401


class Pool:
    """A pool of database sessions of a fixed size."""

    def __init__(self, size: int) -> None:
        self.free = size
        self._limit = anyio.Semaphore(size)
        self.log: list[str] = []

    async def session(self) -> AsyncIterator[str]:
        async with self._limit:
            self.free -= 1
            try:
                # As a query would.
                await anyio.lowlevel.checkpoint()
                yield "a session"
                self.log.append("commit")
            except BaseException:
                self.log.append("rollback")
                raise
            finally:
                # As a connection that is returned does: it says so to its server.
                await anyio.lowlevel.checkpoint()
                self.free += 1


async def test_two_hundred_streams_need_no_more_than_a_pool_of_five() -> None:
    pool = Pool(5)

    async def grant(session: Annotated[str, Depends(pool.session)]) -> Grant:
        return NEWS

    push, client = mounted(depends(grant))
    opened = [anyio.Event() for _ in range(200)]

    async def listen(is_open: anyio.Event) -> None:
        async with client.open("/events/") as stream:
            # The first byte comes when the session is back.
            await stream.next_event(name="livepush.open")
            is_open.set()
            await stream.next_event(name="end")

    async with client, anyio.create_task_group() as tasks:
        for each in opened:
            tasks.start_soon(listen, each)
        for each in opened:
            await each.wait()
        assert (pool.free, push.statistics()["streams"]) == (5, 200)
        await push.publish("news", "", event="end")
    assert pool.log == ["commit"] * 200


async def test_what_a_dependency_raises_reaches_the_sessions_below_it() -> None:
    pool = Pool(1)

    async def refuses(session: Annotated[str, Depends(pool.session)]) -> Grant:
        raise HTTPException(410, "Gone.")

    async def returns_it(session: Annotated[str, Depends(pool.session)]) -> Refusal:
        return Refusal(410)

    assert (await answered(depends(refuses)))[0] == 410
    assert (await answered(depends(returns_it)))[0] == 410
    assert (pool.free, pool.log) == (1, ["rollback", "commit"])


async def test_a_dependency_that_fails_after_the_grant_opens_no_stream(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def session() -> AsyncIterator[None]:
        yield
        raise RuntimeError("cannot commit")

    async def grant(_: Annotated[None, Depends(session)]) -> Grant:
        return NEWS

    status, body = await answered(depends(grant))
    assert (status, b"commit" in body) == (500, False)
    assert "cannot commit" in caplog.text

    async def changes_its_mind() -> AsyncIterator[Grant]:
        yield NEWS
        raise HTTPException(409, "The room was closed.")

    assert (await answered(depends(changes_its_mind)))[0] == 409


async def test_a_dependency_that_swallows_an_exception_grants_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def session() -> AsyncIterator[None]:
        with suppress(HTTPException):
            yield

    async def grant(_: Annotated[None, Depends(session)]) -> Grant:
        raise HTTPException(403)

    assert (await answered(depends(grant)))[0] == 500
    assert "has swallowed an exception" in caplog.text


async def test_a_request_that_takes_too_long_gives_its_session_back() -> None:
    pool = Pool(1)

    async def grant(session: Annotated[str, Depends(pool.session)]) -> Grant:
        await anyio.sleep_forever()
        raise AssertionError

    timing = Timing(authorize_timeout=0.1)
    assert (await answered(depends(grant), timing=timing))[0] == 503
    await anyio.wait_all_tasks_blocked()
    assert (pool.free, pool.log) == (1, ["rollback"])


async def test_background_tasks_run_when_the_tree_has_ended() -> None:
    pool = Pool(1)

    async def in_background() -> None:
        pool.log.append("background")

    async def grant(background: BackgroundTasks, session: Annotated[str, Depends(pool.session)]) -> Grant:
        background.add_task(in_background)
        return NEWS

    assert (await answered(depends(grant)))[0] == 200
    assert pool.log == ["commit", "background"]


async def test_a_user_who_is_deactivated_while_the_stream_opens_gets_none() -> None:
    """The tree is resolved again: what it read before the revocation is not believed."""
    active, reading, revoked = {"ada"}, anyio.Event(), anyio.Event()

    async def grant() -> Grant:
        found = "ada" in active
        reading.set()
        await revoked.wait()
        if not found:
            raise HTTPException(401)
        return Grant(channels="news", slot_key="ada")

    push, client = mounted(depends(grant))

    async def deactivate() -> None:
        await reading.wait()
        active.clear()
        await push.disconnect(slot_key="ada")
        revoked.set()

    async with client, anyio.create_task_group() as tasks:
        tasks.start_soon(deactivate)
        assert (await client.request("GET", "/events/")).status == 401


@pytest.mark.parametrize("around", ["starlette", "nothing", "outside"])
async def test_without_a_fastapi_application_nobody_gets_a_stream(
    around: str, caplog: pytest.LogCaptureFixture
) -> None:
    push = LivePush(MemoryBroker(), depends(news))
    apps: dict[str, ASGIApp] = {
        "starlette": Starlette(routes=[Mount("/events", push)], lifespan=push.lifespan),
        "nothing": push,
        "outside": LivePushMiddleware(FastAPI(), push),
    }
    async with Client(apps[around], lifespan=True) as client:
        assert (await client.request("GET", "/events/")).status == 500
    assert "depends(...) needs the FastAPI application" in caplog.text


async def test_the_middleware_of_the_application_will_do() -> None:
    push = LivePush(MemoryBroker(), depends(news))
    app = FastAPI(dependencies=[Depends(user_of)])
    app.add_middleware(LivePushMiddleware, push=push)
    async with Client(app, lifespan=True) as client:
        assert (await client.request("GET", "/events")).status == 401
        async with client.open("/events", headers={"authorization": "Bearer ada"}) as stream:
            assert stream.status == 200


def test_a_dependency_that_reads_a_body_raises_at_once() -> None:
    async def below(note: Annotated[str, Body()]) -> str:
        return note

    async def grant(note: Annotated[str, Depends(below)]) -> Grant:
        return NEWS

    with pytest.raises(
        TypeError, match=r"below reads 'note' from a body, and a request for a stream has none"
    ):
        depends(grant)
