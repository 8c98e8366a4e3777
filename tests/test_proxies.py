"""Streams behind real proxies: what comes at once, what is held back, what is cut, who notices a departure.

Nothing here looks at a clock, but for one ratio. An event comes at once if it comes while nothing else is
sent. It is held back if it is not there when others, sent after it, have come by another way; all come with
the end.
"""

import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import pytest

from . import proxies
from .proxies import Proxy, configuration
from .recording import ENCODINGS, Recording
from .serving import Serving, WireStream, uvicorn
from .visit import Numbers, Visit

APP = "tests.apps.proxied:app"
EVENT = b"x" * 50
# Generous: it is for a machine that does much else at the same time.
DEADLINE = 30.0
FILES = {
    "nginx": "nginx.conf",
    "haproxy": "haproxy.cfg",
    "caddy": "Caddyfile",
    "vite": "vite.config.js",
    "sveltekit": "+server.js",
}
# Caddy goes by the size of what comes first: it compresses nothing below 512 bytes.
PADDED = "/events?pad=2000"
# Without the request for no transformation, as other components' streams are and some proxies pass it on.
BARE = f"{PADDED}&without=cache-control&without=x-accel-buffering"

pytestmark = pytest.mark.real_time


class Way(NamedTuple):
    """A server, and a proxy in front of it."""

    server: Serving
    proxy: Proxy

    async def open(self, path: str = "/events") -> WireStream:
        """Open a stream through the proxy, and read its first event."""
        stream = await self.proxy.open(path, accept_encoding=ENCODINGS)
        await stream.next_event("livepush.open", timeout=DEADLINE)
        return stream


def proxy(kind: str, text: str, server: Serving, tmp_path: Path) -> Proxy:
    """Return a proxy with a text, or with the file of a folder in `docs/proxies`."""
    made = getattr(proxies, kind)(server.port, text if "\n" in text else f"{text}/{FILES[kind]}", tmp_path)
    assert isinstance(made, Proxy)
    return made


@asynccontextmanager
async def way(kind: str, text: str, tmp_path: Path, *options: str, **settings: str) -> AsyncIterator[Way]:
    """Make a way to the tests' application, on which nothing is sent unless a test does it."""
    environment = {"HEARTBEAT": "600", "WINDOW": "0.2", **settings}
    log = tmp_path / f"{kind}.log"
    async with (
        uvicorn(APP, log, *options, environment=environment) as server,
        proxy(kind, text, server, tmp_path) as front,
    ):
        yield Way(server, front)


async def publish(server: Serving, data: bytes) -> None:
    assert (await server.open("/publish", method="POST", body=data)).status == 200


async def pass_on(server: Serving, stream: WireStream, data: bytes) -> None:
    """Publish an event, and wait until a stream has it."""
    await publish(server, data)
    assert (await stream.next_event(timeout=DEADLINE)).data == data.decode()


async def until(server: Serving, wanted: Callable[[Numbers], bool]) -> None:
    """Wait until the server's numbers are as wanted."""
    async with Visit(server.port) as visit:
        await visit.until(wanted, within=DEADLINE)


@pytest.mark.parametrize(
    ("kind", "folder"),
    [
        ("nginx", "default"),
        ("nginx", "mended"),
        ("haproxy", "default"),
        ("haproxy", "mended"),
        ("caddy", "default"),
        ("caddy", "mended"),
        ("vite", "default"),
        ("sveltekit", "mended"),
    ],
)
async def test_events_come_at_once_and_a_departure_is_noticed(kind: str, folder: str, tmp_path: Path) -> None:
    # HAProxy takes the client's end of the connection for the end of what the client says, and goes on until
    # it cannot write: with the second thing that comes for a client that is gone.
    heartbeat = "0.5" if kind == "haproxy" else "600"
    async with way(kind, folder, tmp_path, HEARTBEAT=heartbeat) as path:
        stream = await path.open(PADDED)
        assert (stream.status, stream.headers["content-type"]) == (200, "text/event-stream")
        assert "content-encoding" not in stream.headers
        await pass_on(path.server, stream, EVENT)
        await pass_on(path.server, stream, b"another")
        stream.close()
        await until(path.server, lambda numbers: numbers.ended["disconnect"] > 0)


async def hold_back(broken: Way, mended: Proxy, held: Recording, path: str) -> None:
    """Show that a broken way holds an event back that came by a mended one, until the stream ends."""
    await until(broken.server, lambda numbers: numbers.streams == 1)
    witness = await Way(broken.server, mended).open(path)
    for number in range(10):
        await pass_on(broken.server, witness, b"event %d" % number)
    # HAProxy holds back the end of what there is: each event comes with the next. The others hold all.
    with pytest.raises(TimeoutError):
        await held.until("data: event 9\n\n", timeout=1)
    broken.server.send_signal(signal.SIGTERM)
    await held.until_end(timeout=DEADLINE)
    events = [line for line in held.text.splitlines() if line.startswith("data: event ")]
    assert events == [f"data: event {number}" for number in range(10)]


