"""Sending without the stream's task: what goes at once, what has to wait, what fails."""

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from functools import wraps
from typing import Any

import anyio
import pytest
import uvicorn

from livepush_asgi import EndReason, Grant, LivePush, MemoryBroker, StreamRequest, Timing, public
from livepush_asgi.hub.channel import Channel, Coalescer
from livepush_asgi.hub.delivery import Batch, Delivery, LogBatch
from livepush_asgi.runtime.asgi import Message, Send
from livepush_asgi.runtime.event_loop import HAS_EAGER_TASKS
from livepush_asgi.runtime.inline_send import TESTED_UVICORN, can_step
from livepush_asgi.testing import Client, EventStreamParser
from livepush_asgi.testing.exchange import http_scope
from livepush_asgi.wire.cursor import Position
from livepush_asgi.wire.reasons import GapReason

from .around import behind_a_middleware
from .virtual_clock import VirtualClockLoop, let_pass


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    # On trio nothing is stepped.
    return "asyncio", {"loop_factory": VirtualClockLoop}


SCOPE = http_scope(
    "GET", "/", root_path="", spec_version="2.4", headers=(), query="", cookies={}, last_event_id=None
)


class Server:
    """A server whose `send` can be stepped. It waits where `gate` is shut, and raises `error`."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.entered = 0
        self.gate = anyio.Event()
        self.gate.set()
        self.error: BaseException | None = None
        self.gone = anyio.Event()

    async def receive(self) -> Message:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.entered += 1
        if not self.gate.is_set():
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        self.sent.append(message)

    send.livepush_inline = True  # type: ignore[attr-defined]

    @property
    def data(self) -> list[str]:
        """The data of the messages that came, in order."""
        events = EventStreamParser().feed(b"".join(message.get("body", b"") for message in self.sent))
        return [event.data for event in events if event.event == "message"]


class Wrapped(Server):
    """A server behind a middleware whose `send` needs a task, and the context of its stream."""

    def __init__(self) -> None:
        super().__init__()
        self.tasks: list[asyncio.Task[Any] | None] = []

    async def send(self, message: Message) -> None:
        self.tasks.append(asyncio.current_task())
        with anyio.fail_after(100):
            await super().send(message)


def test_only_a_send_that_is_known_to_allow_it_is_stepped() -> None:
    async def plain(message: Message) -> None:
        """A middleware's, perhaps."""

    server = Server()
    assert can_step(server.send)
    assert not can_step(plain)


@pytest.mark.parametrize("implementation", ["httptools_impl", "h11_impl"])
@pytest.mark.parametrize("own", [False, True])
def test_what_is_wrapped_around_one_is_not_although_it_has_its_name(implementation: str, own: bool) -> None:
    module = __import__(f"uvicorn.protocols.http.{implementation}", fromlist=["RequestResponseCycle"])
    send: Send = Server().send if own else module.RequestResponseCycle.send.__get__(object())

    @wraps(send)
    async def in_time(message: Message) -> None:
        # Outside of a task it raises.
        async with asyncio.timeout(10):
            await send(message)

    assert can_step(send)
    assert not can_step(in_time)
    del in_time.__wrapped__
    assert own or not can_step(in_time)


@pytest.mark.parametrize("implementation", ["httptools_impl", "h11_impl"])
def test_the_send_of_uvicorn_is_known(implementation: str) -> None:
    module = __import__(f"uvicorn.protocols.http.{implementation}", fromlist=["RequestResponseCycle"])
    send: Callable[..., object] = module.RequestResponseCycle.send
    bound: Send = send.__get__(object())
    assert can_step(bound)


@pytest.fixture(params=["known", "in an eager task"])
def server(request: pytest.FixtureRequest) -> Server:
    """A server whose `send` is known, or stands behind a middleware that works in a task only."""
    return Server() if request.param == "known" else Wrapped()


