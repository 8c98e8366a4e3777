"""LivePush as an ASGI application: methods, refusals, CORS, the lifespan, what a program calls."""

import json
import time
from datetime import UTC, datetime

import anyio
import pytest
from starlette.middleware import gzip

from livepush_asgi import (
    BrokerUnavailableError,
    CapExceededError,
    Cors,
    DrainPolicy,
    EndReason,
    Event,
    Grant,
    InvalidEventError,
    LivePush,
    MemoryBroker,
    MemorySlotCap,
    Refusal,
    RefusalCause,
    SlotsUnavailableError,
    StreamRequest,
    public,
)
from livepush_asgi.grant import Authorize
from livepush_asgi.slots import Lease
from livepush_asgi.testing import Answer, Client, MockBroker, ParsedEvent


async def get(authorize: Authorize, path: str = "/", **options: object) -> Answer:
    push = LivePush(MemoryBroker(), authorize, **options)  # type: ignore[arg-type]
    async with push.lifespan(), Client(push) as client:
        return await client.request("GET", path)


def problem(answer: Answer) -> dict[str, object]:
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["content-length"] == str(len(answer.body))
    found: dict[str, object] = json.loads(answer.body)
    return found


async def test_authorize_sees_the_request_and_may_be_async() -> None:
    seen: list[StreamRequest] = []

    async def authorize(request: StreamRequest) -> Grant:
        await anyio.lowlevel.checkpoint()
        seen.append(request)
        return Grant(channels=f"events:{request.query['tenant']}")

    push = LivePush(MemoryBroker(), authorize)
    async with (
        push.lifespan(),
        Client(push, root_path="/push") as client,
        client.open(
            "/push/orders/7",
            query={"tenant": "acme"},
            headers={"Authorization": "Bearer x"},
            cookies={"session": "s"},
            last_event_id="5",
        ) as stream,
    ):
        await stream.next_event(control=True)
        await push.publish("events:acme", "yes")
        assert (await stream.next_event()).data == "yes"
    (request,) = seen
    assert request.path == "/orders/7"
    assert request.headers["authorization"] == "Bearer x"
    assert request.cookies["session"] == "s"
    assert request.last_event_id == "5"


async def test_a_refusal_is_a_small_problem() -> None:
    refusal = Refusal(401, "Log in first.", headers={"WWW-Authenticate": "Bearer"}, retry_after=7)
    answer = await get(lambda request: refusal)
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["retry-after"] == "7"
    assert answer.headers["cache-control"] == "no-store"
    assert problem(answer) == {
        "type": "about:blank",
        "title": "Unauthorized",
        "status": 401,
        "detail": "Log in first.",
    }


async def test_a_refusal_may_be_raised() -> None:
    def authorize(request: StreamRequest) -> Grant:
        raise Refusal(404)

    assert problem(await get(authorize))["title"] == "Not Found"


async def test_no_content_stops_an_event_source_for_good() -> None:
    answer = await get(lambda request: Refusal(204))
    assert (answer.status, answer.body) == (204, b"")
    assert "content-length" not in answer.headers


async def test_a_soft_refusal_is_a_stream_that_ends() -> None:
    answer = await get(lambda request: Refusal(402, "Pay first.", soft=True, retry_after=60))
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/event-stream"
    lines = answer.body.decode().split("\n")
    assert lines[0] == "event: livepush.refused"
    assert 60_000 <= int(lines[1].removeprefix("retry: ")) <= 90_000
    assert json.loads(lines[2].removeprefix("data: ")) == {
        "reason": "authorize",
        "status": 402,
        "retry": int(lines[1].removeprefix("retry: ")),
        "detail": "Pay first.",
    }
    assert lines[3:] == ["", ""]


async def test_what_authorize_raises_stays_inside(caplog: pytest.LogCaptureFixture) -> None:
    def authorize(request: StreamRequest) -> Grant:
        raise KeyError("secret")

    answer = await get(authorize)
    assert problem(answer) == {"type": "about:blank", "title": "Internal Server Error", "status": 500}
    assert "secret" in caplog.text


