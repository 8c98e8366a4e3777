"""A client on a bare socket that keeps what comes, as it comes, and decodes as much of it as there is."""

import asyncio
import contextlib
import zlib
from types import TracebackType
from typing import Self

from .valkey import until

ENCODINGS = "gzip, deflate, br"


class Recording:
    """One request that takes compression, and its answer so far, inside an `async with` block."""

    def __init__(self, port: int, path: str) -> None:
        self._port = port
        self._path = path
        self._raw = bytearray()
        self._read: asyncio.Task[None]

    async def __aenter__(self) -> Self:
        reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        lines = [f"GET {self._path} HTTP/1.1", "host: localhost", f"accept-encoding: {ENCODINGS}"]
        self._writer.write("\r\n".join([*lines, "connection: close", "", ""]).encode())
        self._read = asyncio.create_task(self._record(reader))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._read.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._read
        self._writer.transport.abort()
        # The socket is closed in the loop's next turn.
        await asyncio.sleep(0)

    async def _record(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionError):
            while piece := await reader.read(65536):
                self._raw += piece

    async def until_end(self, *, timeout: float) -> None:
        """Wait until the other side closes."""
        async with asyncio.timeout(timeout):
            await asyncio.shield(self._read)

    async def until(self, text: str, *, timeout: float) -> None:
        """Wait until a text has come that a browser could show."""
        await until(lambda: text in self.text, within=timeout)

    @property
    def ended(self) -> bool:
        """Whether the other side has closed."""
        return self._read.done()

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the answer; none while they have not come."""
        head, found, _ = bytes(self._raw).partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")[1:] if found else []
        return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}

    @property
    def body(self) -> bytes:
        """The body as it has come, without the framing of its chunks."""
        rest = bytes(self._raw).partition(b"\r\n\r\n")[2]
        if self.headers.get("transfer-encoding") != "chunked":
            return rest
        body = b""
        while b"\r\n" in rest:
            size, _, rest = rest.partition(b"\r\n")
            length = int(size, 16)
            body, rest = body + rest[:length], rest[length + 2 :]
        return body

    @property
    def text(self) -> str:
        """The body as far as a browser could show it: the first file of a compressed one."""
        if self.headers.get("content-encoding") == "gzip":
            return zlib.decompressobj(wbits=31).decompress(self.body).decode()
        return self.body.decode()
