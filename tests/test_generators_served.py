"""Generators under real servers and in real frameworks: closed when the client leaves, stands still, or is
told that the process ends.
"""

import asyncio
import json
import signal
import socket
from pathlib import Path

import pytest

from .servers import BY_NAME, SERVERS, Server, interruptible
from .serving import Serving, WireStream
from .visit import BETWEEN_LOOKS, Visit, reader

# What a busy machine may need, in seconds. A generator of these tests takes 0.01 s to close.
PATIENCE = 30.0
KINDS = ("ticking", "silent", "endless")
UVICORN, DAPHNE = BY_NAME["uvicorn-httptools-uvloop"], BY_NAME["daphne"]
FRAMEWORKS = ("starlette", "middleware", "fastapi", "quart", "litestar", "django")

pytestmark = pytest.mark.real_time


def serve(server: Server, log: Path, route: str | None = None, options: str | None = None) -> Serving:
    command = f"{server.command} {server.one if options is None else options}"
    return server.serve(
        log,
        command=command.replace("{app}", "tests.apps.generators:app"),
        environment={} if route is None else {"ROUTE": route},
    )


async def counts(visit: Visit) -> dict[str, int]:
    answer = await visit.request("/generators")
    found: dict[str, int] = json.loads(await answer.read_body())
    answer.abort()
    return found


async def until_closed(visit: Visit, closed: int, within: float = PATIENCE) -> None:
    async with asyncio.timeout(within):
        while (found := await counts(visit))["closed"] < closed:  # noqa: ASYNC110
            await asyncio.sleep(BETWEEN_LOOKS)
    assert found["running"] == 0


async def leave_each_kind(visit: Visit) -> None:
    """Open a stream of each kind and leave it, by an end and by a reset."""
    closed = 0
    for leave in (WireStream.close, WireStream.abort):
        for kind in KINDS:
            stream = await visit.request(f"/events?kind={kind}")
            assert stream.status == 200
            assert stream.headers["content-type"] == "text/event-stream"
            assert (await stream.next_event()).data == "x" * 1000
            begun = asyncio.get_running_loop().time()
            leave(stream)
            closed += 1
            await until_closed(visit, closed)
            assert asyncio.get_running_loop().time() - begun < 1.5, kind


@pytest.mark.parametrize("server", SERVERS, ids=str)
async def test_a_generator_is_closed_when_its_client_leaves(server: Server, tmp_path: Path) -> None:
    async with serve(server, tmp_path / "log") as serving, Visit(serving.port) as visit:
        await leave_each_kind(visit)
        assert "Traceback" not in serving.log


@pytest.mark.parametrize("route", FRAMEWORKS)
async def test_a_generator_of_a_route_is_closed_when_its_client_leaves(route: str, tmp_path: Path) -> None:
    server = DAPHNE if route == "django" else UVICORN
    async with serve(server, tmp_path / "log", route) as serving, Visit(serving.port) as visit:
        await leave_each_kind(visit)
        stream = await visit.request("/events?kind=failing")
        await stream.next_event()
        await stream.read_to_end()
        # Litestar logs in a thread of its own.
        async with asyncio.timeout(PATIENCE):
            while "as it was told" not in serving.log:  # noqa: ASYNC110
                await asyncio.sleep(BETWEEN_LOOKS)
        assert serving.log.count("Traceback") == serving.log.count("ValueError: as it was told") == 1


async def test_a_post_with_a_body_is_answered_by_a_generator_too(tmp_path: Path) -> None:
    async with serve(UVICORN, tmp_path / "log", "fastapi") as serving, Visit(serving.port) as visit:
        for closed, kind in enumerate(KINDS, 1):
            body = json.dumps({"kind": kind}).encode()
            stream = await serving.open("/ask", method="POST", body=body, content_type="application/json")
            assert (await stream.next_event()).data == "x" * 1000
            stream.close()
            await until_closed(visit, closed)
        assert "Traceback" not in serving.log