@pytest.mark.parametrize("decision", [None, True, "news"])
async def test_a_wrong_decision_lets_nobody_in_and_says_why(
    decision: object, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await get(lambda request: decision)  # type: ignore[arg-type, return-value]
    assert answer.status == 500
    assert "not a Grant or a Refusal" in caplog.text


@pytest.mark.parametrize("expires_at", [0.0, datetime(2020, 1, 1, tzinfo=UTC)])
async def test_an_expired_login_gets_no_stream(expires_at: float | datetime) -> None:
    answer = await get(lambda request: Grant(channels="news", expires_at=expires_at))
    assert problem(answer)["status"] == 401


async def test_a_full_cap_refuses_before_the_headers() -> None:
    push = LivePush(MemoryBroker(), public("news", slot_key="k"), slots=MemorySlotCap(2))
    async with push.lifespan(), Client(push) as client, client.open("/"), client.open("/"):
        answer = await client.request("GET", "/")
        assert problem(answer)["status"] == 429
        assert answer.headers["retry-after"] == "5"
        assert push.statistics()["refused"][RefusalCause.CAP] == 1
        assert push.statistics()["streams"] == 2
    assert push.statistics()["opened"] == 2


@pytest.mark.parametrize("granted", [None, False])
@pytest.mark.parametrize("control_events", [True, False])
async def test_a_full_cap_refuses_softly_where_asked_to(control_events: bool, granted: bool | None) -> None:
    slots = MemorySlotCap(1)
    push = LivePush(
        MemoryBroker(),
        lambda request: Grant(channels="news", slot_key="k", control_events=granted),
        slots=slots,
        soft_refusals={RefusalCause.CAP},
        control_events=control_events,
    )
    async with push.lifespan(), Client(push) as client, client.open("/"), client.open("/") as refused:
        event = await refused.next_event(name="livepush.refused")
        await refused.wait_ended()
    assert json.loads(event.data)["status"] == 429
    assert event.retry is not None
    assert 5000 <= event.retry <= 7500


class ClosedSlots:
    """A cap whose store is away and that fails closed."""

    cap = 1

    async def acquire_lease(self, slot_key: str, on_replaced: object = None) -> Lease:
        raise SlotsUnavailableError("the store is away")

    async def aclose(self) -> None:
        pass


async def test_a_cap_that_fails_closed_refuses_with_503() -> None:
    answer = await get(public("news", slot_key="k"), slots=ClosedSlots())
    assert problem(answer)["status"] == 503
    assert answer.headers["retry-after"] == "5"


async def test_a_grant_without_a_key_takes_no_slot() -> None:
    push = LivePush(MemoryBroker(), public("news"), slots=ClosedSlots())
    async with push.lifespan(), Client(push) as client, client.open("/") as stream:
        assert stream.status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "QUERY"])
async def test_other_methods_are_not_allowed(method: str) -> None:
    push = LivePush(MemoryBroker(), public("news"))
    async with push.lifespan(), Client(push) as client:
        answer = await client.request(method, "/")
    assert problem(answer)["status"] == 405
    assert answer.headers["allow"] == "GET, HEAD, OPTIONS"


async def test_head_gets_the_headers_of_a_stream_and_takes_nothing() -> None:
    slots = MemorySlotCap(1)
    push = LivePush(MemoryBroker(), public("news", slot_key="k"), slots=slots)
    async with push.lifespan(), Client(push) as client:
        answer = await client.request("HEAD", "/")
        assert push.statistics()["opened"] == 0
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["content-type"] == "text/event-stream"


async def test_head_of_what_is_refused_has_the_status_and_no_body() -> None:
    push = LivePush(MemoryBroker(), lambda request: Refusal(403))
    async with push.lifespan(), Client(push) as client:
        answer = await client.request("HEAD", "/")
    assert (answer.status, answer.body) == (403, b"")
    assert int(answer.headers["content-length"]) > 0


async def test_head_is_refused_while_draining() -> None:
    push = LivePush(MemoryBroker(), public("news"), drain=DrainPolicy(window=0, signals=False))
    async with push.lifespan(), Client(push) as client:
        await push.drain()
        answer = await client.request("HEAD", "/")
    assert (answer.status, answer.body) == (503, b"")


async def test_options_names_the_methods_without_asking_authorize() -> None:
    push = LivePush(MemoryBroker(), lambda request: Refusal(403))
    async with push.lifespan(), Client(push) as client:
        answer = await client.request("OPTIONS", "/")
    assert (answer.status, answer.headers["allow"]) == (204, "GET, HEAD, OPTIONS")
    assert "access-control-allow-origin" not in answer.headers


ORIGIN = "https://app.example.com"


