"""`push.health`: what a balancer and an orchestrator are told, and `push.faults`, why."""

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from threading import Thread

import anyio
import pytest

from livepush_asgi import (
    BrokerUnavailableError,
    DrainPolicy,
    Fault,
    LivePush,
    MemoryBroker,
    MockBroker,
    StreamRequest,
    Timing,
    public,
)
from livepush_asgi.brokers import ForwardingSubscription
from livepush_asgi.grant import Grant
from livepush_asgi.runtime.asgi import ASGIApp
from livepush_asgi.testing import Answer, Client
from livepush_asgi.wire.event import COMMAND_CHANNEL

from .virtual_clock import let_pass

pytestmark = pytest.mark.virtual_time

TIMING = Timing(linger=0, subscribe_timeout=2, heartbeat_interval=None)


class WatchedBroker(MockBroker):
    """Tells whether it is healthy, and no more. `refuses` names a channel that cannot be subscribed."""

    healthy = True
    refuses = ""
    hangs = False

    async def subscribe(self, channel: str) -> ForwardingSubscription:
        if self.hangs:
            await anyio.sleep_forever()
        if channel == self.refuses:
            error = BrokerUnavailableError("the user may not have it")
            error.refused = True
            raise error
        return await super().subscribe(channel)


class House:
    """A LivePush that has started, and its health checks."""

    def __init__(self, push: LivePush, broker: WatchedBroker, app: ASGIApp) -> None:
        self.push = push
        self.broker = broker
        self.client = Client(app)

    async def ask(self, check: str) -> tuple[int, str]:
        """Return the status, and the status that the body names; it comes at once."""
        before = anyio.current_time()
        answer = await self.client.request("GET", f"/{check}")
        assert anyio.current_time() == before
        return told(answer)

    async def both(self) -> tuple[int, int]:
        return (await self.ask("ready"))[0], (await self.ask("live"))[0]


def told(answer: Answer) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    assert ("retry-after" in answer.headers) == (answer.status == 503)
    assert list(answer.json()) == ["status"]
    return answer.status, answer.json()["status"]


def authorize(request: StreamRequest) -> Grant:
    return Grant(channels=request.query["channel"])


@asynccontextmanager
async def house(broker: WatchedBroker | None = None, **options: float) -> AsyncIterator[House]:
    broker = broker or WatchedBroker()
    push = LivePush(broker, authorize, timing=TIMING, drain=DrainPolicy(window=5, signals=False))
    async with push.lifespan():
        await let_pass(0.1)
        yield House(push, broker, push.health(**options))


async def test_a_process_is_ready_and_lives_and_no_cache_keeps_that() -> None:
    async with house() as here:
        assert await here.ask("ready") == (200, "ok")
        assert await here.ask("live") == (200, "ok")
        assert here.push.healthy
        assert here.push.faults == ()


@pytest.mark.parametrize("check", ["ready", "live"])
async def test_only_get_and_head_are_answered(check: str) -> None:
    async with house() as here:
        head = await here.client.request("HEAD", f"/{check}")
        assert (head.status, head.body, head.headers["content-length"]) == (200, b"", "16")
        for method in ("POST", "OPTIONS", "DELETE", "PURGE"):
            answer = await here.client.request(method, f"/{check}")
            assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")
        for path in ("/", "/readyX", "/live/ready/x"):
            assert (await here.client.request("GET", path)).status == 404


async def test_a_check_starts_what_no_lifespan_has_started() -> None:
    push = LivePush(MemoryBroker(), public("news"))
    client = Client(push.health())
    try:
        assert told(await client.request("GET", "/live")) == (200, "ok")
        assert told(await client.request("GET", "/ready")) == (200, "ok")
    finally:
        await push.stop()
    assert told(await client.request("GET", "/ready")) == (503, "stopped")
    assert told(await client.request("GET", "/live")) == (200, "ok")


async def test_a_draining_process_gets_no_requests_and_is_not_killed() -> None:
    async with house() as here, Client(here.push) as client, client.open("/?channel=news") as stream:
        await stream.next_event(control=True)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(here.push.drain)
            await anyio.lowlevel.checkpoint()
            assert await here.ask("ready") == (503, "draining")
            assert await here.ask("live") == (200, "ok")
        assert await here.ask("ready") == (503, "draining")


async def test_a_broker_that_is_away_since_the_start() -> None:
    broker = WatchedBroker()
    broker.fail_subscribe(ConnectionError("nobody there"))
    async with house(broker, dead_after=60) as here:
        # No stream has asked for anything yet.
        assert await here.ask("ready") == (503, "starting")
        await let_pass(1)
        assert await here.ask("ready") == (503, "unhealthy")
        (fault,) = here.push.faults
        assert (fault.cause, fault.channels, fault.channel) == ("nobody there", 1, COMMAND_CHANNEL)
        await let_pass(50)
        assert await here.both() == (503, 200)
        await let_pass(10)
        assert await here.ask("live") == (503, "unhealthy")
        broker.fail_subscribe(None)
        await let_pass(6)
        assert await here.both() == (200, 200)
        assert here.push.faults == ()


