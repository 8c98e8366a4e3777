"""The connections under the streams: which are found, what is left alone. Cut cables: `test_cut_link.py`."""

import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import anyio
import pytest

from livepush_asgi import (
    EndReason,
    Grant,
    Limits,
    LivePush,
    MemoryBroker,
    MockBroker,
    SSEStreamService,
    Timing,
    public,
)
from livepush_asgi.runtime.asgi import Message
from livepush_asgi.runtime.tcp_timeout import Address, address_of
from livepush_asgi.testing.exchange import http_scope

from .virtual_clock import VirtualClockLoop, let_pass

TIMING = Timing(heartbeat_interval=15, send_timeout=30)
SCOPE = http_scope(
    "GET", "/", root_path="", spec_version="2.4", headers=(), query="", cookies={}, last_event_id=None
)
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has the option")


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualClockLoop}


@contextmanager
def accepted(family: socket.AddressFamily, listening_at: str, host: str) -> Iterator[socket.socket]:
    """Give a server's side of a connection."""
    with socket.socket(family) as listening:
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listening.bind((listening_at, 0))
        listening.listen()
        with socket.create_connection((host, listening.getsockname()[1])):
            connection, _ = listening.accept()
            with connection:
                yield connection


def limit_of(connection: socket.socket) -> float:
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) / 1000


class Server:
    """An idle client, of which nothing leads to the connection."""

    def __init__(self) -> None:
        self.gone = anyio.Event()

    async def receive(self) -> Message:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Take it."""


class Transport:
    """What `receive` of uvicorn is a method of."""

    def __init__(self, connection: socket.socket) -> None:
        self.transport = self
        self.gone = anyio.Event()
        self._connection = connection

    def get_extra_info(self, name: str) -> socket.socket:
        return self._connection

    async def receive(self) -> Message:
        await self.gone.wait()
        return {"type": "http.disconnect"}


async def limits_after(client: object, seconds: float, *connections: socket.socket) -> list[float]:
    """Have a client at this address stay for so long, and return the limits of these connections then."""
    push, server = LivePush(MemoryBroker(), public("c"), timing=TIMING), Server()
    async with push.lifespan(), anyio.create_task_group() as tasks:
        tasks.start_soon(push, {**SCOPE, "client": client}, server.receive, server.send)
        await let_pass(seconds)
        found = [limit_of(connection) for connection in connections]
        server.gone.set()
    return found


@on_linux
@pytest.mark.parametrize(
    ("family", "listening_at", "host"),
    [
        (socket.AF_INET, "127.0.0.1", "127.0.0.1"),
        (socket.AF_INET6, "::1", "::1"),
        (socket.AF_INET6, "::", "127.0.0.1"),
    ],
)
async def test_a_connection_is_found_by_its_address_before_its_first_heartbeat(
    family: socket.AddressFamily, listening_at: str, host: str
) -> None:
    with accepted(family, listening_at, host) as connection, accepted(family, listening_at, host) as other:
        address = list(connection.getpeername()[:2])
        assert await limits_after(address, 14, connection, other) == [30, 0]


@on_linux
async def test_one_among_a_thousand_open_files_is_found() -> None:
    with ExitStack() as opened:
        low = opened.enter_context(accepted(socket.AF_INET, "127.0.0.1", "127.0.0.1"))
        for _ in range(500):
            opened.enter_context(socket.socket(socket.AF_UNIX))
        connection = opened.enter_context(accepted(socket.AF_INET, "127.0.0.1", "127.0.0.1"))
        assert await limits_after(connection.getpeername(), 14, connection, low) == [30, 0]


@on_linux
async def test_the_address_of_nobody_s_connection_changes_nothing() -> None:
    with accepted(socket.AF_INET, "127.0.0.1", "127.0.0.1") as connection:
        address = ("203.0.113.9", connection.getpeername()[1])
        assert await limits_after(address, 14, connection) == [0]


@pytest.mark.parametrize(
    ("client", "address"),
    [
        (("192.0.2.1", 4711), ("192.0.2.1", 4711)),
        (["::ffff:192.0.2.1", 4711], ("192.0.2.1", 4711)),
        (("fe80::1%eth0", 4711), ("fe80::1", 4711)),
        # granian
        (("192.0.2.1", "4711"), ("192.0.2.1", 4711)),
        # uvicorn, of a forwarded address
        (("192.0.2.1", 0), None),
        (("192.0.2.1", ""), None),
        # a Unix socket
        (("/run/app.sock", None), None),
        ([], None),
        (None, None),
    ],
)
def test_servers_write_addresses_in_their_own_ways(client: object, address: Address | None) -> None:
    assert address_of(client) == address


class Protocol:
    """What uvicorn's `receive` is a method of, with a transport that cannot be told anything any more."""

    def __init__(self, error: Exception) -> None:
        self.transport = self
        self._error = error

    def get_extra_info(self, name: str) -> object:
        return self

    def getsockopt(self, *option: int) -> int:
        return 0

    def setsockopt(self, *option: int) -> None:
        raise self._error

    async def receive(self) -> Message:
        return {"type": "http.disconnect"}


@pytest.mark.parametrize("error", [OSError("closed"), ValueError("negative file descriptor")])
async def test_a_connection_that_is_closed_already_takes_no_time_limit(error: Exception) -> None:
    push = LivePush(MemoryBroker(), public("c"))
    protocol, server = Protocol(error), Server()
    async with push.lifespan():
        await push(SCOPE, protocol.receive, server.send)
        assert push.statistics()["ended"][EndReason.DISCONNECT] == 1


def any_push() -> LivePush:
    return LivePush(MemoryBroker(), public("c"), timing=TIMING)


