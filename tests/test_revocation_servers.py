"""Revocation over real servers: every process confirms, soon, and one that heard nothing makes up for it."""

import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import anyio.to_thread
import pytest

from livepush_asgi import (
    Disconnected,
    EndReason,
    Grant,
    JetStreamBroker,
    LivePush,
    NatsBroker,
    PostgresBroker,
    Publisher,
    RedisBroker,
    RedisStreamsBroker,
    Refusal,
    StreamRequest,
)
from livepush_asgi.brokers import Broker, Subscription
from livepush_asgi.testing import Client, Stream

from .nats_server import NatsProcess
from .postgres_server import PostgresProcess
from .valkey import ValkeyProcess, until

MakeBroker = Callable[[AsyncExitStack], Broker]

pytestmark = pytest.mark.real_time


@pytest.fixture(
    params=["redis", "redis streams", "nats", "jetstream", pytest.param("postgres", marks=pytest.mark.slow)]
)
def make_broker(request: pytest.FixtureRequest) -> MakeBroker:
    kind = request.param
    prefix = f"r{time.monotonic_ns()}"
    if kind.startswith("redis"):
        valkey: ValkeyProcess = request.getfixturevalue("valkey")

        def make(stack: AsyncExitStack) -> Broker:
            redis = valkey.client()
            stack.push_async_callback(redis.aclose)
            return RedisBroker(redis) if kind == "redis" else RedisStreamsBroker(redis)
    elif kind == "postgres":
        postgres: PostgresProcess = request.getfixturevalue("postgres_server")

        def make(stack: AsyncExitStack) -> Broker:
            broker = PostgresBroker(postgres.dsn, prefix=prefix)
            stack.push_async_callback(broker.aclose)
            return broker
    else:
        nats: NatsProcess = request.getfixturevalue("nats_server")

        def make(stack: AsyncExitStack) -> Broker:
            if kind == "nats":
                return NatsBroker(nats.url, prefix=prefix)
            return JetStreamBroker(nats.url, prefix=prefix)

    return make


class House:
    """A process's worth of a component, with a decision that can be changed."""

    def __init__(self, broker: Broker) -> None:
        self.decision: Grant | Refusal = Grant(channels="news", slot_key="k")
        self.push = LivePush(broker, self.authorize)
        self.client = Client(self.push, deadline=10)
        self.reads_commands_first = isinstance(broker, PostgresBroker)

    async def authorize(self, request: StreamRequest) -> Grant | Refusal:
        return self.decision

    async def open(self, stack: AsyncExitStack) -> Stream:
        stream = await stack.enter_async_context(self.client.open("/"))
        await stream.next_event(10, name="livepush.open")
        return stream


@asynccontextmanager
async def houses(make_broker: MakeBroker, count: int) -> AsyncIterator[tuple[list[House], AsyncExitStack]]:
    async with AsyncExitStack() as stack:
        found = [House(make_broker(stack)) for _ in range(count)]
        for house in found:
            await stack.enter_async_context(house.push.lifespan())
        yield found, stack


async def test_all_processes_confirm_and_soon(make_broker: MakeBroker) -> None:
    async with houses(make_broker, 3) as (found, stack):
        streams = [await house.open(stack) for house in found]
        await found[0].push.publish("news", "before")
        start = time.monotonic()
        done = await found[0].push.disconnect(slot_key="k")
        assert done == (3, 3, 0)
        # Where the broker does not count, it is waited for a moment whether there is a fourth.
        assert time.monotonic() - start < 1
        assert [house.push.statistics()["streams"] for house in found] == [0, 0, 0]
        for stream in streams:
            assert await stream.wait_ended(5) == "revoked"
            got = [event.data for event in stream.received if event.event == "message"]
            # Over PostgreSQL a process reads the log of the commands first.
            assert got == ["before"] or (got == [] and found[0].reads_commands_first)


async def test_a_process_with_slow_clients_is_waited_for_by_one_that_does_not_know_it(
    make_broker: MakeBroker,
) -> None:
    async with houses(make_broker, 2) as (found, stack):
        old, new = found
        slow = await stack.enter_async_context(old.client.open("/", window=0))
        await slow.next_event(10, name="livepush.open")
        # The new one listens only now: it has not heard the other say hello.
        await new.push.publish("news", "not taken")
        await until(lambda: old.push.statistics()["delivered"])
        assert await new.push.disconnect(slot_key="k") == (1, 2, 0)
        assert old.push.statistics()["streams"] == 0


async def open_and_introduce(found: list[House], witness: Broker, stack: AsyncExitStack) -> None:
    """Open a stream in each component, and return when they have told each other that they are there."""
    heard = await witness.subscribe("livepush.commands")
    for number, house in enumerate(found):
        await stack.enter_async_context(house.push.lifespan())
        await house.open(stack)
        # The new one says hello, and the others answer.
        commands = await commands_from(heard, number + 1)
        assert sorted(commands) == ["hello", *["here"] * number] or number == 0
    # The server would count the witness, which confirms nothing.
    await heard.close()


