"""The listening socket, and uvicorn on it. Only here does the command line touch the process."""

import contextlib
import errno
import logging
import signal
import socket
from collections.abc import Callable

import uvicorn
from rich.console import Console
from rich.logging import RichHandler

from ...types import ASGIApp
from ..failure import MISTYPED, UNABLE, Failure
from .names import LocalNames, is_local

# How long streams may take to end once the process was told to. Then comes uvicorn's own patience,
# which has to be longer, or it would cut what is just ending.
DRAIN_WINDOW = 2.0
GRACE = 5

#: The exit status of a process that was told twice to end, by the custom of shells.
FORCED = 130


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens. Port 0 takes any that is free. Raises Failure."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise Failure(f"no address for the host {host!r}: {error.strerror}", MISTYPED) from None
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        # Without it a port stays taken for a minute after each run; with it, on POSIX, a port on
        # which somebody listens is refused all the same. On Windows it would be shared.
        if hasattr(socket, "AF_UNIX"):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise _not_bound(host, port, error) from None
    return listener


def url_of(listener: socket.socket) -> str:
    """Return the URL that a browser on this machine opens."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    """uvicorn, and a call once it serves: from then on it also hears the signals."""

    def __init__(self, config: uvicorn.Config, serving: Callable[[], None]) -> None:
        super().__init__(config)
        self._serving = serving

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._serving()


def serve(app: ASGIApp, listener: socket.socket, console: Console, serving: Callable[[], None]) -> int:
    """Serve until the process is told to end, and return its exit status. Calls `serving` when it does."""
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
    # Streams that are torn off were meant to be: that is what the second Ctrl+C is for.
    logging.getLogger("uvicorn.error").addFilter(lambda record: not server.force_exit)
    # uvicorn raises again the signal that ended it, once it is done. SIGTERM would kill the process
    # at that point, with a status that looks like a crash.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
    if server.force_exit:
        return FORCED
    return 0 if server.should_exit else UNABLE


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
