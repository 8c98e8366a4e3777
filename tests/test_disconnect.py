"""A client's going, heard without a task: at once, after a request body, while a send waits, by an error."""

import asyncio
import sys
from collections.abc import Callable
from typing import Any

import pytest

from livepush_asgi import EndReason, Grant, LivePush, MemoryBroker, MemorySlotCap, StreamRequest, public
from livepush_asgi.runtime.asgi import Message
from livepush_asgi.runtime.inline_send import can_step
from livepush_asgi.testing.exchange import http_scope

from .virtual_clock import VirtualClockLoop, let_pass


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    # On trio nothing is stepped.
    return "asyncio", {"loop_factory": VirtualClockLoop}


SCOPE = http_scope(
    "GET", "/", root_path="", spec_version="2.4", headers=(), query="", cookies={}, last_event_id=None
)
BODY: Message = {"type": "http.request", "body": b"nobody reads this", "more_body": True}
GONE: Message = {"type": "http.disconnect"}


class Server:
    """A server whose `receive` can be stepped: it waits for the next message, or the error to raise."""

    def __init__(self, *messages: Message | BaseException) -> None:
        self.messages = list(messages)
        self.came = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()
        self.sent: list[Message] = []
        self.broken: OSError | None = None
        self.cap = MemorySlotCap(1)

    def tell(self, message: Message | BaseException) -> None:
        self.messages.append(message)
        self.came.set()

    async def receive(self) -> Message:
        await asyncio.sleep(0)
        while not self.messages:
            self.came.clear()
            await self.came.wait()
        message = self.messages.pop(0)
        if isinstance(message, BaseException):
            raise message
        return message

    receive.livepush_inline = True  # type: ignore[attr-defined]

    async def send(self, message: Message) -> None:
        await self.gate.wait()
        if self.broken is not None:
            raise self.broken
        self.sent.append(message)

    def push(self) -> LivePush:
        def authorize(request: StreamRequest) -> Grant:
            return Grant(channels="c", slot_key="k")

        return LivePush(MemoryBroker(), authorize, slots=self.cap)


def endings(push: LivePush) -> dict[EndReason, int]:
    """Return how many streams have ended for each reason that there was."""
    return {EndReason(reason): count for reason, count in push.statistics()["ended"].items() if count}


async def ended(server: Server, do: Callable[[], object] = lambda: None) -> dict[EndReason, int]:
    """Open a stream, do something, and return how it has ended. Its slot is free then."""
    push = server.push()
    async with push.lifespan():
        stream = asyncio.create_task(push(SCOPE, server.receive, server.send))
        await let_pass(1)
        do()
        await asyncio.wait([stream], timeout=60)
        try:
            await stream
        finally:
            assert server.cap.held("k") == 0
        return endings(push)


@pytest.mark.parametrize("implementation", ["httptools_impl", "h11_impl"])
def test_the_receive_of_uvicorn_is_known(implementation: str) -> None:
    module = __import__(f"uvicorn.protocols.http.{implementation}", fromlist=["RequestResponseCycle"])
    assert can_step(module.RequestResponseCycle.receive.__get__(object()))


def test_another_one_is_not() -> None:
    async def receive() -> Message:
        return GONE

    assert not can_step(receive)


async def test_a_client_that_leaves_ends_its_stream() -> None:
    server = Server(BODY)
    assert await ended(server, lambda: server.tell(GONE)) == {EndReason.DISCONNECT: 1}
    assert [message["type"] for message in server.sent] == ["http.response.start", "http.response.body"]


async def test_a_request_body_is_passed_over() -> None:
    server = Server(*[BODY] * 50)
    push = server.push()
    async with push.lifespan():
        stream = asyncio.create_task(push(SCOPE, server.receive, server.send))
        await let_pass(1)
        assert server.messages == []
        assert push.statistics()["streams"] == 1
        server.tell(BODY)
        await let_pass(1)
        assert push.statistics()["streams"] == 1
        server.tell(GONE)
        await stream
        assert endings(push) == {EndReason.DISCONNECT: 1}


async def test_one_that_has_left_already_gets_no_stream() -> None:
    assert await ended(Server(GONE)) == {EndReason.DISCONNECT: 1}


async def test_one_that_leaves_while_a_send_waits_is_waited_for_no_more() -> None:
    server = Server()
    server.gate.clear()
    assert await ended(server, lambda: server.tell(GONE)) == {EndReason.DISCONNECT: 1}
    assert server.sent == []


@pytest.mark.parametrize("raises", [False, True], ids=["the send returns", "the send raises"])
@pytest.mark.parametrize(
    ("waited", "later", "reason"), [(20, 0.1, "slow"), (20, 5, "disconnect"), (5, 0.1, "disconnect")]
)
async def test_one_that_leaves_after_a_send_that_waited_long_was_slow(
    waited: float, later: float, reason: str, raises: bool
) -> None:
    """The kernel has given up, and the server lets the `send` go before `receive` tells."""
    server = Server()
    push = server.push()
    async with push.lifespan():
        stream = asyncio.create_task(push(SCOPE, server.receive, server.send))
        await let_pass(1)
        server.gate.clear()
        for number in range(3):
            await push.publish("c", number)
            await let_pass(0.1)
        await let_pass(waited)
        if raises and later < 1:
            server.broken = TimeoutError(110, "Connection timed out")
        server.gate.set()
        await let_pass(later)
        server.tell(GONE)
        await stream
        assert endings(push) == {EndReason(reason): 1}


async def test_an_error_of_receive_is_the_server_s_to_log() -> None:
    server = Server()
    with pytest.raises(ZeroDivisionError, match="in receive"):
        await ended(server, lambda: server.tell(ZeroDivisionError("in receive")))


async def test_a_wait_that_the_server_gives_up_is_a_client_that_has_left() -> None:
    server = Server()
    assert await ended(server, lambda: server.tell(asyncio.CancelledError())) == {EndReason.DISCONNECT: 1}


async def test_a_stream_that_is_cancelled_listens_no_more() -> None:
    server = Server()
    push = server.push()
    async with push.lifespan():
        stream = asyncio.create_task(push(SCOPE, server.receive, server.send))
        await let_pass(1)
        stream.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stream
        server.tell(GONE)
        await let_pass(1)
        assert server.messages == [GONE]
        assert endings(push) == {EndReason.DISCONNECT: 1}
        assert server.cap.held("k") == 0


async def test_a_stream_that_ends_by_itself_listens_no_more() -> None:
    server = Server()
    push = server.push()
    async with push.lifespan():
        stream = asyncio.create_task(push(SCOPE, server.receive, server.send))
        await let_pass(1)
        await push.disconnect(channel="c")
        await stream
        server.tell(GONE)
        await let_pass(1)
        assert server.messages == [GONE]
        assert endings(push) == {EndReason.REVOKED: 1}


@pytest.mark.skipif(sys.version_info < (3, 12), reason="tasks are eager from Python 3.12 on")
def test_a_client_that_an_eager_task_sees_go_cancels_nothing_afterwards() -> None:
    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        """Take it at once."""

    async def main() -> None:
        # Python 3.11, for which types are checked, has no such factory.
        asyncio.get_running_loop().set_task_factory(vars(asyncio)["eager_task_factory"])
        push = LivePush(MemoryBroker(), public("c"))
        async with push.lifespan():
            await push(SCOPE, receive, send)
            await asyncio.sleep(1)
            assert endings(push) == {EndReason.DISCONNECT: 1}

    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        runner.run(main())