@pytest.mark.parametrize(("kind", "path"), [("nginx", PADDED), ("haproxy", BARE), ("caddy", PADDED)])
async def test_a_broken_way_holds_back_what_a_mended_one_does_not(
    kind: str, path: str, tmp_path: Path
) -> None:
    async with (
        way(kind, "broken", tmp_path) as broken,
        proxy(kind, "mended", broken.server, tmp_path) as mended,
        Recording(broken.proxy.port, path) as held,
    ):
        await hold_back(broken, mended, held, path)
        assert held.headers["content-encoding"] == "gzip"


@pytest.mark.parametrize("kind", ["nginx", "haproxy", "caddy"])
async def test_identity_as_the_encoding_goes_through_a_broken_way(kind: str, tmp_path: Path) -> None:
    async with way(kind, "broken", tmp_path) as path:
        stream = await path.open(f"{BARE}&identity=1")
        assert stream.headers["content-encoding"] == "identity"
        await pass_on(path.server, stream, EVENT)


async def test_nginx_that_asks_in_http_1_0_holds_back_what_ends_with_its_connection(tmp_path: Path) -> None:
    # Where the header that forbids it is ignored, it depends on how the end of the answer is told: httptools
    # sends chunks whatever it was asked in, and those are passed on.
    old = configuration("default/nginx.conf").replace("0;\n", "0;\nproxy_ignore_headers X-Accel-Buffering;\n")
    new = old.replace("X-Accel-Buffering;", "X-Accel-Buffering; proxy_http_version 1.1;")
    old = old.replace("X-Accel-Buffering;", "X-Accel-Buffering; proxy_http_version 1.0;")
    async with (
        way("nginx", old, tmp_path, "--http", "h11") as path,
        proxy("nginx", new, path.server, tmp_path) as newer,
        Recording(path.proxy.port, PADDED) as held,
    ):
        await hold_back(path, newer, held, PADDED)


async def test_haproxy_waits_for_more_unless_it_is_told_not_to(tmp_path: Path) -> None:
    async def quickest(stream: WireStream) -> float:
        delays = []
        for number in range(8):
            start = perf_counter()
            await pass_on(path.server, stream, b"event %d" % number)
            delays.append(perf_counter() - start)
        return min(delays)

    async with way("haproxy", "default", tmp_path) as path:
        late = await quickest(await path.open())
        async with proxy("haproxy", "mended", path.server, tmp_path) as mended:
            early = await quickest(await Way(path.server, mended).open())
    # It is 200 ms to some 3.
    assert late > 2 * early


async def test_haproxy_compresses_nothing_that_asks_for_no_transformation(tmp_path: Path) -> None:
    async with way("haproxy", "broken", tmp_path) as path:
        stream = await path.open(PADDED)
        assert "content-encoding" not in stream.headers
        await pass_on(path.server, stream, EVENT)


async def test_haproxy_that_waits_for_requests_does_not_wait_for_answers(tmp_path: Path) -> None:
    text = configuration("default/haproxy.cfg").replace("8080\n", "8080\n    option http-buffer-request\n")
    async with way("haproxy", text, tmp_path) as path:
        await pass_on(path.server, await path.open(), EVENT)


# Many times the heartbeat, for a machine that is busy with something else now and then.
LIMIT = "3s"
SILENT, BEATING = "600", "0.2"
NGINX = configuration("mended/nginx.conf").replace("60s", LIMIT)
HAPROXY = configuration("mended/haproxy.cfg")
SERVER = HAPROXY.replace("server 60s", f"server {LIMIT}")
OTHERS = HAPROXY.replace("client 60s", "client 1s\n    timeout tunnel 1s")
CADDY = configuration("default/Caddyfile")
READ = CADDY.replace("0\n}", f"0 {{\n\t\ttransport http {{\n\t\t\tread_timeout {LIMIT}\n\t\t}}\n\t}}\n}}")


@pytest.mark.parametrize(
    ("kind", "cutting", "staying"),
    [
        ("nginx", NGINX, {BEATING: NGINX}),
        ("haproxy", SERVER, {BEATING: SERVER, SILENT: OTHERS}),
        ("caddy", READ, {BEATING: READ, SILENT: CADDY}),
    ],
    ids=["nginx", "haproxy", "caddy"],
)
async def test_an_idle_stream_is_cut_by_one_limit_unless_heartbeats_come_sooner(
    kind: str, cutting: str, staying: dict[str, str], tmp_path: Path
) -> None:
    async with AsyncExitStack() as ways:
        stays = []
        for heartbeat, text in staying.items():
            (directory := tmp_path / heartbeat).mkdir()
            better = await ways.enter_async_context(way(kind, text, directory, HEARTBEAT=heartbeat))
            stays.append((better.server, await better.open()))
        # The last to be opened is the first to end: the others have been there for longer.
        worse = await ways.enter_async_context(way(kind, cutting, tmp_path))
        cut = await worse.open()
        with pytest.raises(EOFError):
            await cut.next_event(timeout=DEADLINE)
        assert [event.event for event in cut.events] == ["livepush.open"]
        for server, stream in stays:
            await pass_on(server, stream, EVENT)
