"""A relay between a client and a server: adds TLS, delays, holds or cuts traffic, loses replies."""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import trustme
from anyio.abc import ByteStream, TaskStatus
from anyio.streams.tls import TLSListener

from .server_process import free_port

# How often a relay that holds everything looks whether it still has to, and how long a server may take to
# answer the request that `cut_after` names: seconds.
LOOK = 0.01
ACTING = 1.0
# The exceptions that tell that a side has gone.
GONE = (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream)


class Authority:
    """A certificate authority of its own, and a server's certificate for `localhost` from it."""

    def __init__(self, directory: Path) -> None:
        authority = trustme.CA()
        self.ca_file = directory / "ca.pem"
        authority.cert_pem.write_to_path(self.ca_file)
        self.server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost").configure_cert(self.server_context)


class Relay:
    """Passes everything on to a port and back. It speaks TLS to its clients if it gets a context.

    A connection on which `cut_after` was seen is closed when the server has acted on it, without the
    client getting the reply. Each reply is delayed by `delay` seconds.
    """

    def __init__(
        self, target: int, *, tls: ssl.SSLContext | None = None, cut_after: bytes | None = None
    ) -> None:
        self.port = free_port()
        self.target = target
        self._tls = tls
        self._cut_after = cut_after
        self._connections: set[anyio.CancelScope] = set()
        self.delay = 0.0
        #: Hold all traffic; connections stay open.
        self.still = False
        #: Close new connections at once.
        self.closed = False

    @contextmanager
    def cut(self) -> Iterator[None]:
        """Close all connections, and every new one until the block ends."""
        self.closed = True
        for scope in self._connections:
            scope.cancel()
        yield
        self.closed = False

    async def serve(self, *, task_status: TaskStatus[None]) -> None:
        """Serve until cancelled."""
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=self.port)
        async with listener:
            task_status.started()
            if self._tls is None:
                await listener.serve(self._relay)
            else:
                await TLSListener(listener, self._tls, standard_compatible=False).serve(self._relay)

    async def _relay(self, client: ByteStream) -> None:
        async with client:
            if self.closed:
                return
            try:
                server = await anyio.connect_tcp("127.0.0.1", self.target)
            except OSError:
                return
            async with server, anyio.create_task_group() as tasks:
                self._connections.add(tasks.cancel_scope)
                tasks.start_soon(self._pass_replies, server, client, tasks.cancel_scope)
                await self._pass_requests(client, server, tasks.cancel_scope)
                tasks.cancel_scope.cancel()
            self._connections.discard(tasks.cancel_scope)

    async def _pass_requests(self, client: ByteStream, server: ByteStream, scope: anyio.CancelScope) -> None:
        try:
            async for data in client:
                await self._hold(0)
                if self._cut_after is None or self._cut_after not in data:
                    await server.send(data)
                    continue
                scope.cancel()
                with anyio.move_on_after(ACTING, shield=True):
                    await server.send(data)
                    await server.receive()
                return
        except GONE:
            return

    async def _hold(self, seconds: float) -> None:
        await anyio.sleep(seconds)
        while self.still:  # noqa: ASYNC110  (a plain attribute, so that tests set it anywhere)
            await anyio.sleep(LOOK)

    async def _pass_replies(self, server: ByteStream, client: ByteStream, scope: anyio.CancelScope) -> None:
        try:
            async for data in server:
                await self._hold(self.delay)
                await client.send(data)
        except GONE:
            pass
        scope.cancel()
