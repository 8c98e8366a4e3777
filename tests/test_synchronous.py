"""Synchronous code: a plain `authorize`, one in a thread, and publishing from synchronous views."""

import asyncio
import threading
from collections.abc import Callable
from typing import cast

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from asgiref.sync import async_to_sync, sync_to_async
from asgiref.wsgi import WsgiToAsgi
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, HttpResponse
from django.test import override_settings
from django.urls import path
from fastapi import FastAPI
from litestar import Litestar, post
from quart import Quart

from livepush_asgi import Grant, LivePush, LivePushMiddleware, MemoryBroker, StreamRequest, public
from livepush_asgi.runtime.asgi import AnyASGIApp, ASGIApp
from livepush_asgi.testing import Client

from .apps.django_project import configure

configure()

DEADLINE = 10.0


@pytest.fixture
def anyio_backend() -> str:
    # Threads know no virtual time.
    return "asyncio"


async def test_a_plain_authorize_runs_on_the_event_loop() -> None:
    threads: list[int] = []

    def authorize(request: StreamRequest) -> Grant:
        threads.append(threading.get_ident())
        return Grant(channels="news")

    push = LivePush(MemoryBroker(), authorize)
    async with push.lifespan(), Client(push) as client, client.open("/"):
        assert threads == [threading.get_ident()]


async def test_a_plain_authorize_that_blocks_is_told_of_with_the_way_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def authorize(request: StreamRequest) -> Grant:
        threading.Event().wait(0.03)
        return Grant(channels="news")

    push = LivePush(MemoryBroker(), authorize)
    async with push.lifespan(), Client(push) as client:
        for _ in range(7):
            async with client.open("/") as stream:
                assert stream.status == 200
    (record,) = [record for record in caplog.records if "blocks the event loop" in record.getMessage()]
    assert "sync_to_async" in record.getMessage()


async def test_an_asynchronous_authorize_that_blocks_is_told_of_too(caplog: pytest.LogCaptureFixture) -> None:
    async def authorize(request: StreamRequest) -> Grant:
        threading.Event().wait(0.03)
        return Grant(channels="news")

    push = LivePush(MemoryBroker(), authorize)
    async with push.lifespan(), Client(push) as client:
        for _ in range(7):
            async with client.open("/") as stream:
                assert stream.status == 200
    (record,) = [record for record in caplog.records if "blocks the event loop" in record.getMessage()]
    assert "it is asynchronous and calls something that is not" in record.getMessage()


async def test_an_authorize_that_waits_does_not_block(caplog: pytest.LogCaptureFixture) -> None:
    async def waiting(request: StreamRequest) -> Grant:
        await anyio.sleep(0.03)
        return Grant(channels="news")

    @sync_to_async
    def in_a_thread(request: StreamRequest) -> Grant:
        threading.Event().wait(0.03)
        return Grant(channels="news")

    for authorize in (waiting, in_a_thread):
        push = LivePush(MemoryBroker(), authorize)
        async with push.lifespan(), Client(push) as client:
            for _ in range(7):
                async with client.open("/") as stream:
                    assert stream.status == 200
    assert caplog.records == []


async def test_an_authorize_that_waits_for_a_turn_does_not_block(caplog: pytest.LogCaptureFixture) -> None:
    """Catches the time of others in the same turn of the event loop that counts as its own."""

    async def authorize(request: StreamRequest) -> Grant:
        asyncio.get_running_loop().call_soon(threading.Event().wait, 0.03)
        await anyio.lowlevel.checkpoint()
        return Grant(channels="news")

    push = LivePush(MemoryBroker(), authorize)
    async with push.lifespan(), Client(push) as client:
        for _ in range(7):
            async with client.open("/") as stream:
                assert stream.status == 200
    assert caplog.records == []


async def test_an_authorize_in_a_thread_stops_no_other_stream() -> None:
    blocked, free = threading.Event(), threading.Event()

    @sync_to_async
    def authorize(request: StreamRequest) -> Grant:
        if request.path == "/slow":
            blocked.set()
            assert free.wait(DEADLINE)
        return Grant(channels="news")

    push = LivePush(MemoryBroker(), authorize)
    async with push.lifespan(), Client(push) as client, client.open("/") as stream:

        async def come() -> None:
            async with client.open("/slow") as slow:
                assert slow.status == 200

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(come)
            assert await anyio.to_thread.run_sync(blocked.wait, DEADLINE)
            await push.publish("news", "x")
            assert (await stream.next_event()).data == "x"
            free.set()


# What the views do. A test sets it, for a framework takes no other view.
def act() -> None:
    raise AssertionError


def django_view(request: HttpRequest) -> HttpResponse:
    act()
    return HttpResponse(status=204)


urlpatterns = [path("act", django_view)]


def in_fastapi() -> ASGIApp:
    app = FastAPI()

    @app.post("/act")
    def view() -> None:
        act()

    return app


def in_quart() -> ASGIApp:
    app = Quart(__name__)

    @app.post("/act")
    def view() -> str:
        act()
        return ""

    return cast("ASGIApp", app)


def in_litestar() -> ASGIApp:
    @post("/act", sync_to_thread=True)
    def view() -> None:
        act()

    return cast("ASGIApp", Litestar([view], logging_config=None))


def wsgi(environ: object, start_response: Callable[..., object]) -> list[bytes]:
    act()
    start_response("200 OK", [])
    return [b""]


FRAMEWORKS: dict[str, Callable[[], AnyASGIApp]] = {
    "django": get_asgi_application,
    "fastapi": in_fastapi,
    "quart": in_quart,
    "litestar": in_litestar,
    "wsgi in asgiref": lambda: WsgiToAsgi(wsgi),  # type: ignore[no-untyped-call]
}


@pytest.mark.parametrize("framework", FRAMEWORKS)
async def test_a_synchronous_view_publishes_and_disconnects(
    framework: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    push = LivePush(MemoryBroker(), public("news"))

    def publish_and_disconnect() -> None:
        async_to_sync(push.publish)("news", "x")
        async_to_sync(push.disconnect)(channel="news")

    monkeypatch.setitem(globals(), "act", publish_and_disconnect)
    with override_settings(ROOT_URLCONF=__name__):
        app = LivePushMiddleware(FRAMEWORKS[framework](), push)
        async with push.lifespan(), Client(app) as client, client.open("/events") as stream:
            answer = await client.request("POST", "/act")
            assert answer.status < 300, answer.body
            assert (await stream.next_event()).data == "x"
            assert await stream.wait_ended() == "revoked"


class TestOnEitherLoop:
    @pytest.fixture(params=["asyncio", "trio"])
    def anyio_backend(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.mark.parametrize("other", ["asyncio", "trio"])
    async def test_what_another_loop_publishes_is_handed_over(self, other: str) -> None:
        push = LivePush(MemoryBroker(), public("news"))

        def publish() -> str | None:
            return anyio.run(push.publish, "news", "x", backend=other)

        async with push.lifespan(), Client(push) as client, client.open("/") as stream:
            sent = await anyio.to_thread.run_sync(publish)
            event = await stream.next_event()
            assert (event.data, event.id) == ("x", sent)
        # With the loop of the streams gone, any other one may take its place.
        assert await anyio.to_thread.run_sync(publish)