@on_linux
@pytest.mark.parametrize("way", ["transport", "address"])
@pytest.mark.parametrize("own", [0, 77_000])
async def test_the_limit_is_taken_back_when_the_response_is_complete(way: str, own: int) -> None:
    push = any_push()
    with accepted(socket.AF_INET, "127.0.0.1", "127.0.0.1") as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, own)
        server = Transport(connection) if way == "transport" else Server()
        scope = SCOPE if way == "transport" else {**SCOPE, "client": connection.getpeername()}
        async with push.lifespan(), anyio.create_task_group() as tasks:
            for _ in range(2):
                # The connection is kept and carries another stream.
                tasks.start_soon(push, scope, server.receive, Server().send)
                await let_pass(14)
                assert limit_of(connection) == (own / 1000 or 30)
                await push.disconnect(channel="c")
                await let_pass(1)
                assert push.statistics()["streams"] == 0
                assert limit_of(connection) == own / 1000


@on_linux
@pytest.mark.parametrize("way", ["transport", "address"])
async def test_the_limit_stays_where_a_client_is_stuck(way: str) -> None:
    """So that the kernel soon forgets what the client does not take."""
    push = any_push()
    with accepted(socket.AF_INET, "127.0.0.1", "127.0.0.1") as connection:
        server = Transport(connection) if way == "transport" else Server()
        scope = SCOPE if way == "transport" else {**SCOPE, "client": connection.getpeername()}
        never = anyio.Event()

        async def send(message: Message) -> None:
            if b"stuck" in message.get("body", b""):
                await never.wait()

        async with push.lifespan(), anyio.create_task_group() as tasks:
            tasks.start_soon(push, scope, server.receive, send)
            await let_pass(14)
            await push.publish("c", "stuck")
            await let_pass(40)
            assert push.statistics()["ended"][EndReason.SLOW] == 1
            assert limit_of(connection) == 30


@on_linux
async def test_a_client_that_is_stuck_before_the_limit_is_set_gets_it_at_the_end() -> None:
    """Catches a connection whose data the kernel would send again for a quarter of an hour."""
    push = LivePush(MockBroker(), public("c"), timing=TIMING, limits=Limits(outbox_events=1))
    with accepted(socket.AF_INET, "127.0.0.1", "127.0.0.1") as connection:
        server, never = Transport(connection), anyio.Event()

        async def send(message: Message) -> None:
            if b"stuck" in message.get("body", b""):
                await never.wait()

        async with push.lifespan(), anyio.create_task_group() as tasks:
            tasks.start_soon(push, SCOPE, server.receive, send)
            await let_pass(1)
            for _ in range(3):
                await push.publish("c", "stuck")
                await let_pass(0.1)
            assert limit_of(connection) == 0
            await push.drain()
            await let_pass(0.1)
            assert push.statistics()["ended"][EndReason.SLOW] == 1
            assert limit_of(connection) == 30


@on_linux
async def test_a_connection_that_carries_several_streams_is_limited_until_the_last_one() -> None:
    push = LivePush(MemoryBroker(), lambda request: Grant(channels=request.query["c"]), timing=TIMING)
    with accepted(socket.AF_INET, "127.0.0.1", "127.0.0.1") as connection:
        scope = {**SCOPE, "client": connection.getpeername()}
        async with push.lifespan(), anyio.create_task_group() as tasks:
            for channel in ("a", "b"):
                server = Server()
                part = {**scope, "query_string": f"c={channel}".encode()}
                tasks.start_soon(push, part, server.receive, server.send)
            await let_pass(14)
            await push.disconnect(channel="a")
            await let_pass(1)
            assert limit_of(connection) == 30
            await push.disconnect(channel="b")
            await let_pass(1)
            assert limit_of(connection) == 0


@on_linux
@pytest.mark.parametrize("way", ["transport", "address"])
async def test_the_limit_is_taken_back_when_the_client_has_left_its_stream(way: str) -> None:
    """Over HTTP/2 its connection goes on."""
    push = any_push()
    with accepted(socket.AF_INET, "127.0.0.1", "127.0.0.1") as connection:
        server = Transport(connection) if way == "transport" else Server()
        scope = SCOPE if way == "transport" else {**SCOPE, "client": connection.getpeername()}
        async with push.lifespan(), anyio.create_task_group() as tasks:
            tasks.start_soon(push, scope, server.receive, Server().send)
            await let_pass(14)
            server.gone.set()
            await let_pass(1)
            assert push.statistics()["ended"][EndReason.DISCONNECT] == 1
            assert limit_of(connection) == 0


@on_linux
@pytest.mark.parametrize("ending", ["read to the end", "closed", "left to the collector", "stuck"])
async def test_the_body_of_a_route_takes_the_limit_back_unless_its_client_is_stuck(ending: str) -> None:
    push = any_push()
    service = SSEStreamService.of(push)
    with accepted(socket.AF_INET, "127.0.0.1", "127.0.0.1") as connection:
        async with push.lifespan(), anyio.create_task_group() as tasks:
            stream = await service.open_stream(channel="c", client=connection.getpeername())
            body = stream.body
            del stream

            async def read() -> None:
                async for _ in body:
                    pass

            if ending == "read to the end":
                tasks.start_soon(read)
            await let_pass(14)
            assert limit_of(connection) == 30
            if ending == "closed":
                await body.aclose()
            elif ending == "left to the collector":
                del body, read
            elif ending == "stuck":
                await let_pass(20)
                del body, read
            await push.disconnect(channel="c")
            await let_pass(1)
            assert push.statistics()["streams"] == 0
            assert limit_of(connection) == (30 if ending == "stuck" else 0)
