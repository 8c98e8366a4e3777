"""`authorize`: what becomes of what it returns and raises, and of a request that waits for it."""

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

import anyio
import pytest
from django.core.exceptions import BadRequest, PermissionDenied, SuspiciousOperation
from django.http import Http404
from fastapi import HTTPException as FastAPIException
from hypothesis import given, settings
from hypothesis import strategies as st
from litestar.exceptions import NotAuthorizedException, TooManyRequestsException
from starlette.exceptions import HTTPException as StarletteException
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import Forbidden, ServiceUnavailable, Unauthorized, abort
from werkzeug.wrappers import Response

from livepush_asgi import (
    DrainPolicy,
    Grant,
    InvalidGrantError,
    LivePush,
    MemoryBroker,
    MemorySlotCap,
    Refusal,
    RefusalCause,
    SSEStreamService,
    StreamRequest,
    Timing,
)
from livepush_asgi.grant import Replay
from livepush_asgi.runtime.asgi import Message, Scope
from livepush_asgi.testing import Answer, Client, MockBroker

from .virtual_clock import let_pass

Raise = Callable[[], Exception]


async def answer_to(error: Exception, **settings: object) -> Answer:
    async def authorize(request: StreamRequest) -> Grant:
        raise error

    push = LivePush(MemoryBroker(), authorize, **settings)  # type: ignore[arg-type]
    async with push.lifespan(), Client(push) as client:
        return await client.request("GET", "/")


def aborted() -> Exception:
    try:
        abort(Response("gone", status=410))
    except Exception as error:
        return error


