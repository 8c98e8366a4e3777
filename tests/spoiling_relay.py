"""A relay for HTTP/1.1 that does to answers what bad proxies do."""

import asyncio
import contextlib
import gzip
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

Head = tuple[str, dict[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spoil:
    """What is done to each answer. Times are in seconds.

    Bytes are held back until there are `hold_bytes`, for up to `hold_seconds`, or with `hold_all` until the
    end. `compress` is "flush", "hold", or "members": each piece by itself. An answer that is silent for
    `idle_limit` is cut off, or with `forget` left alone; every answer is after `time_limit`. `fields` are
    set, and taken away where None.
    """

    hold_bytes: int = 0
    hold_seconds: float = 0
    hold_all: bool = False
    compress: str = ""
    idle_limit: float | None = None
    time_limit: float | None = None
    forget: bool = False
    fields: Mapping[str, str | None] = field(default_factory=dict)
    status: str = ""


class SpoilingRelay:
    """Relays to a port, inside an `async with` block."""

    def __init__(self, target: int, spoil: Spoil) -> None:
        self.url, self.port = "", 0
        self._target = target
        self._spoil = spoil
        self._server: asyncio.Server
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # The sockets are closed in the loop's next turn.
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with contextlib.suppress(OSError, EOFError, asyncio.CancelledError):
            await self._relay(reader, writer)
        writer.close()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request, fields = await _read_head(reader)
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._target)
        try:
            server_writer.write(_head(request, {**fields, "connection": "close"}))
            answer, found = await _read_head(server_reader)
            passage = _Passage(self._spoil, writer, compressing="gzip" in fields.get("accept-encoding", ""))
            async with asyncio.timeout(self._spoil.time_limit):
                await passage.run(server_reader, answer, found)
        except TimeoutError:
            if self._spoil.forget:
                await asyncio.Event().wait()
            writer.transport.abort()
        finally:
            server_writer.close()


class _Passage:
    """One answer on its way."""

    def __init__(self, spoil: Spoil, writer: asyncio.StreamWriter, *, compressing: bool) -> None:
        self._spoil = spoil
        self._writer = writer
        self._held = b""
        self._held_until: float | None = None
        self._gzip = zlib.compressobj(wbits=31) if spoil.compress and compressing else None

    async def run(self, reader: asyncio.StreamReader, answer: str, fields: dict[str, str]) -> None:
        changed: dict[str, str | None] = {**fields, "connection": "close", **self._spoil.fields}
        if self._gzip is not None:
            changed["content-encoding"] = "gzip"
        kept = {name: value for name, value in changed.items() if value is not None}
        self._held = _head(self._spoil.status or answer, kept)
        # A head is passed on at once only where nothing is held.
        await self._pass_on(flush=not (self._spoil.hold_all or self._spoil.hold_bytes))
        chunked = fields.get("transfer-encoding") == "chunked"
        while (data := await self._next(reader, chunked=chunked)) is not None:
            self._held += self._framed(self._compressed(data))
            await self._pass_on()
        if self._gzip is not None:
            self._held += self._framed(b"" if self._spoil.compress == "members" else self._gzip.flush())
        self._held += b"0\r\n\r\n" if chunked else b""
        await self._pass_on(flush=True)

    async def _next(self, reader: asyncio.StreamReader, *, chunked: bool) -> bytes | None:
        """Return what comes next, b"" if that is only the time to pass on what is held, None at the end."""
        loop = asyncio.get_running_loop()
        waits = [self._spoil.idle_limit]
        if self._held_until is not None:
            waits.append(max(self._held_until - loop.time(), 0))
        times = [wait for wait in waits if wait is not None]
        reading = asyncio.ensure_future(_read_part(reader, chunked=chunked))
        try:
            done, _ = await asyncio.wait({reading}, timeout=min(times, default=None))
            if done:
                return reading.result()
            if self._held_until is None:
                raise TimeoutError
        except BaseException:
            reading.cancel()
            raise
        await self._pass_on(flush=True)
        return await reading

    def _compressed(self, data: bytes) -> bytes:
        if self._gzip is None:
            return data
        if self._spoil.compress == "members":
            return gzip.compress(data)
        compressed = self._gzip.compress(data)
        return (
            compressed + self._gzip.flush(zlib.Z_SYNC_FLUSH)
            if self._spoil.compress == "flush"
            else compressed
        )

    @staticmethod
    def _framed(data: bytes) -> bytes:
        return b"%x\r\n%s\r\n" % (len(data), data) if data else b""

    async def _pass_on(self, *, flush: bool = False) -> None:
        spoil, now = self._spoil, asyncio.get_running_loop().time()
        if not flush and spoil.hold_all:
            return
        if not flush and spoil.hold_bytes and len(self._held) < spoil.hold_bytes:
            return
        if not flush and spoil.hold_seconds and self._held:
            if self._held_until is None:
                self._held_until = now + spoil.hold_seconds
            if now < self._held_until:
                return
        self._held_until = None
        self._writer.write(self._held)
        self._held = b""
        await self._writer.drain()


async def _read_head(reader: asyncio.StreamReader) -> Head:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    pairs = (line.partition(": ") for line in lines if line)
    return first, {name.lower(): value for name, _, value in pairs}


def _head(first: str, fields: Mapping[str, str]) -> bytes:
    lines = [first, *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    return "\r\n".join(lines).encode("latin-1")


async def _read_part(reader: asyncio.StreamReader, *, chunked: bool) -> bytes | None:
    if not chunked:
        return await reader.read(65536) or None
    size = int(await reader.readline(), 16)
    data = await reader.readexactly(size + 2)
    return data[:-2] if size else None
