"""Measure how long a 50-byte event takes on each way, as it comes and mended, and write the table.

python -m benchmarks.proxies [--write]        (from the repository, with what .ci/run installs)

The clock starts before the request that publishes is sent, and stops when the whole event is there. With
--write the table goes into docs/guides/proxies.md.
"""

import asyncio
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import NamedTuple

import pytest

from tests import proxies
from tests.programs import node_package, program
from tests.proxies import configuration
from tests.recording import Recording
from tests.serving import Serving, uvicorn

EVENTS = 30
PATIENCE = 3.0
PAUSE = 0.02
DOCUMENT = Path(__file__).parent.parent / "docs" / "guides" / "proxies.md"
MARKS = "<!-- measured by benchmarks/proxies.py -->", "<!-- end of what was measured -->"
PROXIED, DJANGO = "tests.apps.proxied:app", "tests.apps.gzip_django:app --lifespan off"
PADDED = "/events?pad=2000"
BARE = f"{PADDED}&without=cache-control&without=x-accel-buffering"
IGNORING = "proxy_http_version 1.0; proxy_ignore_headers X-Accel-Buffering;"


class Case(NamedTuple):
    """One way to measure: a server, what is in front of it, and what is asked for."""

    kind: str = ""
    text: str = ""
    path: str = "/events"
    app: str = PROXIED
    gzip: str = ""


class Row(NamedTuple):
    """One line of the table. Without `mended` there is nothing to mend."""

    name: str
    default: Case
    mended: Case | None = None


def old_nginx() -> str:
    return configuration("default/nginx.conf").replace("8000;", f"8000; {IGNORING}")


ROWS = (
    Row("no proxy", Case()),
    Row("nginx", Case("nginx", "default/nginx.conf"), Case("nginx", "mended/nginx.conf")),
    Row(
        "nginx, `X-Accel-Buffering` ignored, `gzip` for streams",
        Case("nginx", "broken/nginx.conf", PADDED),
        Case("nginx", "mended/nginx.conf", PADDED),
    ),
    Row(
        "nginx, `X-Accel-Buffering` ignored, HTTP/1.0 to uvicorn with h11",
        Case("nginx", old_nginx(), app=f"{PROXIED} --http h11"),
        Case("nginx", "mended/nginx.conf", app=f"{PROXIED} --http h11"),
    ),
    Row("HAProxy", Case("haproxy", "default/haproxy.cfg"), Case("haproxy", "mended/haproxy.cfg")),
    Row(
        "HAProxy, `compression`, `no-transform` lost before it",
        Case("haproxy", "broken/haproxy.cfg", BARE),
        Case("haproxy", "mended/haproxy.cfg", BARE),
    ),
    Row("Caddy", Case("caddy", "default/Caddyfile"), Case("caddy", "mended/Caddyfile")),
    Row(
        "Caddy, `encode gzip`, 512 bytes or more to begin with",
        Case("caddy", "broken/Caddyfile", PADDED),
        Case("caddy", "mended/Caddyfile", PADDED),
    ),
    Row("Vite's development server", Case("vite", "default/vite.config.js")),
    Row(
        "SvelteKit, `return fetch(...)`",
        Case("sveltekit", "default/+server.js"),
        Case("sveltekit", "mended/+server.js"),
    ),
    Row("Starlette's `GZipMiddleware`", Case(gzip="default", path=PADDED)),
    Row(
        "Starlette's, `exclude_content_types=()`",
        Case(gzip="everything", path=PADDED),
        Case(gzip="everything", path=f"{PADDED}&identity=1"),
    ),
    Row("Django's `GZipMiddleware`, `contrib.django`", Case(app=DJANGO)),
    Row(
        "Django's, a `StreamingHttpResponse` of one's own",
        Case(app=DJANGO, path="/own"),
        Case(app=DJANGO, path="/own?identity=1"),
    ),
)


@asynccontextmanager
async def opened(case: Case, directory: Path) -> AsyncIterator[tuple[Serving, Recording]]:
    environment = {"HEARTBEAT": "600", "GZIP": case.gzip}
    async with uvicorn(case.app, directory / "server.log", environment=environment) as server:
        if not case.kind:
            async with Recording(server.port, case.path) as stream:
                yield server, stream
            return
        async with (
            getattr(proxies, case.kind)(server.port, case.text, directory) as proxy,
            Recording(proxy.port, case.path) as stream,
        ):
            yield server, stream


async def delay(server: Serving, stream: Recording, data: str) -> float | None:
    """Return the milliseconds that an event took, None if it did not come."""
    start = perf_counter()
    await server.open("/publish", method="POST", body=data.encode())
    while f"data: {data}\n\n" not in stream.text:
        if perf_counter() > start + PATIENCE or stream.ended:
            return None
        await asyncio.sleep(0.0002)
    return 1000 * (perf_counter() - start)


async def measure(case: Case) -> str:
    """Return what the table says of a case."""
    with tempfile.TemporaryDirectory() as directory:
        async with opened(case, Path(directory)) as (server, stream):
            await asyncio.sleep(1)  # Whatever comes of it, it has begun by now.
            delays = []
            for number in range(EVENTS):
                took = await delay(server, stream, f"{number:050}")
                if took is None:
                    return "the connection is lost" if stream.ended else f"**not in {PATIENCE:.0f} s**"
                delays.append(took)
                await asyncio.sleep(PAUSE)
            return f"{median(delays):.1f} ms"


async def cell(case: Case | None) -> str:
    if case is None:
        return "the same"
    try:
        return await measure(case)
    except pytest.skip.Exception as missing:
        return f"not run: {missing}"


def said(name: str, *options: str) -> str:
    """Return the version that a program says it has."""
    path = program(name)
    if path is None:
        return "none"
    done = subprocess.run([path, *options], capture_output=True, text=True, check=True)
    found = re.search(r"\d+\.\d+\.\d+", done.stdout + done.stderr)
    return found[0] if found else "unknown"


def npm_version(name: str) -> str:
    folder = node_package(name)
    found = re.search(r'"version": "(.*?)"', (folder / "package.json").read_text()) if folder else None
    return found[1] if found else "none"


def conditions() -> str:
    of = importlib.metadata.version
    return (
        f"Median of {EVENTS} events of 50 bytes, one after the other, on {os.cpu_count()} cores of "
        f"{platform.machine()} with Linux; Python {platform.python_version()}, uvicorn {of('uvicorn')}, "
        f"Starlette {of('starlette')}, Django {of('django')}, nginx {said('nginx', '-v')}, "
        f"HAProxy {said('haproxy', '-v')}, Caddy {said('caddy', 'version')}, "
        f"Node {said('node', '--version')}, Vite {npm_version('vite')}, "
        f"SvelteKit {npm_version('@sveltejs/kit')}."
    )


async def main() -> None:
    lines = ["| way | as it comes | mended |", "|---|---|---|"]
    for row in ROWS:
        lines.append(f"| {row.name} | {await cell(row.default)} | {await cell(row.mended)} |")
        print(lines[-1], file=sys.stderr, flush=True)
    table = "\n".join([*lines, "", conditions()])
    print(table)
    if "--write" in sys.argv:
        begin, end = MARKS
        before, _, rest = DOCUMENT.read_text().partition(begin)
        DOCUMENT.write_text(f"{before}{begin}\n\n{table}\n\n{end}{rest.partition(end)[2]}")


if __name__ == "__main__":
    asyncio.run(main())