async def test_a_generator_of_django_is_closed_under_uvicorn_too(tmp_path: Path) -> None:
    async with serve(UVICORN, tmp_path / "log", "django") as serving, Visit(serving.port) as visit:
        await leave_each_kind(visit)
        assert "Traceback" not in serving.log


@pytest.mark.parametrize("server", SERVERS, ids=str)
async def test_a_generator_waits_for_a_client_that_stands_still_and_is_closed(
    server: Server, tmp_path: Path
) -> None:
    async with serve(server, tmp_path / "log") as serving, Visit(serving.port) as visit:
        with reader(serving.port) as client:
            client.send_signal(signal.SIGSTOP)
            await until_closed(visit, 1)
        produced = (await counts(visit))["produced"]
        assert (await visit.statistics()).ended["slow"] + (await visit.statistics()).ended["disconnect"] == 1
        # What the kernel and the server hold, of a generator that would make more in a second. The `send` of
        # daphne never waits, so nothing holds a generator back there.
        assert produced < 20_000 or server is DAPHNE


# Daphne cuts its connections at a signal, so there a LivePush needs DrainPolicy(hold=True).
CASES = [(server, push) for server in SERVERS for push in (0, 1) if push or not server.hold]


@pytest.mark.parametrize(("server", "push"), CASES, ids=str)
async def test_sigterm_ends_the_streams_and_closes_the_generators(
    server: Server, push: int, tmp_path: Path
) -> None:
    # Some servers exit before they have sent all that an endless one has produced.
    kinds = KINDS if server.name.startswith("uvicorn") else ("ticking", "silent")
    with interruptible():
        async with serve(server, tmp_path / "log") as serving, Visit(serving.port) as visit:
            streams = [await visit.request(f"/events?kind={kind}&push={push}") for kind in kinds * 5]
            for stream in streams:
                await stream.next_event()
            serving.send_signal(signal.SIGTERM)
            await asyncio.gather(*(stream.read_to_end(timeout=PATIENCE) for stream in streams))
            assert await serving.ended(timeout=PATIENCE) in {0, -signal.SIGTERM}
            assert serving.log.count("a generator was closed") == len(streams)
            assert "Traceback" not in serving.log


async def test_a_thousand_quick_visits_leave_no_task_slot_or_generator(tmp_path: Path) -> None:
    async with serve(UVICORN, tmp_path / "log") as serving, Visit(serving.port) as visit:
        # The first one starts what the process keeps.
        (await visit.request("/events?kind=ticking")).abort()
        await until_closed(visit, 1)
        before = await counts(visit)
        for number in range(1000):
            stream = await visit.request(f"/events?kind={KINDS[number % 3]}")
            if number % 2:
                await stream.next_event()
            stream.abort()
        async with asyncio.timeout(PATIENCE):
            while (after := await counts(visit))["tasks"] > before["tasks"] or after["running"]:  # noqa: ASYNC110
                await asyncio.sleep(BETWEEN_LOOKS)
        assert after["streams"] == 0
        assert "Traceback" not in serving.log


async def test_a_generator_keeps_to_the_pace_of_a_slow_reader_and_memory_stays_flat(tmp_path: Path) -> None:
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.setblocking(False)
    async with serve(UVICORN, tmp_path / "log") as serving, Visit(serving.port) as visit:
        await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", serving.port))
        stream, writer = await asyncio.open_connection(sock=raw, limit=4096)
        writer.write(b"GET /events?kind=endless HTTP/1.1\r\nhost: slow\r\n\r\n")
        read, ahead, sizes = 0, list[int](), list[int]()
        for _ in range(100):
            read += len(await stream.readexactly(16 * 1024))
            found = await counts(visit)
            ahead.append(found["produced"] * 1000 - read)
            sizes.append(found["resident_kib"])
        writer.transport.abort()
        await until_closed(visit, 1)
    # What the kernel holds of one connection, and the buffer of the server.
    assert max(ahead) < 8 * 1024 * 1024, ahead
    assert max(sizes) - sizes[0] < 8 * 1024, sizes
