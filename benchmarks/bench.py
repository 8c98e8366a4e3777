"""Bench: one application under one load, from its start to its end, and the figures of it."""

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.server_process import free_port
from tests.valkey import ValkeyProcess

from .load import Figures, Load
from .result import Size
from .serve import Server, command_of, cores

APP = "benchmarks.app:app"
FLOOR = "benchmarks.floor:app"
MADE = "benchmarks.made:app"
# Seconds for the work after the head of an opened stream, and after the last event.
SETTLE = 0.5

Environment = Mapping[str, str]
Publish = Callable[[Server], object]


@dataclass(frozen=True, slots=True)
class Bench:
    """The server and the load that everything is measured with."""

    program: Path
    folder: Path
    size: Size
    server: str = "uvicorn"
    peers: tuple[str, ...] = ()

    def serve(
        self,
        app: str,
        environment: Environment | None = None,
        *,
        workers: int = 1,
        beside: Sequence[int] = (),
        on: Set[int] = frozenset(),
    ) -> Server:
        port = free_port()
        command = command_of(app, self.server, port, workers)
        return Server(command, port, self.folder / "server.log", environment or {}, beside, on)

    def fan_out(
        self,
        app: str,
        environment: Environment | None = None,
        *,
        path: str = "/events",
        query: str = "",
        publish: Publish | None = None,
    ) -> Figures:
        """Serve an application to the streams, and publish to all of them."""
        return self.deliver(
            self.serve(app, environment), publish or (lambda server: server.get(self.order(query))), path
        )

    def deliver(self, serving: Server, publish: Publish, path: str = "/events") -> Figures:
        """Open the streams, publish to all of them, and wait until all has come."""
        size = self.size
        with (
            serving as server,
            Load(self.program, server.port, size.streams, path, expect=size.events) as load,
        ):
            empty = server.memory()
            load.opened()
            time.sleep(SETTLE)
            idle, before = server.memory(), server.cpu()
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
            rest = self.rest(server, empty)
            return {**load.stop(), **rest}

    def rest(self, server: Server, empty: float) -> Figures:
        """Return what the open streams take while nothing happens; `empty` is the memory without them."""
        time.sleep(SETTLE)
        idle, before, start = server.memory(), server.cpu(), time.monotonic()
        time.sleep(self.size.seconds)
        used, took = server.cpu() - before, time.monotonic() - start
        return {
            "kib_per_stream": (idle - empty) / self.size.streams,
            "mib": idle / 1024,
            "cpu_percent": 100 * used / took,
        }

    @contextmanager
    def valkey(self, *, serving: bool = False) -> Iterator[ValkeyProcess]:
        """Run a Valkey on the core that serves, or off it beside the load."""
        with (
            tempfile.TemporaryDirectory(dir=self.folder) as folder,
            ValkeyProcess(Path(folder) / "valkey") as valkey,
        ):
            os.sched_setaffinity(valkey.pid, cores()[0 if serving else 1])
            yield valkey
