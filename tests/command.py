"""The command line, called in this process, or in a process of its own as its users run it."""

import contextlib
import io
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import httpx
import pytest

from livepush_asgi.testing import EventStreamParser, ParsedEvent

REPOSITORY = Path(__file__).parent.parent
STARTUP_TIMEOUT = 20.0
COMMAND = [sys.executable, "-X", "dev", "-m", "livepush_asgi"]
# Settings of a user's terminal must not change the output that is compared.
ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if name not in ("LIVEPUSH_REDIS", "LIVEPUSH_URL", "LIVEPUSH_SECRET", "LIVEPUSH_TOKEN", "FORCE_COLOR")
}
ENVIRONMENT |= {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end in this process, which takes a tenth of the time that a process takes."""
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(io.StringIO()) as output,
        contextlib.redirect_stderr(io.StringIO()) as errors,
    ):
        for name in {*os.environ} - {*ENVIRONMENT}:
            patch.delenv(name)
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        # Imported here, because its consoles look at the environment when they are made.
        from livepush_asgi.cli import commands

        status = commands.run(arguments)
    return subprocess.CompletedProcess(arguments, status, output.getvalue(), errors.getvalue())


def run_process(
    *arguments: str, data: bytes = b"", timeout: float = 20.0
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end in a process of its own."""
    ended = subprocess.run(
        [*COMMAND, *arguments],
        input=data,
        capture_output=True,
        cwd=REPOSITORY,
        env=ENVIRONMENT,
        timeout=timeout,
        check=False,
    )
    # On a busy machine asyncio's debug mode (-X dev) logs callbacks that were slow.
    errors = re.sub(r"^Executing <.* took [0-9.]+ seconds\n", "", ended.stderr.decode(), flags=re.MULTILINE)
    return subprocess.CompletedProcess(ended.args, ended.returncode, ended.stdout.decode(), errors)


def complaints(errors: str) -> list[str]:
    """Return the lines of a standard error output, without those on callbacks that a busy machine made slow.

    Python's development mode (-X dev) has asyncio write them.
    """
    return [line for line in errors.splitlines() if not line.startswith("Executing <")]


class Serving:
    """A command that serves, on any free port unless told otherwise, inside a `with` block."""

    def __init__(self, *arguments: str) -> None:
        port = () if "--port" in arguments else ("--port", "0")
        self._arguments = [*COMMAND, *arguments, *port]
        self._said: queue.Queue[str] = queue.Queue()
        self.url = ""

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            self._arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=REPOSITORY,
            env=ENVIRONMENT,
        )
        assert self.process.stdout is not None
        threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True).start()
        # On a busy machine asyncio's debug mode (-X dev) first logs callbacks that were slow.
        while "http://" not in (first := self.line()):
            assert first, "it has ended"
        self.url = first[first.index("http://") :].split()[0]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def end(self, number: signal.Signals = signal.SIGINT) -> int:
        """Tell it to end, and return its exit status."""
        self.process.send_signal(number)
        return self.process.wait(timeout=15)

    def line(self) -> str:
        """Return the next line that it writes."""
        return self._said.get(timeout=STARTUP_TIMEOUT)

    def rest(self) -> str:
        """Return what it has written since its first line. It has to have ended."""
        lines = []
        while (line := self.line()) != "":
            lines.append(line)
        return "".join(lines)

    def _read(self, output: IO[bytes]) -> None:
        with output:
            for line in output:
                self._said.put(line.decode())
        self._said.put("")


class EventSource:
    """A client of one stream that keeps what it has seen."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._parser = EventStreamParser()
        self._chunks = response.aiter_bytes()
        self._events: list[ParsedEvent] = []
        self.ended = False

    async def next(self) -> ParsedEvent | None:
        """Return the next event, None at the end of the stream."""
        while not self._events:
            try:
                self._events += self._parser.feed(await anext(self._chunks))
            except StopAsyncIteration:
                self.ended = True
                return None
        return self._events.pop(0)

    async def next_named(self, name: str) -> ParsedEvent:
        """Return the next event of this name; those before it are passed over."""
        while (event := await self.next()) is not None:
            if event.event == name:
                return event
        raise AssertionError(f"the stream has ended without an event {name!r}")


@asynccontextmanager
async def event_source(url: str, **headers: str) -> AsyncIterator[EventSource]:
    """Open a stream."""
    async with (
        httpx.AsyncClient(timeout=15, trust_env=False) as client,
        client.stream("GET", url, headers=headers) as response,
    ):
        yield EventSource(response)
