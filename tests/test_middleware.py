"""LivePushMiddleware: its path and no other, every other scope untouched, the lifespan in all its turns."""

import anyio
import pytest

from livepush_asgi import Grant, LivePush, LivePushMiddleware, MemoryBroker, StreamRequest
from livepush_asgi.runtime.asgi import ASGIApp, Message, Receive, Scope, Send
from livepush_asgi.testing import Client


class Inner:
    """An application that writes down the scopes it sees and answers with what it is told to."""

    def __init__(self) -> None:
        self.scopes: list[Scope] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        if scope["type"] != "http":
            raise ValueError(f"no {scope['type']} here")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"inner"})


def around(app: ASGIApp) -> tuple[LivePush, LivePushMiddleware, list[str]]:
    paths: list[str] = []

    def authorize(request: StreamRequest) -> Grant:
        paths.append(request.path)
        return Grant(channels="news")

    push = LivePush(MemoryBroker(), authorize)
    return push, LivePushMiddleware(app, push, path="/live/events"), paths


@pytest.mark.parametrize("root_path", ["", "/api", "/api/"])
@pytest.mark.parametrize(
    ("path", "below"),
    [("/live/events", "/"), ("/live/events/", "/"), ("/live/events/a/b", "/a/b"), ("/live/events/a/", "/a")],
)
async def test_the_path_and_what_is_below_it_is_the_streams(path: str, below: str, root_path: str) -> None:
    inner = Inner()
    push, app, paths = around(inner)
    client = Client(app, root_path=root_path)
    async with push.lifespan(), client, client.open(root_path.rstrip("/") + path) as stream:
        await stream.next_event(control=True)
    assert paths == [below]
    assert inner.scopes == []


@pytest.mark.parametrize(
    "path", ["/", "/live", "/live/eventsX", "/live/event", "/x/live/events", "/LIVE/events"]
)
async def test_every_other_path_is_the_applications_untouched(path: str) -> None:
    inner = Inner()
    push, app, paths = around(inner)
    async with push.lifespan(), Client(app) as client:
        answer = await client.request("POST", path, body=b"body")
    assert answer.body == b"inner"
    assert [scope["path"] for scope in inner.scopes] == [path]
    assert paths == []


async def test_a_foreign_scope_is_passed_on_as_it_is() -> None:
    seen: list[tuple[Scope, Receive, Send]] = []

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append((scope, receive, send))

    async def receive() -> Message:
        return {}

    async def send(message: Message) -> None:
        pass

    _, app, _ = around(inner)
    scope: Scope = {"type": "telepathy"}
    await app(scope, receive, send)
    assert seen == [(scope, receive, send)]
    assert seen[0][0] is scope


class LifespanServer:
    """The server's side of a lifespan: sends the two messages and writes down the answers."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self._messages = iter(["lifespan.startup", "lifespan.shutdown"])

    async def receive(self) -> Message:
        kind = next(self._messages)
        self.log.append(kind)
        return {"type": kind}

    async def send(self, message: Message) -> None:
        await anyio.lowlevel.checkpoint()
        self.log.append(message["type"])


STARTED_AND_STOPPED = [
    "lifespan.startup",
    "lifespan.startup.complete",
    "lifespan.shutdown",
    "lifespan.shutdown.complete",
]


async def well_behaved(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})


async def raises_at_once(scope: Scope, receive: Receive, send: Send) -> None:
    raise ValueError("can only handle HTTP")


async def raises_after_receiving(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    raise ValueError("can only handle HTTP")


async def returns_at_once(scope: Scope, receive: Receive, send: Send) -> None:
    pass


async def returns_after_startup(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "lifespan.startup.complete"})


@pytest.mark.parametrize(
    "inner", [well_behaved, raises_at_once, raises_after_receiving, returns_at_once, returns_after_startup]
)
async def test_the_lifespan_is_answered_whatever_the_application_does_with_it(inner: ASGIApp) -> None:
    push, app, _ = around(inner)
    server = LifespanServer()
    await app({"type": "lifespan"}, server.receive, server.send)
    assert server.log == STARTED_AND_STOPPED
    async with Client(push) as client, client.open("/") as stream:
        assert (await stream.next_event(control=True)).event == "livepush.refused"


async def test_it_runs_between_the_applications_startup_and_shutdown() -> None:
    seen: list[tuple[str, int]] = []

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        async with Client(push) as client, client.open("/") as stream:
            await stream.next_event(control=True)
            seen.append(("streams while it runs", push.statistics()["streams"]))
            await receive()
            seen.append(("streams at its shutdown", push.statistics()["streams"]))
        await send({"type": "lifespan.shutdown.complete"})

    push, app, _ = around(inner)
    server = LifespanServer()
    await app({"type": "lifespan"}, server.receive, server.send)
    assert seen == [("streams while it runs", 1), ("streams at its shutdown", 0)]
    assert server.log == STARTED_AND_STOPPED


async def test_a_failed_startup_is_passed_on() -> None:
    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})
        raise RuntimeError("no database")

    _, app, _ = around(inner)
    server = LifespanServer()
    with pytest.raises(RuntimeError, match="no database"):
        await app({"type": "lifespan"}, server.receive, server.send)
    assert server.log == ["lifespan.startup", "lifespan.startup.failed"]


async def test_a_failure_while_running_is_raised_and_everything_stopped() -> None:
    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        raise RuntimeError("lost")

    push, app, _ = around(inner)
    server = LifespanServer()
    with pytest.raises(RuntimeError, match="lost"):
        await app({"type": "lifespan"}, server.receive, server.send)
    async with Client(push) as client, client.open("/") as stream:
        assert (await stream.next_event(control=True)).event == "livepush.refused"
