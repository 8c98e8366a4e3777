"""`push.runs`: an application that streams runs to those who may read them, and cancels them."""

import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Mount

from livepush_asgi import (
    READ_BYTES,
    BrokerUnavailableError,
    Cors,
    DrainPolicy,
    Grant,
    Limits,
    LivePush,
    MemoryBroker,
    MemorySlotCap,
    MockBroker,
    Page,
    Refusal,
    RefusalCause,
    Run,
    RunAccess,
    RunState,
    StreamRequest,
    Subscription,
    public,
)
from livepush_asgi.brokers.mailbox import Mailbox
from livepush_asgi.dialects import Dialect, ag_ui, ai_sdk
from livepush_asgi.testing import Answer, Client
from livepush_asgi.wire.event import COMMAND_CHANNEL

from .serving import uvicorn
from .valkey import until

ORIGIN = "https://app.example.com"
Authorized = RunAccess | Refusal | Awaitable[RunAccess | Refusal]


class NetworkBroker(MemoryBroker):
    """A broker in memory as one with a server behaves: it can be away, and lose what it delivers."""

    in_process = False

    def __init__(self) -> None:
        super().__init__()
        self.away = False
        self._commands: list[Mailbox] = []
        self._epoch = ""

    async def read(self, channel: str, after: int, limit: int, *, max_bytes: int = READ_BYTES) -> Page:
        if self.away:
            raise BrokerUnavailableError("the password is secret")
        page = await super().read(channel, after, limit, max_bytes=max_bytes)
        return replace(page, epoch=self._epoch) if channel == COMMAND_CHANNEL and self._epoch else page

    async def subscribe(self, channel: str) -> Subscription:
        subscription = await super().subscribe(channel)
        if channel == COMMAND_CHANNEL:
            assert isinstance(subscription, Mailbox)
            self._commands.append(subscription)
        return subscription

    def lose_commands(self) -> None:
        """Lose the log of the commands between processes, and what it may have had."""
        self._epoch = "another"
        for mailbox in self._commands:
            mailbox.lost()


class House:
    """A LivePush that has started, its application for runs, and what that has asked."""

    def __init__(self, dialect: Dialect | None = None, **options: Any) -> None:
        self.broker = NetworkBroker()
        self.slots = MemorySlotCap(1)
        self.asked: list[tuple[str, str]] = []
        self.decide: Callable[[StreamRequest, Run], object] = lambda request, run: RunAccess(slot_key="k")
        self.dialect = dialect
        options = {"drain": DrainPolicy(window=1, runs=0), **options}
        self.push = LivePush(self.broker, lambda request: Refusal(404), slots=self.slots, **options)
        self.app = self.push.runs(self._authorize, dialect=dialect)
        self.client = Client(self.app)
        self.go_on = anyio.Event()
        self.closed = anyio.Event()

    def _authorize(self, request: StreamRequest, run: Run) -> Authorized:
        self.asked.append((request.path, run.id))
        return self.decide(request, run)  # type: ignore[return-value]

    async def start(self, id: str = "7") -> Run:
        async def pieces() -> AsyncIterator[str]:
            try:
                yield "Hel"
                await self.go_on.wait()
                yield "lo"
            finally:
                self.closed.set()

        run = self.push.run(id, dialect=self.dialect)
        await run.start(pieces() if self.dialect is None else self.dialect.text(pieces()))
        return run

    async def ask(self, method: str, path: str = "/7", **options: Any) -> Answer:
        return await self.client.request(method, path, **options)


@asynccontextmanager
async def house(dialect: Dialect | None = None, **options: Any) -> AsyncIterator[House]:
    here = House(dialect, **options)
    async with here.push.lifespan():
        yield here


@pytest.mark.parametrize("path", ["/7", "/7/", "/7/stream"])
async def test_a_run_is_streamed_to_its_end_in_its_dialect(path: str) -> None:
    async with house(ai_sdk()) as here:
        assert (await here.ask("GET", path)).status == 204
        await here.start()
        async with here.client.open(path) as page:
            assert (page.status, page.headers["x-vercel-ai-ui-message-stream"]) == (200, "v1")
            assert json.loads((await page.next_event()).data) == {"type": "start", "messageId": "7"}
            here.go_on.set()
            assert [event.data for event in await page.events(6)][-1] == "[DONE]"
            await page.wait_returned()
        assert here.slots.held("k") == 0
        assert (await here.ask("GET", path, last_event_id=page.last_event_id)).status == 204
        assert set(here.asked) == {(path.rstrip("/"), "7")}
        assert here.push.statistics()["refused"][RefusalCause.AUTHORIZE] == 2


