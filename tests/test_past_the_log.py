"""Publishers with the wrong kind of broker: what is in no log is refused by every process, visibly."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import anyio.to_thread
import pytest
from redis import Redis

from livepush_asgi import (
    Grant,
    JetStreamBroker,
    LivePush,
    MemoryBroker,
    NatsBroker,
    RedisBroker,
    RedisStreamsBroker,
)
from livepush_asgi.brokers import Broker, ForwardingSubscription
from livepush_asgi.brokers.history import History
from livepush_asgi.testing import Client, Stream
from livepush_asgi.wire.event import POSITION_MARK

from .command import run
from .faulty_broker import FaultyBroker, FaultyServer
from .nats_server import NatsProcess
from .valkey import ValkeyProcess

CHANNELS = ("news", "other")
# A busy machine must not fail a test.
LONG = 10.0


@asynccontextmanager
async def application(broker: Broker) -> AsyncIterator[tuple[LivePush, Client]]:
    push = LivePush(broker, lambda request: Grant(channels=CHANNELS))
    async with push.lifespan(), Client(push) as client:
        yield push, client


async def opened(stream: Stream) -> None:
    assert (await stream.next_event(LONG, control=True)).event == "livepush.open"


def refusals(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]


async def check_refused(
    caplog: pytest.LogCaptureFixture, one: Broker, another: Broker, wrong: Broker
) -> None:
    """Publish past the log, under two processes that keep it; both streams get what is in the log alone."""
    async with (
        application(one) as (push, client),
        application(another) as (_, elsewhere),
        client.open("/") as first,
        elsewhere.open("/") as second,
    ):
        streams = (first, second)
        for stream in streams:
            await opened(stream)
        for number in range(3):
            await wrong.publish("news", f"past {number}")
        await push.publish("news", "in the log")
        await wrong.publish("other", "past")
        await push.publish("other", "in the log")
        for stream in streams:
            # No gap either: a gap would come before.
            found = [await stream.next_event(LONG, control=True) for _ in range(2)]
            assert [event.data for event in found] == ["in the log"] * 2
        async with client.open("/", last_event_id=first.last_event_id) as again:
            await opened(again)
            await push.publish("news", "after")
            assert (await again.next_event(control=True)).data == "after"
    lines = refusals(caplog)
    assert sorted(lines) == sorted(
        [line for name in CHANNELS for line in 2 * [f"a payload on {name!r} is refused{ADVICE}"]]
    )


ADVICE = (
    ": it was published past the log, for example with RedisBroker instead of RedisStreamsBroker; publish"
    " with the kind of broker that this application uses"
)


class PastTheLog:
    """Delivers on the live path of faulty brokers, and appends nothing."""

    def __init__(self, server: FaultyServer) -> None:
        self._server = server

    async def publish(self, channel: str, payload: str | bytes) -> int:
        for broker in self._server.brokers:
            broker.deliver(channel, payload.encode() if isinstance(payload, str) else payload)
        return len(self._server.brokers)

    async def subscribe(self, channel: str) -> ForwardingSubscription:
        raise NotImplementedError


async def test_any_broker_with_history(caplog: pytest.LogCaptureFixture) -> None:
    server = FaultyServer(History())
    await check_refused(caplog, FaultyBroker(server), FaultyBroker(server), PastTheLog(server))


async def test_payloads_whose_positions_cannot_be_read_are_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = FaultyServer(History())
    async with application(FaultyBroker(server)) as (push, client), client.open("/") as stream:
        await opened(stream)
        for _ in range(3):
            server.brokers[0].publish_past_the_log("news", POSITION_MARK + b"no position\nx")
        await push.publish("news", "in the log")
        assert (await stream.next_event(control=True)).data == "in the log"
    assert len(caplog.records) == 1


async def test_nothing_is_refused_of_what_is_published_in_memory(caplog: pytest.LogCaptureFixture) -> None:
    broker = MemoryBroker()
    async with application(broker) as (_, client), client.open("/") as stream:
        await opened(stream)
        await broker.publish("news", "plain")
        event = await stream.next_event(control=True)
        assert (event.data, bool(event.id)) == ("plain", True)
    assert refusals(caplog) == []


@pytest.mark.real_time
class TestOnAServer:
    async def test_a_redis_broker_beside_redis_streams_brokers(
        self, caplog: pytest.LogCaptureFixture, valkey: ValkeyProcess
    ) -> None:
        async with valkey.client() as client:
            one, another = RedisStreamsBroker(client), RedisStreamsBroker(client)
            await check_refused(caplog, one, another, RedisBroker(client))

    async def test_a_nats_broker_beside_jetstream_brokers(
        self, caplog: pytest.LogCaptureFixture, nats_server: NatsProcess
    ) -> None:
        prefix = f"test-{uuid4().hex}"
        one, another = (JetStreamBroker(nats_server.url, prefix=prefix) for _ in range(2))
        await check_refused(caplog, one, another, NatsBroker(nats_server.url, prefix=prefix))

    @pytest.mark.parametrize("kind", [RedisBroker, RedisStreamsBroker])
    async def test_the_command_reaches_applications_of_both_kinds(
        self, valkey: ValkeyProcess, kind: type[RedisBroker] | type[RedisStreamsBroker]
    ) -> None:
        async with (
            valkey.client() as redis,
            application(kind(redis)) as (push, client),
            client.open("/") as stream,
        ):
            await opened(stream)
            begin = await push.publish("news", "begin")
            assert (await stream.next_event(LONG)).data == "begin"
            ended = await anyio.to_thread.run_sync(run, "publish", "news", "hello", "--redis", valkey.url)
            assert (ended.returncode, ended.stdout, ended.stderr) == (0, "1 listener\n", "")
            assert (await stream.next_event(LONG, control=True)).data == "hello"
            if kind is RedisStreamsBroker:
                async with client.open("/", last_event_id=begin) as again:
                    assert (await again.next_event(LONG)).data == "hello"

    async def test_the_command_does_not_trim_the_log_of_an_application(self, valkey: ValkeyProcess) -> None:
        async with valkey.client() as client:
            broker = RedisStreamsBroker(client, history=History(events=3000))
            for number in range(1500):
                await broker.append("news", b"%d" % number)
        await anyio.to_thread.run_sync(run, "publish", "news", "hello", "--redis", valkey.url)
        with Redis.from_url(valkey.url) as other:
            assert other.xlen("livepush:log:{news}") == 1501
