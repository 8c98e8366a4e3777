"""What a test does at a server that runs the application of the tests: open, publish, look at the numbers."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from .serving import WireStream

# A client that opens a stream, says so, and goes on reading as long as it runs.
READER = """
import socket, sys
sock = socket.socket()
sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
sock.connect((sys.argv[2], int(sys.argv[1])))
sock.sendall(b"GET /events HTTP/1.1\\r\\nHost: 127.0.0.1\\r\\n\\r\\n")
got = b""
while b"livepush.open" not in got:
    got += sock.recv(4096)
print("open", flush=True)
while sock.recv(4096):
    pass
"""


BETWEEN_LOOKS = 0.02


class Visit:
    """The connections of one test, inside an `async with` block, at whose end they are cut off."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._open: list[WireStream] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for stream in self._open:
            stream.abort()
        # The sockets are closed in the loop's next turn.
        await asyncio.sleep(0)

    async def request(self, path: str, *, method: str = "GET", body: bytes = b"") -> WireStream:
        """Send a request, and return its answer when the head has come."""
        answer = await WireStream.open(self._port, path, method=method, body=body)
        self._open.append(answer)
        return answer

    async def streams(self, count: int) -> list[WireStream]:
        """Open streams, and return them when all are open."""
        streams = await asyncio.gather(*(self.request("/events") for _ in range(count)))
        await asyncio.gather(*(stream.next_event("livepush.open", timeout=30) for stream in streams))
        return list(streams)

    async def publish(self, data: str, *, times: int = 1) -> None:
        """Publish an event, once or several times."""
        answer = await self.request(f"/publish?times={times}", method="POST", body=data.encode())
        assert answer.status == 200
        answer.abort()

    async def statistics(self) -> "Numbers":
        """Return the numbers of the process that answers."""
        answer = await self.request("/statistics")
        numbers = Numbers(json.loads(await answer.read_body()))
        answer.abort()
        return numbers

    async def until(self, wanted: Callable[["Numbers"], bool], *, within: float = 20.0) -> "Numbers":
        """Look at the numbers until they are as wanted."""
        async with asyncio.timeout(within):
            while not wanted(numbers := await self.statistics()):  # noqa: ASYNC110
                await asyncio.sleep(BETWEEN_LOOKS)
        return numbers


class Numbers:
    """What `/statistics` tells."""

    def __init__(self, found: dict[str, object]) -> None:
        streams, opened, ended, pid = found["streams"], found["opened"], found["ended"], found["pid"]
        assert isinstance(streams, int)
        assert isinstance(opened, int)
        assert isinstance(ended, dict)
        assert isinstance(pid, int)
        self.streams = streams
        self.opened = opened
        self.ended: dict[str, int] = ended
        self.pid = pid


@contextmanager
def reader(
    port: int, host: str = "127.0.0.1", *, command: Sequence[str] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a client that has opened a stream, in a process of its own, by a command that runs others."""
    full = [*command, sys.executable, "-c", READER, str(port), host]
    with subprocess.Popen(full, stdout=subprocess.PIPE) as client:
        try:
            assert client.stdout is not None
            assert client.stdout.readline() == b"open\n"
            yield client
        finally:
            client.kill()
