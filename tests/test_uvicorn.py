"""Real uvicorn, real sockets: streams, a client that stops reading, and a reload."""

import asyncio
import json
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

import pytest

from .apps.downloads import SIZE
from .serving import Serving, WireStream, uvicorn

APP = "tests.apps.push:app"

pytestmark = pytest.mark.real_time


async def statistics(server: Serving) -> dict[str, object]:
    answer = await server.open("/statistics")
    found: dict[str, object] = json.loads(await answer.read_body())
    answer.close()
    return found


async def publish(server: Serving, data: str, query: str = "") -> None:
    answer = await server.open(f"/publish?{query}", method="POST", body=data.encode())
    assert answer.status == 200
    answer.close()


async def open_streams(server: Serving, count: int, query: str = "") -> list[WireStream]:
    streams = await asyncio.gather(*(server.open(f"/events?{query}") for _ in range(count)))
    await asyncio.gather(*(stream.next_event("livepush.open") for stream in streams))
    return list(streams)


async def come_back(server: Serving) -> WireStream:
    """Return a new stream, as an EventSource gets it: refused by the process that ends, it tries again."""
    async with asyncio.timeout(10):
        while True:
            try:
                stream = await server.open("/events")
                await stream.next_event("livepush.open")
            except (EOFError, OSError):
                continue
            return stream


OPTIONS = ["--loop uvloop --http httptools", "--loop asyncio --http h11"]


async def test_reload_reloads_with_streams_open(tmp_path: Path) -> None:
    source = Path(__file__).parent / "apps" / "push.py"
    module = tmp_path / "reloaded.py"
    shutil.copy(source, module)
    environment = {"WINDOW": "2"}
    options = ["--reload", "--reload-dir", str(tmp_path), "--app-dir", str(tmp_path)]
    async with uvicorn("reloaded:app", tmp_path / "log", *options, environment=environment) as server:
        (stream,) = await open_streams(server, 1)
        reading = asyncio.create_task(stream.read_to_end())
        # uvicorn begins to watch some time after it has begun to serve, and tells nobody when.
        while not reading.done():
            module.write_text(source.read_text().replace('"c"', '"d"'))
            await asyncio.wait({reading}, timeout=1)
        await reading
        assert json.loads(stream.events[-1].data)["reason"] == "drain"
        again = await come_back(server)
        await publish(server, "from the new one", "channel=d")
        assert (await again.next_event()).data == "from the new one"


@pytest.mark.parametrize("options", OPTIONS)
async def test_a_client_that_stops_reading_costs_a_bounded_memory_and_nobody_else_a_delay(
    options: str, tmp_path: Path
) -> None:
    """64 MiB are published to a client that reads nothing; its neighbour gets every event as it comes."""
    environment = {"SEND_TIMEOUT": "2", "HEARTBEAT": "1", "OUTBOX": "100"}
    data, rounds = "x" * 64 * 1024, 1000
    async with uvicorn(APP, tmp_path / "log", *options.split(), environment=environment) as server:
        fast, slow = await open_streams(server, 2)
        slow.shrink()
        before = (await statistics(server))["resident_kib"]
        for _ in range(rounds // 8):
            await publish(server, data, "times=8")
            for _ in range(8):
                assert (await fast.next_event()).data == data
        after = await statistics(server)
        assert isinstance(before, int)
        assert isinstance(after["resident_kib"], int)
        # Without a bound it would be 64 MiB more.
        assert after["resident_kib"] - before < 24 * 1024
        async with asyncio.timeout(10):
            while (after := await statistics(server))["streams"] != 1:
                pass
        ended = after["ended"]
        assert isinstance(ended, dict)
        assert ended["slow"] == 1
    assert "Traceback" not in server.log


async def test_closing_the_socket_while_idle_frees_the_slot(tmp_path: Path) -> None:
    async with uvicorn(APP, tmp_path / "log", environment={"CAP": "1"}) as server:
        for leave in (WireStream.close, WireStream.abort):
            (stream,) = await open_streams(server, 1)
            refused = await server.open("/events")
            assert (refused.status, refused.headers.get("retry-after")) == (429, "5"), refused.headers
            refused.close()
            leave(stream)
            async with asyncio.timeout(1):
                while (await statistics(server))["streams"]:
                    pass


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has the option")
@pytest.mark.parametrize("hidden", ["", "1"], ids=["its own receive", "behind a middleware"])
@pytest.mark.parametrize("options", OPTIONS)
async def test_a_download_after_a_stream_on_the_same_connection_may_rest(
    options: str, hidden: str, tmp_path: Path
) -> None:
    """The stream's connection was limited to a second of silence; its own end takes that back."""
    environment = {"HIDDEN": hidden}
    app = "tests.apps.downloads:app"
    async with uvicorn(app, tmp_path / "log", *options.split(), environment=environment) as server:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, ("127.0.0.1", server.port))
            await loop.sock_sendall(client, b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
            got = b""
            async with asyncio.timeout(20):
                while not got.endswith(b"\r\n0\r\n\r\n"):
                    chunk = await loop.sock_recv(client, 4096)
                    assert chunk
                    got += chunk
            assert b"livepush.close" in got
            await loop.sock_sendall(client, b"GET /file HTTP/1.1\r\nHost: x\r\n\r\n")
            # The window is shut for so long: the kernel would give up after one second.
            await asyncio.sleep(4)
            length = 0
            async with asyncio.timeout(30):
                while length < SIZE:
                    chunk = await loop.sock_recv(client, 1024 * 1024)
                    assert chunk, f"cut off after {length} bytes"
                    length += len(chunk)


@pytest.mark.parametrize("path", ["/hangs", "/thread"])
async def test_an_authorize_that_hangs_does_not_hold_up_the_end(path: str, tmp_path: Path) -> None:
    async with uvicorn("tests.apps.hanging:app", tmp_path / "log") as server:
        waiting = asyncio.create_task(server.open(path))
        async with asyncio.timeout(5):
            stream = await server.open("/")
            await stream.next_event("livepush.open")
        server.send_signal(signal.SIGTERM)
        start = time.monotonic()
        refused = await waiting
        assert time.monotonic() - start < 1
        assert (await refused.next_event("livepush.refused")).data.startswith('{"reason":"drain"')
        await stream.read_to_end()
        assert time.monotonic() - start < 4
    assert "Traceback" not in server.log


async def test_a_client_that_leaves_while_it_is_authorized_leaves_nothing(tmp_path: Path) -> None:
    async with uvicorn("tests.apps.hanging:app", tmp_path / "log") as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /hangs HTTP/1.1\r\nhost: x\r\n\r\n")
        await writer.drain()
        stream = await server.open("/")
        await stream.next_event("livepush.open")
        writer.close()
        await writer.wait_closed()
        server.send_signal(signal.SIGTERM)
        await stream.read_to_end()
        await server.ended(timeout=10)
    assert "Traceback" not in server.log
    assert "without starting response" not in server.log