async def test_what_does_not_wait_is_sent_in_the_turn_of_its_publishing(server: Server) -> None:
    # On Python 3.11 the stream's task sends what is not known, in the next turn.
    at_once = not isinstance(server, Wrapped) or HAS_EAGER_TASKS
    push = LivePush(MemoryBroker(), public("c"))
    async with push.lifespan(), anyio.create_task_group() as tasks:
        tasks.start_soon(push, SCOPE, server.receive, server.send)
        await anyio.wait_all_tasks_blocked()
        before = len(server.sent)
        for number in range(3):
            await push.publish("c", number)
        await anyio.lowlevel.checkpoint()
        assert len(server.sent) == before + at_once
        await anyio.wait_all_tasks_blocked()
        assert len(server.sent) == before + 1
        assert server.data == ["0", "1", "2"]
        server.gone.set()
    assert push.statistics()["ended"][EndReason.DISCONNECT] == 1


async def test_a_heartbeat_goes_out_when_it_is_due_and_so_does_what_follows(server: Server) -> None:
    push = LivePush(MemoryBroker(), public("c"), timing=Timing(heartbeat_interval=15))
    async with push.lifespan(), anyio.create_task_group() as tasks:
        tasks.start_soon(push, SCOPE, server.receive, server.send)
        await let_pass(14)
        before = len(server.sent)
        await let_pass(2)
        await push.publish("c", "early")
        await let_pass(14)
        assert len(server.sent) == before + 2
        await let_pass(2)
        assert [message["body"] for message in server.sent[before:][::2]] == [b":\n", b":\n"]
        assert server.data == ["early"]
        server.gone.set()


async def test_a_heartbeat_that_has_to_wait_is_finished_before_what_follows(server: Server) -> None:
    push = LivePush(MemoryBroker(), public("c"), timing=Timing(heartbeat_interval=15))
    async with push.lifespan(), anyio.create_task_group() as tasks:
        tasks.start_soon(push, SCOPE, server.receive, server.send)
        await let_pass(14)
        before, server.gate = len(server.sent), anyio.Event()
        await let_pass(2)
        await push.publish("c", "later")
        await let_pass(20)
        assert len(server.sent) == before
        server.gate.set()
        await let_pass(1)
        assert server.sent[before]["body"] == b":\n"
        assert server.data == ["later"]
        server.gone.set()


async def test_what_has_to_wait_is_finished_by_the_task_and_nothing_overtakes_it(server: Server) -> None:
    push = LivePush(MemoryBroker(), public("c"))
    async with push.lifespan(), anyio.create_task_group() as tasks:
        tasks.start_soon(push, SCOPE, server.receive, server.send)
        await anyio.wait_all_tasks_blocked()
        server.gate = anyio.Event()
        for number in range(5):
            await push.publish("c", number)
            await anyio.wait_all_tasks_blocked()
        assert server.data == []
        server.gate.set()
        await anyio.wait_all_tasks_blocked()
        assert server.data == ["0", "1", "2", "3", "4"]
        await push.publish("c", 5)
        await anyio.wait_all_tasks_blocked()
        assert server.data[-1] == "5"
        server.gone.set()


async def test_what_waits_too_long_ends_the_stream_as_slow(server: Server) -> None:
    push = LivePush(MemoryBroker(), public("c"), timing=Timing(send_timeout=5))
    async with push.lifespan(), anyio.create_task_group() as tasks:
        tasks.start_soon(push, SCOPE, server.receive, server.send)
        await anyio.wait_all_tasks_blocked()
        server.gate = anyio.Event()
        await push.publish("c", "never taken")
        await let_pass(6)
        assert push.statistics()["ended"][EndReason.SLOW] == 1
        assert push.statistics()["streams"] == 0
    assert server.data == []


@pytest.mark.parametrize(
    ("error", "reason"), [(OSError("gone"), EndReason.DISCONNECT), (ValueError("why"), EndReason.ERROR)]
)
async def test_what_fails_ends_the_stream(server: Server, error: Exception, reason: EndReason) -> None:
    push = LivePush(MemoryBroker(), public("c"))
    raised: list[Exception] = []

    async def serve() -> None:
        try:
            await push(SCOPE, server.receive, server.send)
        except Exception as failure:
            raised.append(failure)

    async with push.lifespan(), anyio.create_task_group() as tasks:
        tasks.start_soon(serve)
        await anyio.wait_all_tasks_blocked()
        server.error = error
        await push.publish("c", "x")
        await anyio.wait_all_tasks_blocked()
        assert push.statistics()["ended"][reason] == 1
        assert push.statistics()["streams"] == 0
    assert raised == ([] if reason is EndReason.DISCONNECT else [error])