async def test_an_event_source_gets_the_end_and_then_a_204() -> None:
    async with house() as here:
        await here.start()
        async with here.client.open("/7") as page:
            assert (await page.next_event()).data == "Hel"
            here.go_on.set()
            assert (await page.next_event(name="livepush.end")).data.startswith('{"state":"done","count":2')
        answer = await here.ask("GET", last_event_id=page.last_event_id)
        assert (answer.status, answer.body, answer.headers["cache-control"]) == (204, b"", "no-store")
        # It is stored, and a page that has nothing of it gets it.
        async with here.client.open("/7") as page:
            assert [event.data for event in await page.events(2)] == ["Hel", "lo"]


async def test_a_delete_cancels_the_run_and_ends_its_readers() -> None:
    async with house() as here:
        answer = await here.ask("DELETE")
        assert (answer.status, answer.headers["content-type"]) == (404, "application/problem+json")
        await here.start()
        async with here.client.open("/7") as page:
            await page.next_event()
            answer = await here.ask("DELETE")
            assert (answer.status, answer.headers["cache-control"]) == (200, "no-store")
            assert answer.json() == {"id": "7", "state": "cancelled", "count": 1}
            assert json.loads((await page.next_event(name="livepush.end")).data)["state"] == "cancelled"
        with anyio.fail_after(1):
            await here.closed.wait()
        # It may be repeated.
        assert (await here.ask("DELETE")).json()["state"] == "cancelled"


@pytest.mark.parametrize(
    ("decision", "status"),
    [
        (RunAccess(may_cancel=False), 403),
        (RunAccess(expires_at=1.0), 401),
        (Refusal(204), 403),
        (Refusal(401, soft=True), 401),
        (Refusal(503), 503),
        (HTTPException(418, "I am a teapot."), 418),
    ],
    ids=repr,
)
async def test_who_may_not_cancel_a_run_does_not(decision: RunAccess | Exception, status: int) -> None:
    def decide(request: StreamRequest, run: Run) -> object:
        if isinstance(decision, RunAccess):
            return decision
        raise decision

    async with house() as here:
        run = await here.start()
        here.decide = decide
        answer = await here.ask("DELETE")
        assert (answer.status, answer.json()["status"]) == (status, status)
        assert ("retry-after" in answer.headers) == (status == 503)
        found = await run.status()
        assert found is not None
        assert found.state is RunState.RUNNING


@pytest.mark.parametrize("dialect", [None, ai_sdk()], ids=["livepush", "ai-sdk"])
async def test_the_decision_is_that_of_the_application(dialect: Dialect | None) -> None:
    async with house(dialect) as here:
        await here.start()
        here.decide = lambda request, run: Refusal(403, "This is not your run.")
        answer = await here.ask("GET")
        assert (answer.status, answer.json()["detail"]) == (403, "This is not your run.")
        here.decide = lambda request, run: Refusal(403, soft=True)
        assert (await here.ask("GET")).status == (200 if dialect is None else 403)

        async def decide(request: StreamRequest, run: Run) -> RunAccess:
            await anyio.sleep(1)
            return RunAccess(expires_at=time.time() - 1)

        here.decide = decide
        assert (await here.ask("GET")).status == 401
        assert (await here.ask("HEAD")).status == 401


def returns_a_grant(request: StreamRequest, run: Run) -> object:
    return Grant(channels=run.channel)


async def returns_nothing(request: StreamRequest, run: Run) -> object:
    return None


def raises_an_error(request: StreamRequest, run: Run) -> object:
    raise LookupError("the password is secret")