MEANT: dict[str, tuple[Exception, int, str | None, Mapping[str, str]]] = {
    "starlette": (
        StarletteException(401, "Log in.", {"WWW-Authenticate": "Bearer"}),
        401,
        "Log in.",
        {"www-authenticate": "Bearer"},
    ),
    "starlette without a detail": (StarletteException(404), 404, "Not Found", {}),
    "fastapi": (FastAPIException(429, "Slow.", {"Retry-After": "7"}), 429, "Slow.", {"retry-after": "7"}),
    "fastapi with a detail of its own": (FastAPIException(422, {"a": [1]}), 422, '{"a": [1]}', {}),
    "a header that is no number": (
        StarletteException(503, "x", {"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}),
        503,
        "x",
        {"retry-after": "Fri, 31 Dec 1999 23:59:59 GMT"},
    ),
    "litestar": (NotAuthorizedException("Log in."), 401, "Log in.", {}),
    "litestar with headers": (
        TooManyRequestsException("Slow.", headers={"Retry-After": "9"}),
        429,
        "Slow.",
        {"retry-after": "9"},
    ),
    "werkzeug": (Forbidden("Not yours."), 403, "Not yours.", {}),
    "werkzeug with a challenge": (
        Unauthorized("Log in.", www_authenticate=WWWAuthenticate("basic", {"realm": "x"})),
        401,
        "Log in.",
        {"www-authenticate": "Basic realm=x"},
    ),
    "werkzeug with a time": (ServiceUnavailable("x", retry_after=3), 503, "x", {"retry-after": "3"}),
    "werkzeug with a response": (aborted(), 410, None, {}),
    "django": (PermissionDenied("Not yours."), 403, "Not yours.", {}),
    "django without a text": (PermissionDenied(), 403, None, {}),
    "django's 404": (Http404("No Secret matches the given query."), 404, None, {}),
    "django's 400": (BadRequest("x"), 400, None, {}),
    "django's suspicion": (SuspiciousOperation("x"), 400, None, {}),
    "a refusal": (Refusal(402, "Pay."), 402, "Pay.", {}),
}


@pytest.mark.parametrize("name", MEANT)
async def test_the_http_errors_of_frameworks_mean_what_they_say(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    error, status, detail, headers = MEANT[name]
    answer = await answer_to(error)
    assert answer.status == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert json.loads(answer.body).get("detail") == detail
    assert {field: answer.headers[field] for field in headers} == headers
    assert caplog.records == []


@pytest.mark.parametrize(
    "error",
    [StarletteException(302, headers={"Location": "/login"}), StarletteException(200), FastAPIException(304)],
    ids=["redirect", "success", "not modified"],
)
async def test_an_http_error_that_is_no_refusal_is_a_mistake(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await answer_to(error)
    assert answer.status == 500
    assert "a refusal's status is 204 or from 400 to 599" in caplog.text


@pytest.mark.parametrize(
    "error", [StarletteException(403, headers={"x": "a\r\nb"}), StarletteException(403, headers={"x y": "a"})]
)
async def test_a_header_that_cannot_be_sent_is_a_mistake(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    assert (await answer_to(error)).status == 500
    assert "header field" in caplog.text


async def test_an_http_error_with_headers_of_no_kind_is_a_mistake_and_ends_no_other_stream() -> None:
    error = StarletteException(403)
    error.headers = 5  # type: ignore[assignment]
    assert (await answer_to(error)).status == 500


async def test_an_authorize_that_raises_can_be_soft() -> None:
    answer = await answer_to(KeyError("secret"), soft_refusals={RefusalCause.ERROR})
    assert answer.status == 200
    assert b"event: livepush.refused\n" in answer.body
    assert b'"reason":"error","status":500' in answer.body
    assert b"secret" not in answer.body


@pytest.mark.parametrize(
    ("soft", "method", "status", "told"),
    [
        (False, "GET", 500, "the client got a 500"),
        (True, "GET", 200, "the client got a soft refusal (200)"),
        (True, "HEAD", 500, "the client got a 500"),
    ],
)
async def test_the_log_has_the_answer_that_the_client_got(
    soft: bool, method: str, status: int, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def authorize(request: StreamRequest) -> Grant:
        raise KeyError("secret")

    push = LivePush(MemoryBroker(), authorize, soft_refusals={RefusalCause.ERROR} if soft else ())
    async with push.lifespan(), Client(push) as client:
        assert (await client.request(method, "/")).status == status
    assert [record.getMessage() for record in caplog.records] == [f"authorize failed; {told}"]


async def test_an_authorize_that_takes_too_long_is_cancelled(caplog: pytest.LogCaptureFixture) -> None:
    cancelled = []

    async def authorize(request: StreamRequest) -> Grant:
        try:
            await anyio.sleep_forever()
        except BaseException:
            cancelled.append(anyio.current_time())
            raise
        raise AssertionError

    push = LivePush(MemoryBroker(), authorize, timing=Timing(authorize_timeout=3))
    async with push.lifespan(), Client(push, deadline=10) as client:
        start = anyio.current_time()
        assert (await client.request("GET", "/")).status == 503
        assert [moment - start for moment in cancelled] == [pytest.approx(3)]
        assert push.statistics()["refused"][RefusalCause.ERROR] == 1
    assert len(caplog.records) == 1


async def test_failures_of_one_kind_are_logged_once_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    def authorize(request: StreamRequest) -> Grant:
        if request.path == "/a":
            raise OSError("the database is away")
        if request.path == "/none":
            return None  # type: ignore[return-value]
        raise KeyError(request.path)

    push = LivePush(MemoryBroker(), authorize)
    async with push.lifespan(), Client(push) as client:
        for _ in range(20):
            for path in ("/a", "/b", "/none"):
                assert (await client.request("GET", path)).status == 500
        assert len(caplog.records) == 3
        assert "the database is away" in caplog.text
        assert push.statistics()["refused"][RefusalCause.ERROR] == 60
        await let_pass(61)
        await client.request("GET", "/a")
    assert "(19 more" in caplog.records[-1].getMessage()


def by_query(request: StreamRequest) -> Grant:
    replay: Any = request.query.get("replay", "new")
    return Grant(channels=request.query_all("channel"), slot_key=request.query.get("key"), replay=replay)


@pytest.mark.parametrize(
    "query",
    ["", "channel=", "channel=livepush.commands", "channel=a&key=", "channel=a&replay=b", "channel=a&" * 200],
)
async def test_text_of_the_client_that_no_grant_can_have_is_a_400(
    query: str, caplog: pytest.LogCaptureFixture
) -> None:
    if query.startswith("channel=a&channel"):
        query = "&".join(f"channel={number}" for number in range(200))
    push = LivePush(MemoryBroker(), by_query)
    async with push.lifespan(), Client(push) as client:
        answer = await client.request("GET", "/", query=query)
    assert answer.status == 400
    assert json.loads(answer.body)["detail"] == "The request names no valid channel or key."
    assert len(caplog.records) == 1
    assert caplog.records[0].levelno == logging.WARNING
    assert caplog.records[0].exc_info is None


@pytest.mark.parametrize("grant", [{"channels": 5}, {"channels": "a", "slot_key": 5}])
async def test_a_wrong_type_is_the_programs_mistake(
    grant: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    push = LivePush(MemoryBroker(), lambda request: Grant(**grant))  # type: ignore[arg-type]
    async with push.lifespan(), Client(push) as client:
        assert (await client.request("GET", "/")).status == 500
    assert caplog.records[0].exc_info is not None


def test_an_invalid_grant_is_a_value_error() -> None:
    assert issubclass(InvalidGrantError, ValueError)


class Exchange:
    """One request, with what the application sends."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.sent: list[Message] = []

    async def receive(self) -> Message:
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)


texts = st.text(st.characters(), max_size=20) | st.sampled_from(["\ud800", "\0", "livepush.x", "a" * 100_000])
fields = st.tuples(
    st.sampled_from([b"last-event-id", b"cookie", b"origin", b"x", b"Cookie"]), st.binary(max_size=40)
)


@settings(max_examples=200, deadline=None)
@given(
    path=texts,
    root_path=texts,
    query=st.binary(max_size=60)
    | st.sampled_from([b"a&" * 50_000, b"channel=%ED%A0%80", b"livepush_probe=\xb2", b"channel=%00"]),
    headers=st.lists(fields, max_size=6),
    method=st.sampled_from(["GET", "HEAD", "OPTIONS"]),
)
def test_bad_input_is_never_a_500(
    path: str, root_path: str, query: bytes, headers: list[tuple[bytes, bytes]], method: str
) -> None:
    async def decide(request: StreamRequest) -> Grant:
        request.cookies, request.headers, request.last_event_id  # noqa: B018
        key = request.query.get("key") or request.cookies.get("key") or request.path
        return Grant(channels=[request.path, *request.query_all("channel")], slot_key=key)

    async def run() -> None:
        push = LivePush(MemoryBroker(), decide, slots=MemorySlotCap(), probe=lambda request: True)
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "root_path": root_path,
            "query_string": query,
            "headers": headers,
        }
        exchange = Exchange(scope)
        async with push.lifespan():
            with anyio.fail_after(5):
                await push(scope, exchange.receive, exchange.send)
        assert not exchange.sent or exchange.sent[0]["status"] < 500

    anyio.run(run)


@pytest.mark.parametrize("stubborn", [False, True], ids=["obedient", "stubborn"])
@pytest.mark.parametrize("act", ["stop", "drain"])
async def test_a_request_that_waits_is_refused_softly_at_once_when_the_process_ends(
    act: str, stubborn: bool
) -> None:
    called, cancelled = anyio.Event(), anyio.Event()

    async def authorize(request: StreamRequest) -> Grant:
        called.set()
        try:
            await anyio.sleep(5)
        except BaseException:
            cancelled.set()
            if not stubborn:
                raise
            with anyio.CancelScope(shield=True):
                await anyio.sleep(30)
        return Grant(channels="news", slot_key="k")

    slots = MemorySlotCap(1)
    push = LivePush(
        MemoryBroker(), authorize, slots=slots, drain=DrainPolicy(window=1, signals=False), timing=Timing()
    )

    async def end() -> None:
        await called.wait()
        await (push.stop() if act == "stop" else push.drain())

    async with push.lifespan(), Client(push) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(end)
        start = anyio.current_time()
        async with client.open("/") as stream:
            event = await stream.next_event(name="livepush.refused")
            assert json.loads(event.data)["reason"] == "drain"
        assert anyio.current_time() == start
        assert cancelled.is_set()
    assert push.statistics()["opened"] == 0
    assert slots.held("k") == 0


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_client_that_leaves_while_it_waits_takes_nothing(anyio_backend: str) -> None:
    called, cancelled = anyio.Event(), anyio.Event()

    async def authorize(request: StreamRequest) -> Grant:
        called.set()
        try:
            await anyio.sleep(5)
        finally:
            cancelled.set()
        return Grant(channels="news", slot_key="k")

    push = LivePush(MemoryBroker(), authorize, slots=MemorySlotCap(1))
    exchange = Exchange({"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": []})

    async def receive() -> Message:
        await called.wait()
        return {"type": "http.disconnect"}

    receive.livepush_inline = True  # type: ignore[attr-defined]
    async with push.lifespan():
        with anyio.fail_after(1):
            await push(exchange.scope, receive, exchange.send)
        await anyio.wait_all_tasks_blocked()
        assert cancelled.is_set()
    assert push.statistics()["opened"] == 0
    assert [message.get("status") for message in exchange.sent] == [499, None]
    assert sum(push.statistics()["refused"].values()) == 0


async def test_a_receive_that_does_not_survive_a_cancellation_is_left_alone() -> None:
    """gunicorn's says that the client has left once a call of it was cancelled."""
    cancelled = False

    async def authorize(request: StreamRequest) -> Grant:
        await anyio.sleep(1)
        return Grant(channels="news")

    push = LivePush(MemoryBroker(), authorize)
    opened = anyio.Event()

    async def receive() -> Message:
        nonlocal cancelled
        if not cancelled:
            try:
                await anyio.sleep_forever()
            except BaseException:
                cancelled = True
                raise
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if b"livepush.open" in message.get("body", b""):
            opened.set()

    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": []}
    async with push.lifespan(), anyio.create_task_group() as tasks:
        tasks.start_soon(push, scope, receive, send)
        with anyio.fail_after(5):
            await opened.wait()
        assert not cancelled
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("replay", ["last", "all", 5])
async def test_a_replay_without_history_is_an_error_in_the_log(
    replay: Replay, caplog: pytest.LogCaptureFixture
) -> None:
    grant = Grant(channels="news", replay=replay)
    push = LivePush(MockBroker(), lambda request: grant)
    async with push.lifespan(), Client(push) as client:
        answers = [await client.request(method, "/") for method in ("GET", "GET", "HEAD")]
        with pytest.raises(TypeError, match="needs a broker with history"):
            await SSEStreamService.of(push).open_granted(grant)
        assert push.statistics()["refused"][RefusalCause.ERROR] == 2
    assert [answer.status for answer in answers] == [500, 500, 500]
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert f"replay={replay!r} needs a broker with history" in caplog.text
    assert "RedisStreamsBroker" in caplog.text


@pytest.mark.parametrize("replay", ["new", 0])
async def test_no_replay_needs_no_history(replay: Replay) -> None:
    push = LivePush(MockBroker(), lambda request: Grant(channels="news", replay=replay))
    async with push.lifespan(), Client(push) as client, client.open("/") as stream:
        assert stream.status == 200


class Unusual(BaseException):
    """No Exception, as BaseExceptionGroup and the outcomes of pytest are none."""


async def rolling_back() -> None:
    try:
        await anyio.sleep_forever()
    finally:
        raise ConnectionError("the rollback failed")


async def test_an_authorize_that_ends_in_an_unusual_way_ends_no_other_stream(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def authorize(request: StreamRequest) -> Grant:
        match request.query.get("how"):
            case "raise":
                raise Unusual
            case "clean up":
                # On trio this group has the cancellation of the timeout, too.
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(rolling_back)
                    await anyio.sleep_forever()
        return Grant(channels="news")

    push = LivePush(MemoryBroker(), authorize, timing=Timing(authorize_timeout=1))
    async with push.lifespan(), Client(push) as client, client.open("/") as stream:
        for _ in range(3):
            assert (await client.request("GET", "/?how=raise")).status == 500
            assert (await client.request("GET", "/?how=clean%20up")).status == 503
        await push.publish("news", "still here")
        assert (await stream.next_event()).data == "still here"
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]
    assert "raised Unusual" in str(caplog.records[0].exc_info)