@pytest.mark.parametrize("way", ["direct", "behind a middleware"])
async def test_streams_on_several_channels_get_events_in_the_order_of_publishing(way: str) -> None:
    push = LivePush(MemoryBroker(), public("a", "b"))
    app = push if way == "direct" else behind_a_middleware(push)
    async with push.lifespan(), Client(app) as client, client.open("/") as stream:
        await stream.next_event(control=True)
        for number in range(10):
            await push.publish("ab"[number % 2], number)
        assert [event.data for event in await stream.events(10)] == [str(n) for n in range(10)]


user = ContextVar("user", default="nobody")


async def test_a_send_runs_in_the_context_that_its_stream_started_its_response_with() -> None:
    push, server = LivePush(MemoryBroker(), public("c")), Server()
    seen: list[tuple[str, bool]] = []

    def send(message: Message) -> Awaitable[None]:
        # A plain function, as the `send` of granian: calling it is a part of sending already.
        seen.append((user.get(), asyncio.current_task() is not None))
        if message["type"] == "http.response.start":
            user.set("ada")
        return server.send(message)

    async with push.lifespan(), anyio.create_task_group() as tasks:
        tasks.start_soon(push, SCOPE, server.receive, send)
        await anyio.wait_all_tasks_blocked()
        user.set("a publisher")
        await push.publish("c", "x")
        await anyio.wait_all_tasks_blocked()
        server.gate = anyio.Event()
        await push.publish("c", "waits")
        await anyio.wait_all_tasks_blocked()
        server.gate.set()
        await anyio.wait_all_tasks_blocked()
        await push.publish("c", "y")
        await anyio.wait_all_tasks_blocked()
        server.gone.set()
    assert server.data == ["x", "waits", "y"]
    assert seen == [("nobody", True), *[("ada", True)] * 4]


async def test_a_send_that_publishes_is_not_entered_again() -> None:
    push = LivePush(MemoryBroker(), public("c"), timing=Timing(heartbeat_interval=15))
    server, sending, nested = Server(), [False], [False]

    async def send(message: Message) -> None:
        nested[0] |= sending[0]
        sending[0] = True
        if message.get("body") == b":\n" and "pulse" not in server.data:
            await push.publish("c", "pulse")
            # It delivers what waits at once.
            await push.disconnect(slot_key="nobody")
            await anyio.sleep(1)
        await server.send(message)
        sending[0] = False

    async with push.lifespan(), anyio.create_task_group() as tasks:
        await push.disconnect(slot_key="nobody")
        tasks.start_soon(push, SCOPE, server.receive, send)
        await let_pass(15.5)
        await push.publish("c", "after")
        await let_pass(3)
        server.gone.set()
    assert server.data == ["pulse", "after"]
    assert nested == [False]


async def test_a_stream_may_receive_while_it_is_attached_to_its_channels() -> None:
    def authorize(request: StreamRequest) -> Grant:
        return Grant(channels=request.query["channels"].split(","))

    def scope(channels: str) -> dict[str, Any]:
        return {**SCOPE, "query_string": f"channels={channels}".encode()}

    push = LivePush(MemoryBroker(), authorize)
    news, receipts, other, both = Server(), Server(), Server(), Server()

    async def send(message: Message) -> None:
        if b"data: hello" in message.get("body", b""):
            await push.publish("receipts", "one")
        await news.send(message)

    async with push.lifespan(), anyio.create_task_group() as tasks:
        for channels, server, own_send in (
            ("news", news, send),
            ("receipts", receipts, receipts.send),
            ("other", other, other.send),
        ):
            tasks.start_soon(push, scope(channels), server.receive, own_send)
        await anyio.wait_all_tasks_blocked()
        # Opening the next stream delivers this, which publishes to a channel of that stream.
        await push.publish("news", "hello")
        tasks.start_soon(push, scope("receipts,other"), both.receive, both.send)
        await anyio.wait_all_tasks_blocked()
        await push.publish("receipts", "two")
        await anyio.wait_all_tasks_blocked()
        assert receipts.data == ["one", "two"]
        assert both.data[-1:] == ["two"]
        for server in (news, receipts, other, both):
            server.gone.set()


