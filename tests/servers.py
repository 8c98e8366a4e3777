"""Every server that the tests run the component under: how each is started, and what it can."""

import asyncio
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .serving import Serving

APP = "tests.apps.push:app"
# Short times, so that noticing and ending can be waited for.
QUICK = {"CAP": "1000", "WINDOW": "1.5", "HEARTBEAT": "1", "SEND_TIMEOUT": "2"}


@dataclass(frozen=True, slots=True)
class Server:
    """A server and its command line. Braces: {app}, {host} and {port}.

    `one` makes it serve with one process and `two` with two workers; empty where it does so anyhow, or
    cannot at all. `hold` is for those that cut every connection at a signal.
    `bound` bounds how long its end may take, whatever its clients do.
    `keeps_signals_from_workers`: a signal to its first process reaches no worker. `http2` is the
    command line with which it speaks that, with TLS where it has a {pem}, a key and its certificate.
    """

    name: str
    command: str
    one: str = ""
    two: str = ""
    bound: str = ""
    hold: bool = False
    keeps_signals_from_workers: bool = False
    cuts_at_ctrl_c: bool = False
    http2: str = ""

    def __str__(self) -> str:
        return self.name

    def serve(
        self,
        log: Path,
        *,
        command: str = "",
        options: str | None = None,
        host: str = "127.0.0.1",
        environment: Mapping[str, str] | None = None,
    ) -> Serving:
        """Return it serving the application of the tests, with one process unless told otherwise."""
        command = command or f"{self.command} {self.one if options is None else options}"
        settings = {**QUICK, **({"HOLD": "1"} if self.hold else {}), **(environment or {}), "HOST": host}
        return Serving(
            command.replace("{app}", APP).replace("{host}", host).strip(), log, environment=settings
        )


GUNICORN = "gunicorn {app} --bind {host}:{port} --no-control-socket"


def _uvicorn(http: str, loop: str) -> Server:
    return Server(
        f"uvicorn-{http}-{loop}",
        f"uvicorn {{app}} --host {{host}} --port {{port}} --no-access-log --http {http} --loop {loop}",
        two="--workers 2",
        bound="--timeout-graceful-shutdown 5",
    )


def _hypercorn(kind: str) -> Server:
    command = f"hypercorn {{app}} --bind {{host}}:{{port}} -k {kind}"
    return Server(
        f"hypercorn-{kind}",
        command,
        one="-w 0",
        two="-w 2",
        bound="-w 0 --graceful-timeout 5",
        keeps_signals_from_workers=True,
        http2=f"{command} -w 0",
    )


GUNICORN_HTTP2 = f"{GUNICORN} -k asgi --http-protocols h2,h1 --certfile {{pem}} --keyfile {{pem}}"
GRANIAN = "granian {app} --interface asgi --host {host} --port {port}"
DAPHNE_HTTP2 = "daphne {app} -v 0 --endpoint ssl:{port}:privateKey={pem}:certKey={pem}:interface={host}"

SERVERS = (
    _uvicorn("httptools", "uvloop"),
    _uvicorn("h11", "asyncio"),
    Server(
        "gunicorn-uvicorn",
        f"{GUNICORN} -k uvicorn_worker.UvicornWorker",
        two="--workers 2",
        bound="--graceful-timeout 5",
    ),
    Server(
        "gunicorn-asgi",
        f"{GUNICORN} -k asgi",
        two="--workers 2",
        bound="--graceful-timeout 5",
        cuts_at_ctrl_c=True,
        http2=GUNICORN_HTTP2,
    ),
    _hypercorn("asyncio"),
    _hypercorn("uvloop"),
    _hypercorn("trio"),
    Server("granian", GRANIAN, two="--workers 2", bound="--workers-kill-timeout 5", http2=GRANIAN),
    Server("daphne", "daphne {app} -v 0 --bind {host} --port {port}", hold=True, http2=DAPHNE_HTTP2),
)
BY_NAME = {server.name: server for server in SERVERS}


@contextmanager
def interruptible() -> Iterator[None]:
    """Have processes that are started here obey Ctrl+C, also where this one was told to ignore it.

    A shell has what it starts in the background ignore it, and a process inherits that.
    """
    found = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, found)


def send_to_all(serving: Serving, number: signal.Signals) -> None:
    """Send a signal to the process that was started and to all that it started, as a terminal does."""
    os.killpg(serving.process.pid, number)


@contextmanager
def running(server: Server, log: Path) -> Iterator[Serving]:
    """Run a server while several tests, each with a loop of its own, use it. They close what they open."""
    serving = server.serve(log)
    asyncio.run(_enter(serving))
    try:
        yield serving
    finally:
        asyncio.run(serving.__aexit__(None, None, None))


async def _enter(serving: Serving) -> None:
    await serving.__aenter__()
