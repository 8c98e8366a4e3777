"""The end of a server's process with streams open: each client is told, and when to come back."""

import asyncio
import json
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from .servers import BY_NAME, SERVERS, Server, interruptible, send_to_all
from .serving import Serving, WireStream
from .valkey import ValkeyProcess
from .visit import Visit, reader

# What a busy machine may need to open, end and exit, in seconds.
PATIENCE = 60.0
STREAMS = 200

pytestmark = pytest.mark.real_time


@pytest.fixture(autouse=True)
def obedient() -> Iterator[None]:
    with interruptible():
        yield


async def read_to_the_end(streams: Sequence[WireStream]) -> None:
    await asyncio.gather(*(stream.read_to_end(timeout=PATIENCE) for stream in streams))


def assert_told(streams: Sequence[WireStream]) -> None:
    """Assert that the last that each client got is why, and its own time to come back."""
    closing = [stream.events[-1] for stream in streams]
    assert {event.event for event in closing} == {"livepush.close"}
    assert {json.loads(event.data)["reason"] for event in closing} == {"drain"}
    assert len({event.retry for event in closing}) > len(streams) // 2


def assert_spread(streams: Sequence[WireStream]) -> None:
    """Assert that clients that were cut know a time to come back of their own, from when they came."""
    opening = [stream.events[0] for stream in streams]
    assert {event.event for event in opening} == {"livepush.open"}
    assert len({event.retry for event in opening}) > len(streams) // 2


async def exit_status(serving: Serving) -> int:
    return await serving.ended(timeout=PATIENCE)


@pytest.mark.parametrize("server", SERVERS, ids=str)
async def test_sigterm_ends_200_streams_and_the_process(server: Server, tmp_path: Path) -> None:
    async with server.serve(tmp_path / "log") as serving, Visit(serving.port) as visit:
        streams = await visit.streams(STREAMS)
        serving.send_signal(signal.SIGTERM)
        await read_to_the_end(streams)
        # Some servers end with the status 0, some by the signal, once they are done.
        assert await exit_status(serving) in {0, -signal.SIGTERM}
        assert_told(streams)
        assert "Traceback" not in serving.log


@pytest.mark.parametrize("server", SERVERS, ids=str)
async def test_ctrl_c_ends_200_streams_and_the_process(server: Server, tmp_path: Path) -> None:
    async with server.serve(tmp_path / "log") as serving, Visit(serving.port) as visit:
        streams = await visit.streams(STREAMS)
        # As a terminal does it: to every process in the foreground.
        send_to_all(serving, signal.SIGINT)
        await read_to_the_end(streams)
        await exit_status(serving)
        if server.cuts_at_ctrl_c:
            assert_spread(streams)
        else:
            assert_told(streams)


async def streams_in_both(visit: Visit) -> list[WireStream]:
    """Open streams until both workers have some."""
    streams, seen = list[WireStream](), set[int]()
    async with asyncio.timeout(PATIENCE):
        while len(seen) < 2:
            streams += await visit.streams(10)
            for _ in range(10):
                numbers = await visit.statistics()
                if numbers.streams:
                    seen.add(numbers.pid)
    return streams


async def publish_to_all(visit: Visit, streams: Sequence[WireStream], *, shared: bool) -> None:
    """Publish until each stream has it: once, if the workers share a broker, or in each worker."""
    reading = [asyncio.create_task(stream.next_event(timeout=PATIENCE)) for stream in streams]
    await visit.publish("to both")
    while not shared and not all(task.done() for task in reading):
        await visit.publish("to both")
    assert {event.data for event in await asyncio.gather(*reading)} == {"to both"}


@pytest.mark.parametrize("server", [server for server in SERVERS if server.two], ids=str)
async def test_two_workers_deliver_to_all_and_both_end_theirs(
    server: Server, tmp_path: Path, valkey: ValkeyProcess
) -> None:
    # The adapters for Redis are for asyncio: on trio each worker has a broker of its own.
    shared = server.name != "hypercorn-trio"
    environment = {"REDIS_URL": valkey.url} if shared else {}
    serving = server.serve(tmp_path / "log", options=server.two, environment=environment)
    async with serving, Visit(serving.port) as visit:
        streams = await streams_in_both(visit)
        await publish_to_all(visit, streams, shared=shared)
        if server.keeps_signals_from_workers:
            send_to_all(serving, signal.SIGTERM)
        else:
            serving.send_signal(signal.SIGTERM)
        await read_to_the_end(streams)
        await exit_status(serving)
        assert_told(streams)
        assert "Traceback" not in serving.log


async def test_hypercorn_alone_told_tells_no_stream_of_its_workers(tmp_path: Path) -> None:
    """Its workers are told to stop in a way that no application can see.

    They cut their streams after `--graceful-timeout`; but first they wait for what `Server.wait_closed` of
    asyncio waits for, and that is, since Python 3.12.1, the end of every connection.
    """
    server = BY_NAME["hypercorn-asyncio"]
    serving = server.serve(
        tmp_path / "log", options="-w 1 --graceful-timeout 1", environment={"LIFETIME": "5"}
    )
    async with serving, Visit(serving.port) as visit:
        streams = await visit.streams(20)
        serving.send_signal(signal.SIGTERM)
        await read_to_the_end(streams)
        await exit_status(serving)
        last = {stream.events[-1].event for stream in streams}
        assert last == ({"livepush.close"} if sys.version_info >= (3, 12, 1) else {"livepush.open"})
        assert_spread(streams)


async def end_with_a_stopped_client(server: Server, folder: Path) -> None:
    serving = server.serve(folder / server.name, options=server.bound)
    async with serving, Visit(serving.port) as visit:
        with reader(serving.port) as client:
            client.send_signal(signal.SIGSTOP)
            async with asyncio.timeout(PATIENCE):
                while (await visit.statistics()).streams:
                    await visit.publish("x" * 65536, times=8)
            serving.send_signal(signal.SIGTERM)
            await exit_status(serving)


async def test_a_client_that_takes_nothing_holds_no_process_with_a_bound(tmp_path: Path) -> None:
    """Its stream is over, but most servers wait for what they still have to send, and some for ever."""
    async with asyncio.TaskGroup() as tasks:
        for server in SERVERS:
            tasks.create_task(end_with_a_stopped_client(server, tmp_path))