async def test_the_application_ends_after_a_send_that_was_waiting() -> None:
    push, server = LivePush(MemoryBroker(), public("c")), Server()
    begun, ended = list[Message](), list[Message]()

    async def send(message: Message) -> None:
        begun.append(message)
        try:
            await server.send(message)
        finally:
            if not server.gate.is_set():
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(1)
            ended.append(message)

    async def application() -> None:
        await push(SCOPE, server.receive, send)

    async with push.lifespan():
        serving = asyncio.create_task(application())
        await let_pass(1)
        server.gate = anyio.Event()
        await push.publish("c", "x")
        asyncio.get_running_loop().call_soon(serving.cancel)
        await asyncio.wait([serving])
        assert ended == begun


async def test_an_awaitable_that_is_no_coroutine_can_be_sent() -> None:
    push, server = LivePush(MemoryBroker(), public("c")), Wrapped()

    def send(message: Message) -> Awaitable[None]:
        # As the `send` of granian.
        return asyncio.ensure_future(server.send(message))

    async with push.lifespan(), anyio.create_task_group() as tasks:
        tasks.start_soon(push, SCOPE, server.receive, send)
        await anyio.wait_all_tasks_blocked()
        for number in range(3):
            await push.publish("c", number)
            await anyio.wait_all_tasks_blocked()
        server.gone.set()
    assert server.data == ["0", "1", "2"]


async def test_a_send_that_waits_is_stopped_with_its_stream(server: Server) -> None:
    push = LivePush(MemoryBroker(), public("c"))
    async with push.lifespan(), anyio.create_task_group() as tasks:
        tasks.start_soon(push, SCOPE, server.receive, server.send)
        await anyio.wait_all_tasks_blocked()
        server.gate = anyio.Event()
        await push.publish("c", "x")
        # The client leaves before the stream's task has taken the `send` over, or just after it.
        server.gone.set()
        await anyio.wait_all_tasks_blocked()
        assert push.statistics()["ended"][EndReason.DISCONNECT] == 1
        server.gate.set()
    assert server.data == []


async def test_it_can_be_switched_off() -> None:
    server, push = Server(), LivePush(MemoryBroker(), public("c"), inline_send=False)
    senders = set[asyncio.Task[Any] | None]()

    async def send(message: Message) -> None:
        senders.add(asyncio.current_task())
        await server.send(message)

    async def receive() -> Message:
        assert asyncio.current_task() is not None
        return await server.receive()

    send.livepush_inline = receive.livepush_inline = True  # type: ignore[attr-defined]
    async with push.lifespan():
        stream = asyncio.create_task(push(SCOPE, receive, send))
        await let_pass(1)
        for number in range(3):
            await push.publish("c", number)
            await let_pass(20)
        assert server.data == ["0", "1", "2"]
        server.gone.set()
        await stream
    assert senders == {stream}


# What a version of uvicorn is taken for, before any function of it was seen.
VERSIONED = """
import logging, sys
import uvicorn
from uvicorn.protocols.http.h11_impl import RequestResponseCycle
from livepush_asgi.runtime.inline_send import can_step
logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stdout)
uvicorn.__version__ = sys.argv[1]
for _ in range(2):
    print(can_step(RequestResponseCycle.send))
"""


