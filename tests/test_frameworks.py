"""Five frameworks (and none) on real uvicorn and real Valkey, each as it is deployed: the stream as an
application of its own, and inside a route.
"""

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from redis import Redis

from .serving import REPOSITORY, Serving, WireStream, uvicorn
from .valkey import ValkeyProcess

# Starlette redirects from where it mounts something to the same with a slash.
FRAMEWORKS = {
    "starlette_app": "/events/",
    "fastapi_app": "/events/",
    "django_app": "/events",
    "quart_app": "/events",
    "litestar_app": "/events",
}
CASES = [(name, path) for name, mounted in FRAMEWORKS.items() for path in (mounted, "/route")]
CASES.append(("plain_asgi", "/events"))

pytestmark = [pytest.mark.real_time, pytest.mark.slow]


@asynccontextmanager
async def served(name: str, valkey: ValkeyProcess, log: Path, *options: str) -> AsyncIterator[Serving]:
    environment = {"LIVEPUSH_REDIS": valkey.url}
    async with uvicorn(
        f"{name}:app", log, "--app-dir", "examples", *options, environment=environment
    ) as server:
        yield server


async def opened(server: Serving, path: str, key: str = "k") -> WireStream:
    stream = await server.open(f"{path}?key={key}&token=let-me-in")
    assert stream.status == 200
    assert stream.headers["content-type"] == "text/event-stream"
    await stream.next_event("livepush.open")
    return stream


def publish_from_another_process(valkey: ValkeyProcess, data: str) -> None:
    command = [sys.executable, "examples/publisher.py", "news", data]
    environment = {"LIVEPUSH_REDIS": valkey.url, "PYTHONPATH": str(REPOSITORY)}
    subprocess.run(command, cwd=REPOSITORY, env=environment, check=True)


async def freed(valkey: ValkeyProcess, key: str, left: int) -> float:
    """Return how long it took until so many slots of the key were left."""
    start = time.monotonic()
    with Redis.from_url(valkey.url) as redis:
        async with asyncio.timeout(5):
            while await asyncio.to_thread(redis.zcard, f"livepush:slot:{{{key}}}") != left:
                pass
    return time.monotonic() - start


@pytest.mark.parametrize(("name", "path"), CASES)
async def test_streams_get_events_free_their_slots_and_keep_to_the_cap(
    name: str, path: str, valkey: ValkeyProcess, tmp_path: Path
) -> None:
    async with served(name, valkey, tmp_path / "log") as server:
        streams = [await opened(server, path) for _ in range(2)]
        await asyncio.to_thread(publish_from_another_process, valkey, "from far away")
        events = [await stream.next_event() for stream in streams]
        assert [event.data for event in events] == ["from far away"] * 2

        streams[0].close()
        assert await freed(valkey, "k", 1) < 1
        streams[1].abort()
        assert await freed(valkey, "k", 0) < 1

        streams = [await opened(server, path) for _ in range(20)]
        refused = await server.open(f"{path}?key=k&token=let-me-in")
        assert refused.headers["retry-after"] == "5"
        assert json.loads((await refused.next_event("livepush.refused")).data)["reason"] == "cap"
        await opened(server, path, key="another")

        server.send_signal(signal.SIGTERM)
        await asyncio.gather(*(stream.read_to_end() for stream in streams))
        assert {json.loads(stream.events[-1].data)["reason"] for stream in streams} == {"drain"}
        await server.ended(timeout=10)
    assert "Traceback" not in server.log
    assert "never awaited" not in server.log


@pytest.mark.parametrize("name", FRAMEWORKS)
async def test_a_post_publishes(name: str, valkey: ValkeyProcess, tmp_path: Path) -> None:
    async with served(name, valkey, tmp_path / "log") as server:
        stream = await opened(server, FRAMEWORKS[name])
        page = await server.open("/")
        assert page.status == 200
        answer = await server.open("/publish", method="POST", body=b"hello", content_type="text/plain")
        assert answer.status == 204
        assert (await stream.next_event()).data == "hello"


@pytest.mark.parametrize(("name", "path"), CASES)
async def test_200_simultaneous_connects_over_four_workers_give_exactly_twenty_streams(
    name: str, path: str, valkey: ValkeyProcess, tmp_path: Path
) -> None:
    async with served(name, valkey, tmp_path / "log", "--workers", "4") as server:
        answers = await asyncio.gather(*(server.open(f"{path}?key=k&token=let-me-in") for _ in range(200)))
        first = [await answer.next_event(anything=True) for answer in answers]
        assert Counter(event.event for event in first) == {"livepush.open": 20, "livepush.refused": 180}


@pytest.mark.parametrize(("name", "path"), CASES)
async def test_clients_that_leave_while_their_streams_open_leave_no_slot(
    name: str, path: str, valkey: ValkeyProcess, tmp_path: Path
) -> None:
    """Each is gone at another point of the way: before it is read, in the view, in the first send."""
    async with served(name, valkey, tmp_path / "log") as server:
        for moment in range(60):
            await asyncio.gather(*(leave_at_once(server, path, moment / 4000) for _ in range(3)))
        # Served in turn, these have been behind all of them.
        later = [await opened(server, path, key="another") for _ in range(2)]
        assert await freed(valkey, "k", 0) < 1
        assert await freed(valkey, "another", len(later)) < 1
    found = [line for line in server.log.splitlines() if "Traceback" in line or "never awaited" in line]
    assert not found, server.log[:3000]


async def leave_at_once(server: Serving, path: str, after: float) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(f"GET {path}?key=k&token=let-me-in HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
    await asyncio.sleep(after)
    writer.transport.abort()
