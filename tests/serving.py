"""A real server in a process of its own, and a client on a bare socket that reads as the wire brings it."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from livepush_asgi.testing import EventStreamParser, ParsedEvent

from . import event_loops
from .server_process import free_port

REPOSITORY = Path(__file__).parent.parent
STARTUP_TIMEOUT = 20.0
BETWEEN_TRIES = 0.02


class Serving:
    """An application served by a command, inside an `async with` block, and the clients that it has.

    `{port}` in the command is its port. Without `development`, Python checks nothing more than for a user.
    """

    def __init__(
        self,
        command: str,
        log: Path,
        *,
        environment: Mapping[str, str] | None = None,
        cwd: Path = REPOSITORY,
        development: bool = True,
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        mode = ["-X", "dev"] if development else []
        self._command = [sys.executable, *mode, "-m", *command.format(port=self.port).split()]
        self._log = log
        self._environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **(environment or {})}
        self._cwd = cwd
        self._clients: list[WireStream] = []
        self.process: subprocess.Popen[bytes]

    async def __aenter__(self) -> Self:
        self._start()
        try:
            await self.started()
        except BaseException:
            self._kill()
            raise
        return self

    def _start(self) -> None:
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                self._command,
                stdout=log,
                stderr=log,
                env=self._environment,
                cwd=self._cwd,
                start_new_session=True,
            )

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for client in self._clients:
            client.abort()
        self._kill()
        # The sockets are closed in the loop's next turn.
        await asyncio.sleep(0)

    def _kill(self) -> None:
        # The whole group: a server with workers is several processes.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    async def open(
        self, path: str, *, method: str = "GET", body: bytes = b"", **headers: str
    ) -> "WireStream":
        """Send a request, and return its answer when the head has come."""
        stream = await WireStream.open(self.port, path, method=method, body=body, **headers)
        self._clients.append(stream)
        return stream

    @property
    def log(self) -> str:
        """What it has written so far."""
        return self._log.read_text()

    async def started(self) -> None:
        """Wait until it takes connections."""
        async with asyncio.timeout(STARTUP_TIMEOUT):
            while True:
                assert self.process.poll() is None, self.log
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                except OSError:
                    # Nobody listens yet, and nothing tells when somebody does. Starting takes its time.
                    await asyncio.sleep(BETWEEN_TRIES)
                else:
                    writer.close()
                    return

    def kill(self) -> None:
        """End it as a power cut would."""
        self._kill()

    async def start_again(self) -> None:
        """Start it once more, on the same port, after it has ended."""
        self._start()
        await self.started()

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the process that was started."""
        self.process.send_signal(number)

    async def ended(self, timeout: float) -> int:
        """Wait until it has ended, and return its exit status."""
        return await asyncio.to_thread(self.process.wait, timeout)


def uvicorn(app: str, log: Path, *options: str, environment: Mapping[str, str] | None = None) -> Serving:
    """Return uvicorn serving an application, with short logs."""
    if event_loops.CHOICE and not any("--loop" in option for option in options):
        options = (*options, "--loop tests.event_loops:new_event_loop")
    command = f"uvicorn {app} --port {{port}} --no-access-log {' '.join(options)}"
    return Serving(command, log, environment=environment)


class WireStream:
    """One HTTP/1.1 request and its streamed answer, on a socket of its own."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._parser = EventStreamParser()
        self._waiting: list[ParsedEvent] = []
        self.status = 0
        self.headers: dict[str, str] = {}
        self.ended = False
        #: How many bytes of the body have come.
        self.received = 0
        #: Every event so far, the component's own among them.
        self.events: list[ParsedEvent] = []

    @classmethod
    async def open(
        cls, port: int, path: str, *, method: str = "GET", body: bytes = b"", **headers: str
    ) -> Self:
        """Connect, send a request, and read the head of the answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        fields = {"host": f"127.0.0.1:{port}", "content-length": str(len(body)), **headers}
        lines = [f"{method} {path} HTTP/1.1", *(f"{k.replace('_', '-')}: {v}" for k, v in fields.items())]
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        stream = cls(reader, writer)
        try:
            await stream._read_head()
        except BaseException:
            stream.abort()
            raise
        return stream

    async def _read_head(self) -> None:
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        self.status = int(head[0].split()[1])
        self.headers = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:]) if name
        }

    async def next_event(
        self, name: str | None = None, *, anything: bool = False, timeout: float = 10.0
    ) -> ParsedEvent:
        """Return the next event that is not the component's own, or the next one of this name."""
        async with asyncio.timeout(timeout):
            while True:
                while self._waiting:
                    event = self._waiting.pop(0)
                    own = event.event.startswith("livepush.")
                    if anything or event.event == name or (name is None and not own):
                        return event
                chunk = await self._read_chunk()
                if not chunk:
                    raise EOFError(
                        f"the stream has ended after {[event.event for event in self.events[-5:]]}"
                    )
                self._take(chunk)

    async def read_to_end(self, *, timeout: float = 20.0) -> None:
        """Read until the server ends the stream."""
        async with asyncio.timeout(timeout):
            while chunk := await self._read_chunk():
                self._take(chunk)

    async def read_body(self) -> bytes:
        """Return the body of an answer with a length."""
        return await self._reader.readexactly(int(self.headers.get("content-length", "0")))

    async def read_chunks(self) -> bytes:
        """Return the body of an answer without a length."""
        body = b""
        while chunk := await self._read_chunk():
            body += chunk
        return body

    def _take(self, chunk: bytes) -> None:
        self.received += len(chunk)
        events = self._parser.feed(chunk)
        self.events += events
        self._waiting += events

    async def _read_chunk(self) -> bytes:
        if self.headers.get("transfer-encoding") != "chunked":
            return await self._reader.read(65536)
        size = await self._reader.readline()
        chunk = await self._reader.readexactly(int(size, 16) + 2) if size else b""
        self.ended = len(chunk) <= 2
        return chunk[:-2]

    def close(self) -> None:
        """Close the socket, without a word to the server."""
        self._writer.close()

    def abort(self) -> None:
        """Reset the connection."""
        self._writer.transport.abort()

    def shrink(self) -> None:
        """Take as little as a socket can, for a client that reads nothing."""
        self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._writer.transport.pause_reading()  # type: ignore[attr-defined]
