"""The probe: who gets one, what it sends and when, and that it counts against nothing."""

import json
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import pytest

from livepush_asgi import (
    Cors,
    DrainPolicy,
    Grant,
    LivePush,
    MemoryBroker,
    MemorySlotCap,
    Refusal,
    StreamRequest,
    Timing,
    public,
)
from livepush_asgi.http.probe import MAX_AT_ONCE, ProbePlan, ProbeRule
from livepush_asgi.testing import Answer, Client, Stream

pytestmark = pytest.mark.virtual_time


def all_may(request: StreamRequest) -> bool:
    return True


@asynccontextmanager
async def probed(
    probe: ProbeRule | None = all_may, **options: object
) -> AsyncIterator[tuple[Client, LivePush]]:
    push = LivePush(
        MemoryBroker(),
        public("news", slot_key="k"),
        slots=MemorySlotCap(1),
        timing=Timing(heartbeat_interval=5),
        drain=DrainPolicy(window=3, signals=False),
        probe=probe,
        **options,  # type: ignore[arg-type]
    )
    async with push.lifespan(), Client(push) as client:
        yield client, push


async def ask(client: Client, text: str = "2-100-0") -> Answer:
    return await client.request("GET", "/", query={"livepush_probe": text})


async def facts(stream: Stream, timeout: float = 60.0) -> dict[str, object]:
    event = await stream.next_event(timeout, name="livepush.probe")
    found: dict[str, object] = json.loads(event.data)
    return found


def problem(answer: Answer) -> Mapping[str, object]:
    assert answer.headers["content-type"] == "application/problem+json"
    found: dict[str, object] = json.loads(answer.body)
    return found


async def test_a_probe_is_a_timed_series_a_pause_with_heartbeats_and_the_totals() -> None:
    async with (
        probed() as (client, _),
        client.open("/", query={"livepush_probe": "3-200-12000"}) as stream,
    ):
        start = anyio.current_time()
        assert stream.headers == {
            "content-type": "text/event-stream",
            "cache-control": "no-cache, no-transform",
            "x-accel-buffering": "no",
        }
        assert await facts(stream) == {
            "n": 0,
            "ms": 0,
            "events": 3,
            "interval": 200,
            "idle": 12000,
            "size": 50,
            "heartbeat": 5,
            "http": "1.1",
            "scheme": "http",
            "telling": [],
            "via": "",
        }
        for number in (1, 2, 3):
            assert await facts(stream) == {"n": number, "ms": 200 * number}
            assert anyio.current_time() - start == pytest.approx(0.2 * number)
        last = await facts(stream)
        assert (last["n"], last["ms"], last["end"], last["events"]) == (4, 12600, "complete", 3)
        assert anyio.current_time() - start == pytest.approx(12.6)
        await stream.wait_ended()
        bodies = [message["body"] for message in stream.messages[1:]]
        assert [len(body) for body in bodies[1:4]] == [50, 50, 50]
        assert bodies[4:6] == [b":\n", b":\n"]
        assert last["bytes"] == sum(map(len, bodies[:-1]))
        assert stream.empty_blocks == 0


async def test_events_are_as_large_as_asked_for() -> None:
    async with probed() as (client, _):
        answer = await ask(client, "4-10-0-2048")
    assert [len(message["body"]) for message in answer.messages[1:6]] == [2048] * 5


async def test_what_stands_on_the_way_is_told_by_the_names_it_left() -> None:
    headers = {"Via": "1.1 Caddy", "X-Forwarded-For": "192.0.2.1", "Cookie": "a=b", "CF-Ray": "1"}
    async with (
        probed() as (client, _),
        client.open("/", query={"livepush_probe": "1-10-0"}, headers=headers) as stream,
    ):
        start = await facts(stream)
    assert (start["telling"], start["via"]) == (["cf-ray", "via", "x-forwarded-for"], "1.1 Caddy")


async def test_a_probe_counts_against_nothing() -> None:
    async with probed() as (client, push), client.open("/", query={"livepush_probe": "1-10-5000"}) as stream:
        await facts(stream)
        numbers = push.statistics()
        assert (numbers["streams"], numbers["opened"], numbers["channels"]) == (0, 0, 0)
        # The only slot is free.
        async with client.open("/") as other:
            await other.next_event(name="livepush.open")
        await push.publish("news", "not for probes")
        assert (await facts(stream))["n"] == 1
        assert (await facts(stream))["events"] == 1
        assert {event.event for event in stream.received} == {"livepush.probe"}
    assert sum(push.statistics()["refused"].values()) == 0


async def test_without_a_rule_the_parameter_means_nothing() -> None:
    async with probed(None) as (client, _), client.open("/", query={"livepush_probe": "1-10-0"}) as stream:
        assert (await stream.next_event(control=True)).event == "livepush.open"


@pytest.mark.parametrize(
    ("decision", "status"),
    [
        (False, 404),
        (Refusal(401), 401),
        (True, 200),
        (Grant(channels="any"), 200),
    ],
)
@pytest.mark.parametrize("waits", [False, True])
async def test_a_rule_decides(decision: bool | Grant | Refusal, status: int, waits: bool) -> None:
    async def later(request: StreamRequest) -> bool | Grant | Refusal:
        return decision

    def at_once(request: StreamRequest) -> bool | Grant | Refusal:
        return decision

    async with probed(later if waits else at_once) as (client, _):
        assert (await ask(client)).status == status


