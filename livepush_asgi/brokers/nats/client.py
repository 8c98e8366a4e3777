"""nats-py's client, which reconnects by itself, with the changes that this package needs.

The docstring of each override says which behaviour of nats-py (2.9 to 2.16) it changes.
`tests/test_nats_reconnect.py` and the fault contract fail without them.
"""

import asyncio
import contextlib
from collections.abc import Callable

from nats.aio import client as nats_client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.errors import UnexpectedEOF
from nats.protocol.parser import PERMISSIONS_ERR

from ...runtime.event_loop import start_task
from ..mailbox import MESSAGES_BETWEEN_PAUSES
from .failures import FAILURES

# How long to wait for the tasks of nats-py to end when the socket is closed already, in seconds.
_CLOSE_TIMEOUT = 1.0


class Receiver(asyncio.Future[Msg]):
    """Calls `take` at once with each message of a subscription.

    nats-py sets the result of this future for each message. An ordinary subscription has a queue, which drops
    messages when it is full, and a task, of which ten thousand cost much memory.
    """

    __slots__ = ("_take",)

    def __init__(self, take: Callable[[Msg], None]) -> None:
        super().__init__()
        self._take = take

    def set_result(self, message: Msg, /) -> None:
        """Take one message."""
        self._take(message)


class Client(nats_client.Client):
    """A client that gives up a dead connection at once, with all commands that were not sent on it."""

    def __init__(self, on_lost: Callable[[Exception], None]) -> None:
        super().__init__()
        self._on_lost = on_lost
        self._messages_since_pause = 0
        self._next_pong: asyncio.Future[object] | None = None

    def ping(self) -> asyncio.Future[object]:
        """Send a PING, which the server answers when it has processed all commands so far.

        The future is cancelled if the connection is lost before. Do not cancel it: nats-py stops reading when
        a PONG arrives for a future that is done. All calls within one turn of the event loop share it.
        """
        if self._next_pong is None:
            self._next_pong = asyncio.get_running_loop().create_future()
            start_task(self._send_next_ping(), "livepush nats ping")
        return self._next_pong

    async def flush(self, timeout: float = 0) -> None:
        """Return when the server has processed all commands so far. nats-py calls this after a reconnect.

        Its own version gives up after 10 s and leaves the connection open.
        """
        await asyncio.shield(self.ping())

    def drop(self) -> None:
        """Close the socket at once. nats-py would wait until all is sent, which a dead server never reads.

        It would also send the pending commands on the next connection, after their publishers got an error.
        """
        self._pending, self._pending_data_size = [], 0
        pongs, self._pongs, self._next_pong = [*self._pongs, self._next_pong], [], None
        # There is no public access to it. A web socket has no writer.
        writer = getattr(self._transport, "_io_writer", None)
        # RuntimeError: the connection belongs to an event loop that is closed.
        with contextlib.suppress(RuntimeError):
            for pong in pongs:
                if pong is not None:
                    pong.cancel()
            if isinstance(writer, asyncio.StreamWriter):
                writer.transport.abort()

    async def aclose(self) -> None:
        """Close the connection at once. Raises CancelledError only."""
        self.drop()
        with contextlib.suppress(RuntimeError, *FAILURES):
            async with asyncio.timeout(_CLOSE_TIMEOUT):
                await self.close()

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        """Pause during a burst, and drop messages that the buffer of a lost connection still has.

        A server that sends is alive: its PONG is behind messages that this process has not read yet.
        """
        if self.is_reconnecting:
            return
        self._pings_outstanding = 0
        await super()._process_msg(sid, subject, reply, data, headers)
        self._messages_since_pause += 1
        if self._messages_since_pause >= MESSAGES_BETWEEN_PAUSES:
            self._messages_since_pause = 0
            await asyncio.sleep(0)

    async def _process_err(self, message: str) -> None:
        """Reconnect after an error for which nats-py closes for good, such as credentials that expire."""
        if PERMISSIONS_ERR in message:
            await super()._process_err(message)
        else:
            await self._process_op_err(NatsError(f"nats: {message}"))

    async def _process_op_err(self, error: Exception) -> None:
        """Drop and report a lost connection before nats-py closes it and connects again."""
        if self.is_connected:
            self.drop()
            closed = ConnectionResetError("the server has closed the connection")
            self._on_lost(closed if isinstance(error, UnexpectedEOF) else error)
        await super()._process_op_err(error)

    async def _send_ping(self, future: asyncio.Future[object] | None = None) -> None:
        """Send a PING after the commands that wait to be sent. nats-py's own PING overtakes them."""
        self._pongs.append(asyncio.get_running_loop().create_future() if future is None else future)
        await self._send_command(nats_client.PING_PROTO)
        await self._flush_pending()

    async def _send_next_ping(self) -> None:
        pong, self._next_pong = self._next_pong, None
        # There is none if the connection was lost meanwhile.
        if pong is not None:
            await self._send_ping(pong)
