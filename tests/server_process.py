"""A server out of a wheel in a process of its own, and the ports that servers of tests get."""

import contextlib
import fcntl
import os
import random
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Self

STARTUP_TIMEOUT = 10.0

_given: set[int] = set()
# While a process lives, byte n of this file is locked for the port n that it was given.
_locks = os.open(
    Path(tempfile.gettempdir()) / f"livepush-test-ports-{os.getuid()}", os.O_RDWR | os.O_CREAT, 0o600
)


def free_port() -> int:
    """Return a port that nobody uses now and that was not given out before.

    It is none of those that outgoing connections get, one of which could be there before the server is. The
    workers of pytest-xdist have ports of their own, by the last digit. Nor does any other run of the tests
    get it: a test whose server has not begun to listen would meet the server of another test there.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    while True:
        port = random.randrange(10_000, 32_000, 10) + worker % 10
        if port in _given:
            continue
        with socket.socket() as probe, contextlib.suppress(OSError):
            fcntl.lockf(_locks, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
            probe.bind(("127.0.0.1", port))
            _given.add(port)
            return port


class ServerProcess:
    """One server. As a context manager it runs inside the block; its port stays the same throughout."""

    #: What it writes when it takes connections.
    ready: ClassVar[Sequence[str]]

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._process is not None:
            self.resume()
            self.kill()

    @property
    def command(self) -> Sequence[str | Path]:
        """The command that starts it."""
        raise NotImplementedError

    @property
    def is_running(self) -> bool:
        """Whether it was started and not killed since."""
        return self._process is not None

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start, and return when connections are taken."""
        self._process = subprocess.Popen(
            self.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        over = threading.Event()
        log: list[str] = []
        threading.Thread(target=self._read_log, args=(self._process, log, over), daemon=True).start()
        over.wait(STARTUP_TIMEOUT)
        if not self._is_ready(log):
            raise RuntimeError("the server did not start:\n" + "".join(log))

    def kill(self) -> None:
        """End it as a power cut would (SIGKILL)."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None

    def pause(self) -> None:
        """Let it answer nothing more, with all its connections open (SIGSTOP)."""
        self.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on where it was paused (SIGCONT)."""
        self.send_signal(signal.SIGCONT)

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the running server."""
        assert self._process is not None
        self._process.send_signal(number)

    def _is_ready(self, log: list[str]) -> bool:
        return any(sign in line for line in log for sign in self.ready)

    def _read_log(self, process: subprocess.Popen[str], log: list[str], over: threading.Event) -> None:
        """Read what it writes until it is ready or has ended, and then only to keep the pipe empty."""
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                if not over.is_set():
                    log.append(line)
                    if self._is_ready(log[-1:]):
                        over.set()
        over.set()
