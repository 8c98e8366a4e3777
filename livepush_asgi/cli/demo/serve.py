"""The listening socket of the demo, and uvicorn on it."""

import contextlib
import errno
import logging
import signal
import socket
from collections.abc import Callable

import anyio
import uvicorn
from rich.console import Console
from rich.logging import RichHandler

from ..failure import FORCED, MISTYPED, UNABLE, Failure
from .app import Demo

# In seconds. Longer than the drain window of a LivePush, or uvicorn would cut streams that are yet to end.
GRACE = 5


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket. Port 0 takes any free port. Raises Failure."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise Failure(f"no address for the host {host!r}: {error.strerror}", MISTYPED) from None
    try:
        return socket.create_server(address, family=family, backlog=2048)
    except OSError as error:
        reasons = {
            errno.EADDRINUSE: f"port {port} of {host} is taken by another program; "
            "take another with --port, 0 for any free one",
            errno.EACCES: f"no permission to listen on port {port}; ports from 1024 up need none",
            errno.EADDRNOTAVAIL: f"{host} is not an address of this machine",
        }
        reason = reasons.get(error.errno or 0, f"cannot listen on port {port} of {host}: {error.strerror}")
        raise Failure(reason, MISTYPED if error.errno == errno.EADDRNOTAVAIL else UNABLE) from None


def url_of(listener: socket.socket) -> str:
    """Return the URL that a browser on this machine opens."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    """uvicorn that calls `serving` as soon as it serves and handles signals, and publishes the figures."""

    def __init__(self, config: uvicorn.Config, demo: Demo, serving: Callable[[], None]) -> None:
        super().__init__(config)
        self._demo = demo
        self._serving = serving

    async def main_loop(self) -> None:
        self._serving()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._demo.publish_figures)
            await super().main_loop()
            tasks.cancel_scope.cancel()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        await self._demo.aclose()


def serve(demo: Demo, listener: socket.socket, console: Console, serving: Callable[[], None]) -> int:
    """Serve until SIGINT or SIGTERM, and return the exit status. Calls `serving` when the server is ready."""
    handler = RichHandler(console=console, show_path=False, log_time_format="%X")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    logging.getLogger("livepush_asgi").setLevel(logging.INFO)
    config = uvicorn.Config(
        demo.asgi,
        log_config=None,
        log_level="warning",
        access_log=False,
        lifespan="on",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=GRACE,
    )
    server = _Server(config, demo, serving)
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