@pytest.mark.parametrize(
    ("version", "applies"),
    [
        (uvicorn.__version__, True),
        ("{}.{}.9".format(*TESTED_UVICORN[0]), True),
        ("{}.{}.9.dev1".format(*TESTED_UVICORN[1]), True),
        ("0.33.0", False),
        (f"{TESTED_UVICORN[1][0]}.{TESTED_UVICORN[1][1] + 1}.0", False),
        ("1.0", False),
        ("main", False),
        ("", False),
    ],
)
def test_it_applies_to_the_versions_that_were_tested(version: str, applies: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", VERSIONED, version], capture_output=True, text=True, check=True, timeout=60
    )
    lines = done.stdout.splitlines()
    assert [line for line in lines if line in ("True", "False")] == [str(applies)] * 2
    # Said once, and only where something is to be said.
    assert len(lines) == 2 + (not applies)


async def test_a_send_that_is_cancelled_ends_its_stream_and_nobody_else_misses_anything() -> None:
    servers, push = [Server() for _ in range(3)], LivePush(MemoryBroker(), public("c"))
    async with push.lifespan(), anyio.create_task_group() as tasks:
        for server in servers:
            tasks.start_soon(push, SCOPE, server.receive, server.send)
        await let_pass(1)
        servers[0].error = asyncio.CancelledError()
        for number in range(3):
            await push.publish("c", number)
            await let_pass(1)
        assert [server.data for server in servers[1:]] == [["0", "1", "2"]] * 2
        assert push.statistics()["streams"] == 2
        assert push.statistics()["ended"][EndReason.DISCONNECT] == 1
        for server in servers[1:]:
            server.gone.set()


class Ear:
    """A listener that calls `told` with each batch, and hears of nothing else."""

    def __init__(self, told: Callable[[Batch], object], *, several: bool = False) -> None:
        self.multi_channel = several
        self.told = told
        self.heard: list[bytes] = []

    def receive(self, batch: Batch, /) -> None:
        self.told(batch)
        self.heard += [delivery.block for delivery in batch.deliveries]

    def reads_log(self, channel: str, /) -> bool:
        return False

    def gap(self, channel: str, reason: GapReason, position: Position | None = None, /) -> None:
        raise AssertionError("no event is missing")

    def subscribed(self, channel: str, /) -> None:
        raise AssertionError("the coalescer subscribes nothing")


def two_channels(coalescer: Coalescer, ears: Sequence[Ear]) -> tuple[Channel, Channel]:
    one, two = (Channel(name, MemoryBroker(), coalescer, lambda channel: None) for name in ("one", "two"))
    for ear in ears:
        one.add(ear)
        two.add(ear)
    return one, two


@pytest.mark.parametrize("several", [False, True])
def test_a_listener_that_raises_keeps_nothing_from_the_others(several: bool) -> None:
    def ear(error: BaseException | None) -> Ear:
        def told(batch: Batch) -> None:
            if error is not None:
                raise error

        return Ear(told, several=several)

    ears = [ear(KeyboardInterrupt("first")), ear(None), ear(ValueError("second")), ear(None)]
    coalescer = Coalescer(lambda function: None, lambda: 0.0)
    one, two = two_channels(coalescer, ears)
    coalescer.add(one, Delivery("one", b"1"))
    coalescer.add(two, Delivery("two", b"2"))
    with pytest.raises(KeyboardInterrupt, match="first"):
        coalescer.flush()
    assert [ear.heard for ear in ears] == [[], [b"1", b"2"], [], [b"1", b"2"]]


def test_a_large_batch_that_a_delivery_brings_comes_at_the_end_of_the_turn() -> None:
    """Catches a batch that waits for the next event: while one is delivered, no other overtakes it."""
    scheduled: list[Callable[[], object]] = []
    heard: list[int] = []
    coalescer = Coalescer(scheduled.append, lambda: 0.0)

    def told(batch: Batch) -> None:
        heard.append(batch.count)
        if len(heard) == 1:
            coalescer.add_batch(two, LogBatch("two", Position("epoch", 0), [b"event"] * 300))

    one, two = two_channels(coalescer, [Ear(told)])
    coalescer.add(one, Delivery("one", b"1"))
    while scheduled:
        scheduled.pop()()
    assert heard == [1, 300]