@pytest.mark.parametrize(
    ("cors", "origin", "expected"),
    [
        (Cors([ORIGIN]), ORIGIN, {"access-control-allow-origin": ORIGIN, "vary": "Origin"}),
        (
            Cors([ORIGIN], credentials=True),
            ORIGIN,
            {"access-control-allow-origin": ORIGIN, "access-control-allow-credentials": "true"},
        ),
        (Cors(["*"]), ORIGIN, {"access-control-allow-origin": "*"}),
        (Cors([ORIGIN]), "https://evil.example", {"vary": "Origin"}),
        (Cors([ORIGIN]), None, {"vary": "Origin"}),
        (None, ORIGIN, {}),
    ],
    ids=["listed", "credentials", "any", "not listed", "no origin", "no cors"],
)
async def test_only_listed_origins_may_read(
    cors: Cors | None, origin: str | None, expected: dict[str, str]
) -> None:
    push = LivePush(MemoryBroker(), public("news"), cors=cors)
    headers = {} if origin is None else {"Origin": origin}
    async with push.lifespan(), Client(push) as client, client.open("/", headers=headers) as stream:
        found = {name: stream.headers[name] for name in expected}
        assert found == expected
        if "access-control-allow-origin" not in expected:
            assert "access-control-allow-origin" not in stream.headers


async def test_a_refusal_can_be_read_across_origins() -> None:
    push = LivePush(MemoryBroker(), lambda request: Refusal(403), cors=Cors([ORIGIN]))
    async with push.lifespan(), Client(push) as client:
        answer = await client.request("GET", "/", headers={"Origin": ORIGIN})
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert answer.headers["access-control-expose-headers"] == "retry-after"


async def test_a_preflight_names_methods_and_headers() -> None:
    push = LivePush(MemoryBroker(), public("news"), cors=Cors([ORIGIN], headers=["X-Token"], max_age=60))
    async with push.lifespan(), Client(push) as client:
        listed = await client.request("OPTIONS", "/", headers={"Origin": ORIGIN})
        other = await client.request("OPTIONS", "/", headers={"Origin": "https://evil.example"})
    assert listed.headers["access-control-allow-methods"] == "GET, HEAD, OPTIONS"
    assert listed.headers["access-control-allow-headers"] == "X-Token"
    assert listed.headers["access-control-max-age"] == "60"
    assert not [name for name in other.headers if name.startswith("access-control")]


async def test_a_web_socket_is_closed() -> None:
    push = LivePush(MemoryBroker(), public("news"))
    sent = []

    async def receive() -> dict[str, object]:
        return {"type": "websocket.connect"}

    async def send(message: object) -> None:
        sent.append(message)

    await push({"type": "websocket", "path": "/", "headers": []}, receive, send)
    assert sent == [{"type": "websocket.close", "code": 1003, "reason": "an event stream, not a WebSocket"}]


async def test_it_serves_the_lifespan_itself() -> None:
    push = LivePush(MemoryBroker(), public("news"))
    async with Client(push, lifespan=True) as client, client.open("/") as stream:
        await stream.next_event(control=True)
        await push.publish("news", "x")
        assert (await stream.next_event()).data == "x"


async def test_without_a_lifespan_the_first_request_starts_it() -> None:
    push = LivePush(MemoryBroker(), public("news"))
    async with Client(push) as client, client.open("/") as stream:
        await stream.next_event(control=True)
        await push.publish("news", "x")
        assert (await stream.next_event()).data == "x"
    await push.stop()


async def test_after_it_stopped_it_refuses_softly_and_can_be_started_again() -> None:
    push = LivePush(MemoryBroker(), public("news"))
    for _ in range(2):
        async with push.lifespan(), Client(push) as client, client.open("/") as stream:
            assert (await stream.next_event(control=True)).event == "livepush.open"
        async with Client(push) as client, client.open("/") as stream:
            event = await stream.next_event(control=True)
            assert (event.event, json.loads(event.data)["reason"]) == ("livepush.refused", "drain")
    assert push.statistics()["refused"][RefusalCause.DRAIN] == 2


class UnclosableSlots(MemorySlotCap):
    """A cap whose store is gone when it is closed."""

    async def aclose(self) -> None:
        raise ConnectionError("as the test wants it")


async def test_it_stops_and_starts_again_though_its_slots_cannot_be_closed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    push = LivePush(MemoryBroker(), public("news"), slots=UnclosableSlots(1))
    for _ in range(2):
        with anyio.fail_after(5):
            await push.start()
            async with Client(push) as client, client.open("/") as stream:
                assert stream.status == 200
            await push.stop()
    assert caplog.messages == ["closing the slots raised; the component stops all the same"] * 2


async def test_one_object_serves_one_event_loop_after_another() -> None:
    """Also where the first loop was left without a word, as tests and scripts do."""
    push = LivePush(MemoryBroker(), public("news"))
    received: list[ParsedEvent] = []

    async def use() -> None:
        async with Client(push) as client, client.open("/") as stream:
            await stream.next_event(control=True)
            await push.publish("news", len(received))
            received.append(await stream.next_event())

    def in_another_loop() -> None:
        anyio.run(use)

    for _ in range(3):
        await anyio.to_thread.run_sync(in_another_loop)
    assert [event.data for event in received] == ["0", "1", "2"]