MISTAKES = {
    returns_a_grant: "authorize_run returned Grant, not a RunAccess or a Refusal. Is a `return` missing",
    returns_nothing: "authorize_run returned NoneType, not a RunAccess or a Refusal. Is a `return` missing",
    raises_an_error: "the password is secret",
    lambda request, run: RunAccess(may_cancel="no"): "is an `await` missing",  # type: ignore[arg-type]
}


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
@pytest.mark.parametrize("mistake", MISTAKES)
async def test_a_mistake_of_the_application_is_a_500_and_an_error_that_names_it(
    mistake: Callable[[StreamRequest, Run], object], method: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with house(ai_sdk()) as here:
        run = await here.start()
        here.decide = mistake
        answer = await here.ask(method)
        assert (answer.status, b"secret" in answer.body) == (500, False)
        assert MISTAKES[mistake] in caplog.text
        assert "authorize_run failed; the client got a 500" in caplog.text
        found = await run.status()
        assert found is not None
        assert found.state is RunState.RUNNING


@pytest.mark.parametrize(
    "path",
    [
        *("/", "", "7/", "//", "/7/x", "/7/stream/x", "/7//stream", "/7/../8"),
        *("/7\0", "/7\n8", "/7\x7f", "/\u2028", "/\udc80"),
        *("/" + "7" * 257, "/" + "7" * 100_000 + "/stream"),
    ],
    ids=lambda path: repr(path[:9] + path[-9:]),
)
async def test_no_run_has_such_a_path(path: str, caplog: pytest.LogCaptureFixture) -> None:
    async with house() as here:
        for method in ("GET", "HEAD", "DELETE", "OPTIONS", "POST"):
            answer = await asked(here, method, path)
            assert answer.status == 404
            assert len(answer.body) < 100
        assert here.asked == []
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def asked(here: House, method: str, path: str) -> Answer:
    """Ask for a path as a server passes it on, decoded, whatever it has."""
    return await Client(here.app, scope={"path": path}).request(method, "/")


@pytest.mark.parametrize("id", ["a b", "ä😀", "7" * 256, "stream", "..", "%2f", "a:b", "livepush.x"])
async def test_an_id_may_be_any_printable_text(id: str) -> None:
    async with house() as here:
        await here.start(id)
        assert (await asked(here, "HEAD", f"/{id}/stream")).status == 200
        answer = await asked(here, "DELETE", f"/{id}")
        assert (answer.json()["id"], answer.json()["state"]) == (id, "cancelled")


async def test_other_methods_are_refused_with_those_that_are_allowed() -> None:
    async with house() as here:
        for method in ("POST", "PUT", "PATCH", "PURGE"):
            answer = await here.ask(method)
            assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD, OPTIONS, DELETE")
        for method in ("POST", "DELETE"):
            answer = await here.ask(method, "/7/stream")
            assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
        assert (await here.ask("GET", query="x=" + "y" * 9000)).status == 414
        assert here.asked == []


async def test_a_preflight_allows_the_page_of_another_origin_to_cancel() -> None:
    async with house(cors=Cors([ORIGIN], credentials=True)) as here:
        await here.start()
        answer = await here.ask("OPTIONS", headers={"origin": ORIGIN})
        assert (answer.status, answer.headers["allow"]) == (204, "GET, HEAD, OPTIONS, DELETE")
        assert answer.headers["access-control-allow-methods"] == "GET, HEAD, OPTIONS, DELETE"
        stream = await here.ask("OPTIONS", "/7/stream", headers={"origin": ORIGIN})
        assert stream.headers["access-control-allow-methods"] == "GET, HEAD, OPTIONS"
        for method, path in (("DELETE", "/7"), ("GET", "/7/x"), ("DELETE", "/8"), ("POST", "/7")):
            answer = await here.ask(method, path, headers={"origin": ORIGIN})
            assert answer.headers["access-control-allow-origin"] == ORIGIN
        foreign = await here.ask("OPTIONS", headers={"origin": "https://evil.example.com"})
        assert "access-control-allow-methods" not in foreign.headers


async def test_slots_and_caps_count_and_a_foreign_client_gets_no_soft_refusal() -> None:
    options = {"limits": Limits(streams=2), "soft_refusals": [RefusalCause.CAP]}
    async with house(ag_ui(), **options) as here:
        await here.start()
        async with here.client.open("/7") as page:
            await page.next_event()
            assert here.push.statistics()["streams"] == 1
            assert here.push.listeners("run:7") == 1
            full = await here.ask("GET")
            here.decide = lambda request, run: RunAccess()
            async with here.client.open("/7"):
                crowded = await here.ask("GET")
        for answer in (full, crowded):
            assert (answer.status, answer.headers["retry-after"]) == (429, "5")
        refused = here.push.statistics()["refused"]
        assert (refused[RefusalCause.CAP], refused[RefusalCause.FULL]) == (1, 1)


@pytest.mark.parametrize("dialect", [None, ag_ui()], ids=["livepush", "ag-ui"])
async def test_a_drain_ends_the_streams_and_sends_everybody_elsewhere(dialect: Dialect | None) -> None:
    async with house(dialect) as here:
        await here.start()
        async with here.client.open("/7") as page:
            await page.next_event()
            await here.push.drain()
            await page.wait_returned()
        if dialect is None:
            assert page.end_reason == "drain"
            async with here.client.open("/7") as refused:
                assert json.loads((await refused.next_event(name="livepush.refused")).data)["status"] == 503
        else:
            assert json.loads(page.received[-1].data)["code"] == "interrupted"
            answer = await here.ask("GET")
            assert (answer.status, answer.headers["retry-after"]) == (503, "5")
            head = await here.ask("HEAD")
            assert (head.status, head.headers["retry-after"]) == (503, "5")
    answer = await here.ask("DELETE")
    assert (answer.status, answer.headers["retry-after"]) == (503, "5")


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
async def test_while_the_broker_is_away_there_is_a_503(method: str, caplog: pytest.LogCaptureFixture) -> None:
    async with house(ai_sdk()) as here:
        await here.start()
        here.broker.away = True
        answer = await here.ask(method)
        assert (answer.status, answer.headers["retry-after"]) == (503, "5")
        assert b"secret" not in answer.body
        assert "authorize_run" not in caplog.text
        here.broker.away = False
        async with here.client.open("/7", method=method) as page:
            assert page.status == 200


async def test_an_event_source_comes_back_when_the_broker_does() -> None:
    async with house() as here:
        await here.start()
        here.broker.away = True
        async with here.client.open("/7") as refused:
            assert json.loads((await refused.next_event(name="livepush.refused")).data)["status"] == 503


async def test_a_run_that_has_ended_is_read_to_its_end_where_a_revocation_may_be_lost() -> None:
    """The client has not had the end, so the decision is as it was, and only what may change is asked."""
    async with house(ai_sdk(), limits=Limits(outbox_events=1)) as here:
        run = await here.start()
        async with here.client.open("/7", window=0) as page:
            # The first message waits for its reader.
            here.go_on.set()
            await run.wait()
            before = len(here.asked)
            here.broker.lose_commands()
            await until(lambda: len(here.asked) > before)
            await anyio.sleep(1)
            assert [event.data for event in await page.events(7)][-1] == "[DONE]"


async def test_a_client_that_may_no_longer_read_is_cut_off_where_a_revocation_may_be_lost() -> None:
    async with house() as here:
        await here.start()
        async with here.client.open("/7") as page:
            await page.next_event()
            here.decide = lambda request, run: Refusal()
            here.broker.lose_commands()
            assert await page.wait_ended(60) == "revoked"


async def test_a_login_that_ends_takes_the_stream_with_it() -> None:
    async with house() as here:
        await here.start()
        async with here.client.open("/7") as page:
            await page.next_event()
            done = await here.push.disconnect(slot_key="k")
            assert done.streams == 1
            assert await page.wait_ended() == "revoked"


def test_wrong_arguments_raise_where_they_are_given() -> None:
    push = LivePush(MemoryBroker(), public("c"))
    with pytest.raises(TypeError, match=r"lambda request, run: RunAccess\(\)"):
        push.runs(True)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"is called as authorize_run\(request, run\)"):
        push.runs(lambda request: RunAccess())  # type: ignore[misc, arg-type]
    with pytest.raises(TypeError, match=r"call the function: ai_sdk\(\)"):
        push.runs(lambda request, run: RunAccess(), dialect=ai_sdk)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="keeps no history"):
        LivePush(MockBroker(), public("c")).runs(lambda request, run: RunAccess())
    with pytest.raises(ValueError, match="a slot key is not empty"):
        RunAccess(slot_key="")
    with pytest.raises(ValueError, match="is it in milliseconds"):
        RunAccess(expires_at=1e15)


