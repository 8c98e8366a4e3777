"""A client that speaks HTTP/2 only and can leave one stream of a connection, as browsers do."""

import asyncio
import contextlib
import ssl
from types import TracebackType
from typing import Self

import h2.config
import h2.connection
import h2.errors
import h2.events

from livepush_asgi.testing import EventStreamParser, ParsedEvent

HEAD = 9


class Http2Stream:
    """One request and its answer, as far as it has come."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.status = 0
        self.body = b""
        self.events: list[ParsedEvent] = []
        self.ended = False
        self.changed = asyncio.Event()
        self._parser = EventStreamParser()

    def take(self, data: bytes) -> None:
        self.body += data
        self.events += self._parser.feed(data)

    async def until(self, name: str, *, timeout: float = 60.0) -> ParsedEvent:
        """Wait for the first event of this name."""
        async with asyncio.timeout(timeout):
            while True:
                for event in self.events:
                    if event.event == name:
                        return event
                assert not self.ended, self.body
                await self._change()

    async def read_to_end(self, *, timeout: float = 60.0) -> bytes:
        """Wait for its end, and return the body."""
        async with asyncio.timeout(timeout):
            while not self.ended:
                await self._change()
        return self.body

    async def _change(self) -> None:
        self.changed.clear()
        await self.changed.wait()


class Http2Client:
    """One connection, inside an `async with` block: from the first byte, or with TLS."""

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        self._port = port
        self._tls = tls
        self._connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))
        self._streams: dict[int, Http2Stream] = {}

    async def __aenter__(self) -> Self:
        name = "localhost" if self._tls else None
        self._reader, self._writer = await asyncio.open_connection(
            "127.0.0.1", self._port, ssl=self._tls, server_hostname=name
        )
        self._connection.initiate_connection()
        self._send()
        self._task = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._task.cancel()
        self._writer.transport.abort()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    def request(self, path: str, *, method: str = "GET", body: bytes = b"") -> Http2Stream:
        """Send a request, and return its answer, which is still to come."""
        number = self._connection.get_next_available_stream_id()
        stream = self._streams[number] = Http2Stream(number)
        scheme = "https" if self._tls else "http"
        authority = f"localhost:{self._port}"
        fields = [(":method", method), (":scheme", scheme), (":authority", authority), (":path", path)]
        self._connection.send_headers(number, fields, end_stream=not body)
        if body:
            self._connection.send_data(number, body, end_stream=True)
        self._send()
        return stream

    def leave(self, stream: Http2Stream) -> None:
        """Leave one stream; the connection stays."""
        self._connection.reset_stream(stream.number, h2.errors.ErrorCodes.CANCEL)
        self._send()

    def _send(self) -> None:
        self._writer.write(self._connection.data_to_send())

    async def _read(self) -> None:
        try:
            # A server that has ended may reset the connection.
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                while frame := await self._read_frame():
                    for event in self._connection.receive_data(frame):
                        self._handle(event)
                    self._send()
        finally:
            for stream in self._streams.values():
                stream.ended = True
                stream.changed.set()

    async def _read_frame(self) -> bytes:
        # https://www.rfc-editor.org/rfc/rfc9113#section-4.1
        head = await self._reader.read(HEAD)
        if head:
            head += await self._reader.readexactly(HEAD - len(head))
            head += await self._reader.readexactly(int.from_bytes(head[:3]))
        return head

    def _handle(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.ConnectionTerminated):
            # It begins no more streams and goes on with those that it has, which h2 does not know of.
            self._connection.state_machine.state = h2.connection.ConnectionState.CLIENT_OPEN
        stream = self._streams.get(getattr(event, "stream_id", None) or 0)
        if stream is None:
            return
        if isinstance(event, h2.events.ResponseReceived):
            # Text, by the configuration, whatever the types say.
            stream.status = int(dict(event.headers)[b":status"])
        elif isinstance(event, h2.events.DataReceived):
            self._connection.acknowledge_received_data(event.flow_controlled_length, stream.number)
            stream.take(event.data)
        elif isinstance(event, (h2.events.StreamEnded, h2.events.StreamReset)):
            stream.ended = True
        stream.changed.set()
