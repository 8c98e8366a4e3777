"""The component under every server: an event arrives at once, a client that has gone is noticed."""

import asyncio
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .servers import BY_NAME, SERVERS, Server, running
from .serving import Serving, WireStream
from .visit import Visit, reader


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module", params=SERVERS, ids=str)
def serving(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    server = request.param
    assert isinstance(server, Server)
    with running(server, tmp_path_factory.mktemp(server.name) / "log") as found:
        yield found


async def test_each_event_arrives_although_nothing_follows_it(serving: Serving) -> None:
    async with Visit(serving.port) as visit:
        first, second = await visit.streams(2)
        for data in ("1", "a little more", "x" * 100_000, "2"):
            await visit.publish(data)
            assert [(await stream.next_event()).data for stream in (first, second)] == [data, data]


@pytest.mark.parametrize("leave", [WireStream.close, WireStream.abort], ids=["closed", "reset"])
async def test_a_client_that_leaves_an_idle_stream_is_noticed(serving: Serving, leave: object) -> None:
    assert callable(leave)
    async with Visit(serving.port) as visit:
        before = await visit.until(lambda numbers: numbers.streams == 0)
        (stream,) = await visit.streams(1)
        leave(stream)
        after = await visit.until(lambda numbers: numbers.streams == 0)
        assert after.ended["disconnect"] == before.ended["disconnect"] + 1


async def test_a_client_that_is_stopped_is_noticed_by_what_it_does_not_take(
    serving: Serving, request: pytest.FixtureRequest
) -> None:
    """Its process stands still and its window is full: it sends neither an end nor a reset.

    It is slow, also if the kernel gives up before the component and the server tells of a disconnect.
    """
    async with Visit(serving.port) as visit:
        before = await visit.until(lambda numbers: numbers.streams == 0)
        with reader(serving.port) as client:
            client.send_signal(signal.SIGSTOP)
            async with asyncio.timeout(30):
                while (await visit.statistics()).streams:
                    await visit.publish("x" * 65536, times=8)
        after = await visit.statistics()
        # The `send` of daphne never waits.
        reason = "disconnect" if "daphne" in request.node.name else "slow"
        assert after.ended[reason] == before.ended[reason] + 1
        # It takes new ones as before.
        (stream,) = await visit.streams(1)
        await visit.publish("still here")
        assert (await stream.next_event()).data == "still here"


async def outlast_a_client(server: Server, log: Path) -> None:
    settings = {"SEND_TIMEOUT": "4", "HEARTBEAT": "1"}
    async with server.serve(log, environment=settings) as serving, Visit(serving.port) as visit:
        (client,) = await visit.streams(1)
        client.shrink()
        start, published = time.monotonic(), 0
        while (numbers := await visit.statistics()).streams:
            # The kernel and the server hold 3 MB, which come within a second.
            due = int(60 * (time.monotonic() - start))
            if due > published:
                await visit.publish("x" * 65536, times=due - published)
                published = due
        assert numbers.ended["slow"] == 1


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has the option")
async def test_a_client_that_the_kernel_gives_up_was_slow(tmp_path: Path) -> None:
    """Its window has shut before `send` waits, so the kernel is first: `send` ends before `receive` tells."""
    async with asyncio.TaskGroup() as tasks:
        for name in ("granian", "hypercorn-asyncio"):
            tasks.create_task(outlast_a_client(BY_NAME[name], tmp_path / name))


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("uvicorn-httptools-uvloop", b"yes"),
        ("uvicorn-h11-asyncio", b"yes"),
        ("gunicorn-uvicorn", b"yes"),
        ("granian", b"yes"),
        ("hypercorn-asyncio", b"no"),
    ],
)
async def test_the_send_of_some_servers_needs_no_task(name: str, answer: bytes, tmp_path: Path) -> None:
    server = BY_NAME[name]
    command = f"{server.command} {server.one}".replace("{app}", "tests.apps.steps:app")
    async with server.serve(tmp_path / "log", command=command) as serving:
        found = await serving.open("/")
        assert await found.read_body() == answer
        found.close()