async def test_a_broker_that_never_answers_is_not_waited_for() -> None:
    broker = WatchedBroker()
    broker.hangs = True
    async with house(broker, dead_after=60) as here:
        assert await here.ask("ready") == (503, "starting")
        await let_pass(3)
        assert await here.ask("ready") == (503, "unhealthy")
        assert not here.push.healthy
        assert [str(fault) for fault in here.push.faults] == [
            "the broker has not answered since the start, for 3.1 s"
        ]
        await let_pass(60)
        assert await here.both() == (503, 503)


async def test_a_short_reconnect_takes_no_process_out() -> None:
    async with house() as here:
        for _ in range(3):
            here.broker.healthy = False
            assert not here.push.healthy
            assert await here.ask("ready") == (200, "ok")
            await let_pass(0.5)
            assert await here.ask("ready") == (200, "ok")
            here.broker.healthy = True
            assert await here.ask("ready") == (200, "ok")
        # What was between two outages does not count.
        await let_pass(1000)
        assert await here.both() == (200, 200)
        here.broker.healthy = False
        assert await here.both() == (200, 200)
        await let_pass(1)
        assert await here.ask("ready") == (503, "unhealthy")
        assert [str(fault) for fault in here.push.faults] == ["the broker is not healthy, for 1.0 s"]


async def test_an_outage_that_has_ended_is_not_remembered() -> None:
    async with house() as here:
        here.broker.healthy = False
        assert not here.push.healthy
        await let_pass(5)
        assert await here.ask("ready") == (503, "unhealthy")
        here.broker.healthy = True
        assert await here.ask("ready") == (200, "ok")
        here.broker.healthy = False
        assert await here.ask("ready") == (200, "ok")


async def test_any_thread_may_ask() -> None:
    broker, found = WatchedBroker(), list[tuple[bool, int]]()
    broker.fail_subscribe(ConnectionError("nobody there"))
    async with house(broker) as here:
        await let_pass(3)
        here.broker.healthy = False
        thread = Thread(target=lambda: found.append((here.push.healthy, len(here.push.faults))))
        thread.start()
        thread.join()
    assert found == [(False, 2)]


async def test_without_a_limit_the_broker_decides_nothing() -> None:
    broker = WatchedBroker()
    broker.fail_subscribe(ConnectionError("nobody there"))
    async with house(broker, unready_after=math.inf, dead_after=math.inf) as here:
        assert await here.both() == (200, 200)
        await let_pass(10_000)
        assert await here.both() == (200, 200)
        assert not here.push.healthy


@pytest.mark.parametrize("refused", [True, False])
async def test_a_channel_that_is_refused_to_one_client_takes_no_process_out(refused: bool) -> None:
    """A client that may name channels could otherwise take out every process, one after the other."""
    async with house() as here, Client(here.push) as client:
        if refused:
            here.broker.refuses = "secret"
        else:
            here.broker.fail_subscribe(ConnectionError("its shard is away"))
        async with client.open("/?channel=secret"):
            await let_pass(5)
            (fault,) = here.push.faults
            assert (fault.channel, fault.refused, fault.seconds > 4) == ("secret", refused, True)
            assert not here.push.healthy
            assert await here.both() == (200 if refused else 503, 200)
        await let_pass(1)
        assert here.push.healthy


async def test_a_process_that_may_not_hear_the_others_is_not_ready() -> None:
    broker = WatchedBroker()
    broker.refuses = COMMAND_CHANNEL
    async with house(broker) as here:
        await let_pass(2)
        assert await here.ask("ready") == (503, "unhealthy")


async def test_the_answer_names_no_address() -> None:
    broker = WatchedBroker()
    broker.fail_subscribe(ConnectionError("Redis at 10.0.0.5:6379, password sesame"))
    async with house(broker) as here:
        await let_pass(5)
        answer = await here.client.request("GET", "/ready")
        assert (answer.status, answer.body) == (503, b'{"status": "unhealthy"}')
        assert "10.0.0.5" not in str(answer.headers)


@pytest.mark.parametrize("name", ["unready_after", "dead_after"])
@pytest.mark.parametrize("value", [-1, math.nan, True, "1", None])
def test_a_time_is_seconds(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name} is in seconds, 0 or more"):
        LivePush(MemoryBroker(), public("news")).health(**{name: value})  # type: ignore[arg-type]


def test_a_process_is_not_restarted_before_it_is_taken_out() -> None:
    with pytest.raises(ValueError, match="dead_after is not below unready_after: 1 < 2"):
        LivePush(MemoryBroker(), public("news")).health(unready_after=2, dead_after=1)


def test_a_fault_is_one_sentence() -> None:
    fault = Fault(cause="no answer", seconds=2.04, where="Redis at a:1", channels=3, channel="news")
    assert str(fault) == "Redis at a:1: no answer, for 2.0 s (channel 'news' and 2 more)"