async def test_mounted_it_passes_the_lifespan_and_leaves_the_rest_to_the_application() -> None:
    here = House()
    async with Client(here.app, lifespan=True):
        assert here.push.statistics()["healthy"]
        await here.start()
        app = Starlette(routes=[Mount("/api/answers", here.app)])
        mounted = Client(app)
        assert (await mounted.request("GET", "/api/answersX")).status == 404
        assert (await mounted.request("DELETE", "/api/answers/7")).json()["count"] == 1
        assert here.asked == [("/7", "7")]
        messages: list[Any] = []

        async def receive() -> dict[str, str]:
            return {"type": "websocket.connect"}

        async def send(message: Any) -> None:
            messages.append(message)

        await here.app({"type": "websocket", "path": "/7", "headers": []}, receive, send)
        assert messages[0]["type"] == "websocket.close"


@pytest.mark.real_time
@pytest.mark.slow
async def test_it_serves_and_cancels_under_a_prefix_on_a_real_server(tmp_path: Path) -> None:
    async with uvicorn("tests.apps.runs:app", tmp_path / "log") as server:
        for framework in ("starlette", "fastapi"):
            runs = f"/{framework}/api/answers"
            assert (await server.open(f"{runs}/{framework}/stream")).status == 204
            started = await server.open(f"/{framework}/api/start/{framework}", method="POST")
            assert started.status == 200
            page = await server.open(f"{runs}/{framework}/stream")
            assert page.headers["x-vercel-ai-ui-message-stream"] == "v1"
            assert json.loads((await page.next_event()).data)["messageId"] == framework
            assert (await server.open(f"{runs}/{framework}", method="DELETE")).status == 200
            types = []
            while (event := await page.next_event()).data != "[DONE]":
                types.append(json.loads(event.data)["type"])
            assert types == ["text-start", "text-delta", "abort"]
            refused = await server.open(f"{runs}/{framework}", method="PUT")
            assert (refused.status, refused.headers["allow"]) == (405, "GET, HEAD, OPTIONS, DELETE")
        assert "Error" not in server.log