async def test_publish_returns_the_event_id_and_counts() -> None:
    push = LivePush(MemoryBroker(), public("news"))
    async with push.lifespan(), Client(push) as client, client.open("/") as one, client.open("/"):
        await one.next_event(control=True)
        first = await push.publish("news", "x")
        assert (await one.next_event()).id == first
        assert await push.publish("nobody", "x", id=7) == "7"
        statistics = push.statistics()
        assert (statistics["streams"], statistics["published"], statistics["delivered"]) == (2, 2, 2)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"data": "x", "event": "a\nb"}, InvalidEventError),
        ({"data": "x", "event": "livepush.close"}, InvalidEventError),
        ({"data": "x", "id": "a\0b"}, InvalidEventError),
        ({"data": "x", "id": True}, InvalidEventError),
        ({"data": "x", "retry": -1}, InvalidEventError),
        ({"data": b"\xff"}, InvalidEventError),
        ({"data": print}, InvalidEventError),
        ({"data": float("nan")}, InvalidEventError),
        ({"data": Event("x"), "id": 1}, TypeError),
        ({"data": "x", "channel": "livepush.commands"}, ValueError),
        ({"data": "x", "channel": ""}, ValueError),
        ({"data": "x", "channel": 7}, TypeError),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else None,
)
async def test_what_cannot_be_read_back_is_not_published(
    arguments: dict[str, object], error: type[Exception]
) -> None:
    broker = MockBroker()
    push = LivePush(broker, public("news"))
    with pytest.raises(error):
        await push.publish(**{"channel": "news", **arguments})  # type: ignore[arg-type]
    assert broker.published == []


async def test_a_broker_that_is_away_is_a_clear_error_to_the_publisher() -> None:
    broker = MockBroker()
    broker.fail_publish(BrokerUnavailableError("away"))
    push = LivePush(broker, public("news"))
    with pytest.raises(BrokerUnavailableError):
        await push.publish("news", "x")
    assert push.statistics()["published"] == 0


async def test_disconnect_ends_the_streams_of_every_process() -> None:
    broker = MemoryBroker()

    def by_path(request: StreamRequest) -> Grant:
        return Grant(channels=["all", request.path], slot_key=request.path)

    here, there = LivePush(broker, by_path), LivePush(broker, by_path)
    async with here.lifespan(), there.lifespan(), Client(here) as client, Client(there) as other:
        async with client.open("/a") as a, other.open("/a") as a2, other.open("/b") as b:
            for stream in (a, a2, b):
                await stream.next_event(control=True)
            await anyio.wait_all_tasks_blocked()
            await here.disconnect(slot_key="/a")
            assert await a.wait_ended() == "revoked"
            assert await a2.wait_ended() == "revoked"
            await here.publish("all", "still here")
            assert (await b.next_event()).data == "still here"
            await here.disconnect(channel="/b", slot_key="/a")
            await here.publish("all", "still")
            assert (await b.next_event()).data == "still"
            await here.disconnect(channel="/b")
            assert await b.wait_ended() == "revoked"
        with pytest.raises(TypeError):
            await here.disconnect()
    assert there.statistics()["ended"][EndReason.REVOKED] == 2


async def test_an_expiry_in_time_lets_the_stream_live() -> None:
    push = LivePush(MemoryBroker(), lambda request: Grant(channels="c", expires_at=time.time() + 1e9))
    async with push.lifespan(), Client(push) as client, client.open("/") as stream:
        await stream.next_event(control=True)


async def test_memory_slot_cap_keeps_the_predecessors_surface() -> None:
    cap = MemorySlotCap(1)
    assert await cap.acquire("k")
    assert not await cap.acquire("k")
    await cap.release("k")
    await cap.release("k")
    assert cap.held("k") == 0
    lease = await cap.acquire_lease("k")
    with pytest.raises(CapExceededError) as raised:
        await cap.acquire_lease("k")
    assert (raised.value.slot_key, raised.value.cap) == ("k", 1)
    # Whoever holds a slot gives it back: another LivePush may share the cap.
    await cap.aclose()
    assert (lease.released, cap.held("k")) == (False, 1)
    lease.release()
    assert cap.held("k") == 0


async def test_a_gzip_middleware_that_holds_streams_back_is_named_at_the_start(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with LivePush(MemoryBroker(), public("c")).lifespan():
        assert "GZipMiddleware" not in caplog.text
    # As before Starlette 0.46, which compressed event streams and flushed nothing.
    monkeypatch.delattr(gzip, "DEFAULT_EXCLUDED_CONTENT_TYPES")
    async with LivePush(MemoryBroker(), public("c")).lifespan():
        assert "GZipMiddleware of this Starlette holds back" in caplog.text
