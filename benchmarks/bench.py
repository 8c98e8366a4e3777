"""Bench: one application under one load, from its start to its end, and the figures of it."""

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.valkey import ValkeyProcess

from .load import Figures, Load
from .result import Size
from .serve import Server, cores

APP = "benchmarks.app:app"
FLOOR = "benchmarks.floor:app"
# Seconds for the work after the head of an opened stream, and after the last event.
SETTLE = 0.5

Environment = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Bench:
    """The server and the load that everything is measured with."""

    program: Path
    folder: Path
    size: Size
    server: str = "uvicorn"
    peers: tuple[str, ...] = ()

    def serve(self, app: str, environment: Environment | None = None) -> Server:
        return Server(app, self.server, self.folder / "server.log", environment)

    def fan_out(
        self,
        app: str,
        environment: Environment | None = None,
        *,
        path: str = "/events",
        query: str = "",
        publish: Callable[[Server], object] | None = None,
    ) -> Figures:
        """Open the streams, publish to all of them, and wait until all has come."""
        size = self.size
        with (
            self.serve(app, environment) as server,
            Load(self.program, server.port, size.streams, path, expect=size.events) as load,
        ):
            empty = server.memory()
            load.opened()
            time.sleep(SETTLE)
            idle, before = server.memory(), server.cpu()
            if publish is None:
                server.get(self.order(query))
            else:
                publish(server)
            figures = load.result()
            used, peak = server.cpu() - before, server.peak()
        return {
            **figures,
            "cpu_s": used,
            "us_per_event": 1e6 * used / max(1, figures["events"]),
            "kib_per_stream": (idle - empty) / size.streams,
            "peak_kib_per_stream": (peak - empty) / size.streams,
        }

    def order(self, query: str = "") -> str:
        """Return the path of the request that has the events of this size published."""
        size = self.size
        return f"/pub?n={size.events}&rate={size.rate}&size={size.bytes}{query}"

    def publish_only(self, app: str, channels: int) -> Figures:
        """Publish to so many channels of which one is heard, by one stream that tells the end."""
        size, last = self.size, f"/events?channel=c{channels - 1}"
        with (
            self.serve(app) as server,
            Load(self.program, server.port, 1, last, expect=size.events) as load,
        ):
            load.opened()
            time.sleep(SETTLE)
            before = server.cpu()
            server.get(self.order(f"&channels={channels}"))
            figures = load.result()
            used = server.cpu() - before
        return {**figures, "us_per_event": 1e6 * used / (size.events * channels)}

    def connect(self, app: str, environment: Environment | None = None) -> Figures:
        """Open the streams, as fast as the server takes them."""
        with self.serve(app, environment) as server:
            before = server.cpu()
            with Load(self.program, server.port, self.size.streams) as load:
                figures = load.opened()
                used = server.cpu() - before
        return {**figures, "us_per_connect": 1e6 * used / self.size.streams}

    def idle(self, app: str) -> Figures:
        """Open the streams, and see what they cost while nothing is published."""
        with self.serve(app) as server, Load(self.program, server.port, self.size.streams) as load:
            empty = server.memory()
            load.opened()
            time.sleep(SETTLE)
            idle, before, start = server.memory(), server.cpu(), time.monotonic()
            time.sleep(self.size.seconds)
            used, took = server.cpu() - before, time.monotonic() - start
            figures = load.stop()
        return {
            **figures,
            "kib_per_stream": (idle - empty) / self.size.streams,
            "cpu_percent": 100 * used / took,
        }

    @contextmanager
    def valkey(self) -> Iterator[ValkeyProcess]:
        """Run a Valkey beside the load, off the core that serves."""
        with (
            tempfile.TemporaryDirectory(dir=self.folder) as folder,
            ValkeyProcess(Path(folder) / "valkey") as valkey,
        ):
            os.sched_setaffinity(valkey.pid, cores()[1])
            yield valkey
