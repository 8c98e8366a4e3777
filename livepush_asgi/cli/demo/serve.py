"""The listening socket of the demo, and uvicorn on it."""

import contextlib
import errno
import ipaddress
import logging
import signal
import socket
from collections.abc import Callable

import uvicorn
from rich.console import Console
from rich.logging import RichHandler

from ...runtime.asgi import ASGIApp, Receive, Scope, Send
from ..failure import FORCED, MISTYPED, UNABLE, Failure
from .web import Problem

# In seconds. Streams end within the drain window; uvicorn's grace has to be longer, or it would cut them.
DRAIN_WINDOW, GRACE = 2.0, 5


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket. Port 0 takes any free port. Raises Failure."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise Failure(f"no address for the host {host!r}: {error.strerror}", MISTYPED) from None
    try:
        return socket.create_server(address, family=family, backlog=2048)
    except OSError as error:
        raise _not_bound(host, port, error) from None


def url_of(listener: socket.socket) -> str:
    """Return the URL that a browser on this machine opens."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    """uvicorn that calls `serving` as soon as it serves and handles signals."""

    def __init__(self, config: uvicorn.Config, serving: Callable[[], None]) -> None:
        super().__init__(config)
        self._serving = serving

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._serving()


def serve(app: ASGIApp, listener: socket.socket, console: Console, serving: Callable[[], None]) -> int:
    """Serve until SIGINT or SIGTERM, and return the exit status. Calls `serving` when the server is ready."""
    _log_to(console)
    if is_local(listener.getsockname()[0]):
        app = LocalNames(app)
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",
        access_log=False,
        lifespan="on",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=GRACE,
    )
    server = _Server(config, serving)
    # A second Ctrl+C cuts the open streams on purpose: uvicorn's errors about them are no news.
    logging.getLogger("uvicorn.error").addFilter(lambda record: not server.force_exit)
    # uvicorn raises the signal that ended it again when it is done. SIGTERM would then kill the process
    # with a status that looks like a crash.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
    if server.force_exit:
        return FORCED
    return 0 if server.should_exit else UNABLE


class LocalNames:
    """Refuses requests to a loopback address whose `Host` is a name from outside (DNS rebinding).

    A web site can point its own name to 127.0.0.1, and its scripts could then read this page as their own.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] == "http" and not is_local(_host_of(scope)):
            problem = Problem(421, "this page is for this machine; open it as localhost or 127.0.0.1")
            await problem.answer.send(scope, send)
        else:
            await self._app(scope, receive, send)


def is_local(host: str) -> bool:
    """Return whether a host name or address means this machine alone."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _host_of(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"host":
            host = bytes(value).decode("latin-1").lower()
            return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    # HTTP/1.0 has no Host field, and no browser speaks it.
    return "localhost"


def _not_bound(host: str, port: int, error: OSError) -> Failure:
    if error.errno == errno.EADDRINUSE:
        return Failure(
            f"port {port} of {host} is taken by another program; take another with --port, 0 for any free one"
        )
    if error.errno == errno.EACCES:
        return Failure(f"no permission to listen on port {port}; ports from 1024 up need none")
    if error.errno == errno.EADDRNOTAVAIL:
        return Failure(f"{host} is not an address of this machine", MISTYPED)
    return Failure(f"cannot listen on port {port} of {host}: {error.strerror}")


def _log_to(console: Console) -> None:
    handler = RichHandler(console=console, show_path=False, log_time_format="%X")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    logging.getLogger("livepush_asgi").setLevel(logging.INFO)