async def commands_from(heard: Subscription, count: int) -> list[str]:
    commands: list[str] = []
    with anyio.fail_after(5):
        while len(commands) < count:
            if payload := await heard.get_message(timeout=5):
                text = payload[payload.index(b"{") : payload.rindex(b"}") + 1]
                commands.append(json.loads(text)["command"])
    return commands


@asynccontextmanager
async def slow_client(house: House, publisher: House) -> AsyncIterator[None]:
    """A client that takes nothing of what is published: its stream takes a second to end."""
    house.decision = Grant(channels="news", slot_key="slow")
    async with house.client.open("/", window=0) as slow:
        await slow.next_event(10, name="livepush.open")
        delivered = house.push.statistics()["delivered"]
        await publisher.push.publish("news", "not taken")
        await until(lambda: house.push.statistics()["delivered"] > delivered)
        yield


async def test_components_that_share_a_broker_are_waited_for_one_by_one(make_broker: MakeBroker) -> None:
    """For the server they are one subscriber."""
    async with AsyncExitStack() as stack:
        shared, other = make_broker(stack), make_broker(stack)
        older, newer, elsewhere = House(shared), House(shared), House(other)
        await open_and_introduce([older, newer, elsewhere], make_broker(stack), stack)
        for sender, slow in ((newer, older), (elsewhere, newer)):
            async with slow_client(slow, sender):
                assert (await sender.push.disconnect(slot_key="slow")).processes == 3
                assert slow.push.statistics()["streams"] == 1


async def test_a_program_waits_for_each_component_that_shares_a_broker(make_broker: MakeBroker) -> None:
    async with AsyncExitStack() as stack:
        shared, other = make_broker(stack), make_broker(stack)
        older, newer = House(shared), House(shared)
        script = LivePush(other, older.authorize)
        await open_and_introduce([older, newer], other, stack)
        async with slow_client(newer, older):
            assert await script.disconnect(slot_key="slow") == (1, 2, 0)
            assert newer.push.statistics()["streams"] == 1


async def test_a_process_that_has_stopped_is_not_waited_for(make_broker: MakeBroker) -> None:
    async with houses(make_broker, 2) as (found, stack):
        await found[0].open(stack)
        async with AsyncExitStack() as others:
            await found[1].open(others)
            assert (await found[0].push.disconnect(slot_key="k")).processes == 2
        await found[1].push.stop()
        start = time.monotonic()
        assert (await found[0].push.disconnect(slot_key="k")).processes == 1
        assert time.monotonic() - start < 1


async def test_a_script_revokes_and_is_told_how_many_confirmed(make_broker: MakeBroker) -> None:
    @asynccontextmanager
    async def made() -> AsyncIterator[Broker]:
        async with AsyncExitStack() as stack:
            yield make_broker(stack)

    def revoke() -> Disconnected:
        with Publisher(made) as publisher:
            first = publisher.disconnect(channel="news")
            assert publisher.disconnect(channel="news") == (0, 2, 0)
            return first

    async with houses(make_broker, 2) as (found, stack):
        streams = [await house.open(stack) for house in found]
        assert await anyio.to_thread.run_sync(revoke) == (2, 2, 0)
        for stream in streams:
            assert await stream.wait_ended(5) == "revoked"


async def test_a_publisher_does_not_block_an_event_loop_with_a_revocation() -> None:
    with Publisher(lambda: RedisBroker(None)) as publisher, pytest.raises(RuntimeError):  # type: ignore[arg-type]
        publisher.disconnect(slot_key="k")
    with pytest.raises(TypeError):
        publisher.disconnect()


@pytest.mark.parametrize("kind", [RedisBroker, RedisStreamsBroker])
async def test_a_process_whose_listener_was_down_ends_its_streams_when_it_is_back(
    kind: type[RedisBroker] | type[RedisStreamsBroker], own_valkey: ValkeyProcess
) -> None:
    """With a log it reads what it missed; without one it asks `authorize` again."""
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(own_valkey.client()) for _ in range(2)]
        here, there = House(kind(clients[0])), House(kind(clients[1]))
        for house in (here, there):
            await stack.enter_async_context(house.push.lifespan())
        stream = await there.open(stack)
        await here.push.disconnect(slot_key="nobody")
        async with own_valkey.client() as redis:
            await redis.client_kill_filter(_type="pubsub")
            there.decision = Refusal(403)
            await here.push.disconnect(slot_key="k")
            assert await stream.wait_ended(20) == "revoked"
        assert there.push.statistics()["ended"][EndReason.REVOKED] == 1
        await until(lambda: here.push.healthy and there.push.healthy, within=20)
