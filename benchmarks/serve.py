"""Server: an application served on a core of its own, and what it costs there, as Linux counts it."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

REPOSITORY = Path(__file__).parent.parent
STARTUP_TIMEOUT = 30.0
BETWEEN_TRIES = 0.05
WARM_UP = 0.2
# A server that uses less than this share of a core has started. Then the seconds between two looks at it.
QUIET, BETWEEN_LOOKS = 0.02, 0.5

COMMANDS = {
    "uvicorn": "uvicorn {app} --port {port} --no-access-log --log-level error --backlog 4096",
    "granian": "granian --interface asgi --port {port} --no-ws --backlog 4096 --log-level error {app}",
    "hypercorn": "hypercorn --bind 127.0.0.1:{port} --worker-class uvloop --backlog 4096 {app}",
}


def cores() -> tuple[set[int], set[int]]:
    """Return the core that serves and the cores for all else; the same one where there is only one."""
    mine = sorted(os.sched_getaffinity(0))
    return {mine[0]}, set(mine[1:]) or {mine[0]}


def command_of(app: str, kind: str, port: int, workers: int = 1) -> list[str]:
    """Return the command that serves an application. All servers have the same option for workers."""
    several = ["--workers", str(workers)] if workers > 1 else []
    return [sys.executable, "-m", *COMMANDS[kind].format(app=app, port=port).split(), *several]


@dataclass
class Server:
    """One server, inside its `with` block. Its processor time and memory are those of all its processes.

    `beside` are other processes that are counted with them, for example a broker. `on` are the cores that it
    runs on, if not the one that serves.
    """

    command: Sequence[str]
    port: int
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    beside: Sequence[int] = ()
    on: Set[int] = frozenset()

    def __enter__(self) -> Self:
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self.command,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY), **self.environment},
                cwd=REPOSITORY,
                start_new_session=True,
            )
        # Its children and threads inherit the core; it has none yet.
        os.sched_setaffinity(self._process.pid, self.on or cores()[0])
        try:
            self._wait_until_it_answers()
            self._warm_up()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def get(self, path: str) -> None:
        """Make a request and read its answer."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as answer:
            answer.read()

    def cpu(self) -> float:
        """Return the processor time so far, in seconds."""
        return sum(map(cpu_of, self._family()))

    def memory(self) -> float:
        """Return what is resident, in KiB."""
        return sum(_status(pid, "VmRSS") for pid in self._family())

    def peak(self) -> float:
        """Return the most that ever was resident, in KiB."""
        return sum(_status(pid, "VmHWM") for pid in self._family())

    def wait_until_quiet(self) -> None:
        """Wait until all workers have started: the first one answers before the others."""
        end, used = time.monotonic() + STARTUP_TIMEOUT, -1.0
        while (now := self.cpu()) - used > QUIET * BETWEEN_LOOKS and time.monotonic() < end:
            used = now
            time.sleep(BETWEEN_LOOKS)

    def files(self) -> dict[int, int]:
        """Return how many files and sockets each process has open."""
        return {pid: len(os.listdir(f"/proc/{pid}/fd")) for pid in self._family()}

    def _family(self) -> list[int]:
        # The list grows while it is walked through: granian and hypercorn serve from a child.
        found = [self._process.pid, *self.beside]
        for pid in found:
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                found += map(int, children.read_text().split())
        return found

    def _wait_until_it_answers(self) -> None:
        end = time.monotonic() + STARTUP_TIMEOUT
        while True:
            try:
                self.get("/pub?n=0")
            except OSError:
                if self._process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(
                        f"{' '.join(self.command)} does not serve:\n{self.log.read_text()}"
                    ) from None
                time.sleep(BETWEEN_TRIES)
            else:
                return

    def _warm_up(self) -> None:
        # On a channel that nobody hears: what is done for the first time only is not what is measured.
        self.get("/pub?n=200&channels=1")
        time.sleep(WARM_UP)

    def _end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def cpu_of(pid: int) -> float:
    """Return the seconds that a process has run, with those of its threads that have ended."""
    # The C function clock_getcpuclockid() returns this number on Linux.
    return time.clock_gettime(~pid << 3 | 2)


def _status(pid: int, name: str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return float(line.split()[1])
    return 0.0