async def test_a_refused_probe_tells_nothing() -> None:
    async with probed(lambda request: False) as (client, _):
        refused = [await ask(client, text) for text in ("1-10-0", "nonsense")]
    assert [answer.status for answer in refused] == [404, 404]
    assert [problem(answer) for answer in refused] == [
        {"type": "about:blank", "title": "Not Found", "status": 404}
    ] * 2


async def test_a_rule_may_raise_its_refusal() -> None:
    def rule(request: StreamRequest) -> bool:
        raise Refusal(401, "Who are you?")

    async with probed(rule) as (client, _):
        assert problem(await ask(client))["detail"] == "Who are you?"


async def test_a_rule_that_fails_is_a_500_and_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    def fails(request: StreamRequest) -> bool:
        raise KeyError("tenant")

    def forgets(request: StreamRequest) -> bool:
        return None  # type: ignore[return-value]

    with caplog.at_level(logging.ERROR, "livepush_asgi"):
        for rule in (fails, forgets):
            async with probed(rule) as (client, _):
                answer = await ask(client)
                assert answer.status == 500
                assert b"tenant" not in answer.body
    assert [record.message for record in caplog.records] == [
        "the rule for probes raised; the client got a 500",
        "the rule for probes returned NoneType, not True or False",
    ]


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        ("", "a probe is asked for as EVENTS-INTERVAL-IDLE or EVENTS-INTERVAL-IDLE-SIZE"),
        ("1-10", "a probe is asked for as EVENTS-INTERVAL-IDLE or EVENTS-INTERVAL-IDLE-SIZE"),
        ("1-10-0-50-1", "a probe is asked for as EVENTS-INTERVAL-IDLE or EVENTS-INTERVAL-IDLE-SIZE"),
        ("1-10--5", "a probe is asked for as EVENTS-INTERVAL-IDLE or EVENTS-INTERVAL-IDLE-SIZE"),
        ("\u0661-10-0", "a probe is asked for as EVENTS-INTERVAL-IDLE or EVENTS-INTERVAL-IDLE-SIZE"),
        ("0-10-0", "events is from 1 to 100, not 0"),
        ("101-10-0", "events is from 1 to 100, not 101"),
        ("1-9-0", "interval is from 10 to 1000, not 9"),
        ("1-10-600001", "idle is from 0 to 600000, not 600001"),
        ("1-10-0-49", "size is from 50 to 4096, not 49"),
        ("1-10-0-4097", "size is from 50 to 4096, not 4097"),
    ],
)
async def test_what_cannot_be_asked_for_is_a_problem_before_the_start(text: str, detail: str) -> None:
    async with probed() as (client, _):
        answer = await ask(client, text)
    assert (answer.status, problem(answer)["detail"]) == (400, detail)


def test_a_plan_is_written_as_it_is_read() -> None:
    plan = ProbePlan(20, 100, 2000)
    assert (str(plan), ProbePlan.parse(str(plan)), plan.seconds) == ("20-100-2000-50", plan, 4.0)


async def test_so_many_run_at_once_and_no_more() -> None:
    async with probed() as (client, _):
        async with AsyncExitStack() as stack:
            for _ in range(MAX_AT_ONCE):
                await stack.enter_async_context(client.open("/", query={"livepush_probe": "1-10-60000"}))
            refused = await ask(client)
            assert (refused.status, refused.headers["retry-after"]) == (429, "5")
        # All have left.
        assert (await ask(client)).status == 200


async def test_a_draining_process_gives_its_probes_up_and_takes_no_new_ones() -> None:
    async with probed() as (client, push), client.open("/", query={"livepush_probe": "1-10-60000"}) as stream:
        await facts(stream)
        await facts(stream)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(push.drain)
            assert (await facts(stream, 2))["end"] == "drain"
            await stream.wait_ended()
        refused = await ask(client)
        assert (refused.status, b"event: livepush.refused\n" in refused.body) == (200, True)


async def test_a_client_that_takes_nothing_is_let_go() -> None:
    async with (
        probed() as (client, _),
        client.open("/", query={"livepush_probe": "100-10-0"}, window=0) as stream,
    ):
        await anyio.sleep(40)
        await stream.wait_ended(1)
        # It was cut off, and is not sent the rest now that it reads.
        assert len(stream.received) < 5


async def test_only_get_starts_a_probe() -> None:
    async with probed() as (client, _):
        head = await client.request("HEAD", "/", query={"livepush_probe": "nonsense"})
        assert (head.status, head.body) == (200, b"")


async def test_a_page_of_another_origin_may_probe_where_it_may_listen() -> None:
    async with probed(cors=Cors({"https://app.example"})) as (client, _):
        answer = await client.request(
            "GET", "/", query={"livepush_probe": "1-10-0"}, headers={"Origin": "https://app.example"}
        )
    assert answer.headers["access-control-allow-origin"] == "https://app.example"


def test_a_rule_is_a_function() -> None:
    with pytest.raises(TypeError, match="probe is a function that says who may probe"):
        LivePush(MemoryBroker(), public("news"), probe=True)  # type: ignore[arg-type]
