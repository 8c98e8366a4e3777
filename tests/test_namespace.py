"""Two applications share a server, each in a namespace: nothing of one reaches the other."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import anyio.to_thread
import pytest
from redis.asyncio import Redis

from livepush_asgi import (
    Broker,
    CapExceededError,
    Grant,
    LivePush,
    MemoryBroker,
    MemorySlotCap,
    PositionConflictError,
    Publisher,
    RedisBroker,
    RedisStreamsBroker,
    SlotCap,
    SSEStreamService,
    Timing,
    public,
)
from livepush_asgi.testing import Client, Stream
from livepush_asgi.wire.cursor import Position

from .command import run
from .valkey import ValkeyProcess

NAMES = ("staging", "production")
BROKERS = [RedisBroker, RedisStreamsBroker]

pytestmark = pytest.mark.real_time


@asynccontextmanager
async def application(
    valkey: ValkeyProcess,
    namespace: str | None,
    make: Callable[[Redis], Broker],
    *,
    cap: int = 1,
) -> AsyncIterator[tuple[LivePush, Client]]:
    async with valkey.client() as redis:
        push = LivePush(
            make(redis),
            public("news", slot_key="k"),
            slots=SlotCap(redis, cap=cap),
            timing=Timing(linger=0),
            namespace=namespace,
        )
        async with push.lifespan(), Client(push) as client:
            yield push, client


async def opened(stack: AsyncExitStack, client: Client, **options: Any) -> Stream:
    stream = await stack.enter_async_context(client.open("/", **options))
    await stream.next_event(5, control=True)
    return stream


async def slot_free(valkey: ValkeyProcess, slot_key: str) -> None:
    async with valkey.client() as redis:
        slots = SlotCap(redis)
        with anyio.fail_after(5):
            while await slots.held(slot_key):  # noqa: ASYNC110  (the server sets no event)
                await anyio.sleep(0.01)


@pytest.mark.parametrize("others", [NAMES, ("staging", None)], ids=str)
@pytest.mark.parametrize("make", BROKERS)
async def test_no_event_no_slot_and_no_disconnect_crosses_over(
    valkey: ValkeyProcess, make: Callable[[Redis], Broker], others: tuple[str | None, str | None]
) -> None:
    async with AsyncExitStack() as stack:
        one, client = await stack.enter_async_context(application(valkey, others[0], make))
        two, other = await stack.enter_async_context(application(valkey, others[1], make))
        # Both have the one slot of the same key.
        mine, theirs = await opened(stack, client), await opened(stack, other)
        await one.publish("news", "one")
        await two.publish("news", "two")
        assert (await mine.next_event(5)).data == "one"
        assert (await theirs.next_event(5)).data == "two"
        await one.disconnect(slot_key="k")
        assert await mine.wait_ended(5) == "revoked"
        await slot_free(valkey, "k" if others[0] is None else f"{others[0]}:k")
        mine = await opened(stack, client)
        await one.disconnect(channel="news")
        assert await mine.wait_ended(5) == "revoked"
        # What the other one was sent came in this order, had anything else been sent to it.
        await two.publish("news", "still here")
        assert (await theirs.next_event(5)).data == "still here"
        await two.disconnect(slot_key="k")
        assert await theirs.wait_ended(5) == "revoked"


@pytest.mark.parametrize("make", BROKERS)
async def test_two_processes_of_one_namespace_belong_together(
    valkey: ValkeyProcess, make: Callable[[Redis], Broker]
) -> None:
    async with AsyncExitStack() as stack:
        _, client = await stack.enter_async_context(application(valkey, "staging", make))
        there, other = await stack.enter_async_context(application(valkey, "staging", make))
        stream = await opened(stack, client)
        assert (await other.request("GET", "/")).status == 429
        await there.publish("news", "x")
        assert (await stream.next_event(5)).data == "x"
        await there.disconnect(slot_key="k")
        assert await stream.wait_ended(5) == "revoked"


async def test_a_client_goes_on_where_it_was_and_sees_plain_names(valkey: ValkeyProcess) -> None:
    async with AsyncExitStack() as stack:
        one, client = await stack.enter_async_context(
            application(valkey, "staging", RedisStreamsBroker, cap=5)
        )
        two, _ = await stack.enter_async_context(application(valkey, "production", RedisStreamsBroker))
        stream = await opened(stack, client)
        await one.publish("news", "first")
        await stream.next_event(5)
        id_ = stream.last_event_id
        await two.publish("news", "not yours")
        sent = await one.publish("news", "second")
        resumed = await stack.enter_async_context(client.open("/", last_event_id=id_))
        opening = await resumed.next_event(5, control=True)
        assert '"resumed":true' in opening.data
        assert (await resumed.next_event(5)).data == "second"
        unknown = await stack.enter_async_context(client.open("/", last_event_id="gibberish"))
        opening = await unknown.next_event(5, control=True)
        gap = await unknown.next_event(5, control=True)
        assert (gap.event, '"news"' in gap.data) == ("livepush.gap", True)
        with pytest.raises(PositionConflictError, match="'news' has gone on") as conflict:
            await one.publish("news", "third", expected_position="zzzz.1")
        assert conflict.value.channel == "news"
        assert conflict.value.last == Position.of_id(str(sent))
        assert one.statistics()["channels"] == 1


@pytest.mark.parametrize(
    "cap_of",
    [lambda redis, hooks: SlotCap(redis, cap=1, **hooks), lambda redis, hooks: MemorySlotCap(1, **hooks)],
    ids=["redis", "memory"],
)
async def test_the_application_sees_its_own_names_of_slots(
    valkey: ValkeyProcess, cap_of: Callable[[Redis, dict[str, Any]], SlotCap | MemorySlotCap]
) -> None:
    heard = list[str]()
    hooks = {
        "on_acquire": lambda key: heard.append(f"+{key}"),
        "on_release": lambda key: heard.append(f"-{key}"),
    }
    async with valkey.client() as redis:
        cap = cap_of(redis, hooks)
        push = LivePush(MemoryBroker(), public("c"), slots=cap, namespace="staging")
        service = SSEStreamService.of(push)
        async with push.lifespan():
            first = await service.open_stream(channel="c", slot_key="user:1")
            with pytest.raises(CapExceededError, match="'user:1'") as full:
                await service.open_stream(channel="c", slot_key="user:1")
            assert (full.value.slot_key, full.value.cap) == ("user:1", 1)
            # The cap itself has the name as it is on the server.
            held = cap.held("staging:user:1")
            assert (held if isinstance(held, int) else await held) == 1
            await first.body.aclose()
            await push.disconnect(slot_key="user:1")
    assert heard == ["+user:1", "-user:1"]


async def test_a_publisher_reaches_its_own_application_alone(valkey: ValkeyProcess) -> None:
    async with AsyncExitStack() as stack:
        streams = {}
        for name in (*NAMES, None):
            _, client = await stack.enter_async_context(application(valkey, name, RedisBroker))
            streams[name] = await opened(stack, client)

        @asynccontextmanager
        async def broker() -> AsyncIterator[RedisBroker]:
            async with valkey.client() as redis:
                yield RedisBroker(redis)

        def publish() -> None:
            for name in (*NAMES, None):
                with Publisher(broker, namespace=name) as publisher:
                    publisher.publish("news", f"for {name}")

        await anyio.to_thread.run_sync(publish)
        for name, stream in streams.items():
            assert (await stream.next_event(5)).data == f"for {name}"


async def test_so_does_the_command_line(valkey: ValkeyProcess) -> None:
    async with AsyncExitStack() as stack:
        _, client = await stack.enter_async_context(application(valkey, "staging", RedisBroker))
        _, other = await stack.enter_async_context(application(valkey, None, RedisBroker))
        mine, theirs = await opened(stack, client), await opened(stack, other)

        def publish(*arguments: str) -> str:
            done = run("publish", "news", *arguments, "--redis", valkey.url)
            assert done.returncode == 0, done.stderr
            return done.stdout

        out = await anyio.to_thread.run_sync(publish, "mine", "--namespace", "staging")
        assert "1 listener" in out
        await anyio.to_thread.run_sync(publish, "theirs")
        assert (await mine.next_event(5)).data == "mine"
        assert (await theirs.next_event(5)).data == "theirs"
        refused = await anyio.to_thread.run_sync(
            run, "publish", "news", "x", "--namespace", "a:b", "--redis", valkey.url
        )
        assert refused.returncode == 2
        assert "namespace" in refused.stderr


async def test_applications_that_share_a_broker_in_memory_are_kept_apart() -> None:
    broker, slots = MemoryBroker(), MemorySlotCap(1)

    def authorize(request: object) -> Grant:
        return Grant(channels="news", slot_key="k")

    async with AsyncExitStack() as stack:
        pushes, streams = [], []
        for name in (*NAMES, None):
            push = LivePush(broker, authorize, slots=slots, namespace=name, timing=Timing(linger=0))
            await stack.enter_async_context(push.lifespan())
            client = await stack.enter_async_context(Client(push))
            pushes.append(push)
            streams.append(await opened(stack, client))
        for number, push in enumerate(pushes):
            await push.publish("news", number)
        for number, stream in enumerate(streams):
            assert (await stream.next_event(5)).data == str(number)
        await pushes[0].disconnect(channel="news")
        assert await streams[0].wait_ended(5) == "revoked"
        for push, stream in list(zip(pushes, streams, strict=True))[1:]:
            await push.publish("news", "still here")
            assert (await stream.next_event(5)).data == "still here"


async def test_a_job_can_be_published_in_a_namespace() -> None:
    async def items() -> AsyncIterator[int]:
        for number in range(3):
            yield number

    broker = MemoryBroker()
    for name in NAMES:
        push = LivePush(broker, public("c"), namespace=name)
        async with push.lifespan():
            assert await push.publish_job("job", items())
            assert not await push.publish_job("job", items())


async def test_without_a_namespace_names_are_unchanged(valkey: ValkeyProcess) -> None:
    """What the predecessor and `redis-cli PUBLISH` use."""
    async with AsyncExitStack() as stack:
        _, client = await stack.enter_async_context(application(valkey, None, RedisBroker))
        stream = await opened(stack, client)
        async with valkey.client() as redis:
            await redis.publish("news", "plain")
            assert (await stream.next_event(5)).data == "plain"
        _, other = await stack.enter_async_context(application(valkey, "staging", RedisBroker))
        second = await opened(stack, other)
        async with valkey.client() as redis:
            await redis.publish("staging:news", "prefixed")
            assert (await second.next_event(5)).data == "prefixed"


@pytest.mark.parametrize("namespace", ["", "a:b", "a b", "ä", "a/b", "a\n", "{a}", "livepush.commands"])
def test_what_cannot_be_a_namespace_is_refused(namespace: str) -> None:
    for make in (
        lambda: LivePush(MemoryBroker(), public("c"), namespace=namespace),
        lambda: Publisher(MemoryBroker, namespace=namespace),
        lambda: SSEStreamService(MemoryBroker(), namespace=namespace),
    ):
        with pytest.raises(ValueError, match="letters, digits"):
            make()


def test_a_namespace_is_text() -> None:
    with pytest.raises(TypeError, match="str"):
        LivePush(MemoryBroker(), public("c"), namespace=1)  # type: ignore[arg-type]
