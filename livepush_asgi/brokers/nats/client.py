"""nats-py's client, which reconnects by itself, with what it lacks for this package.

Each override names the behaviour of nats-py (2.16) that it changes. The tests are in `tests/test_nats_reconnect.py`.
"""

import asyncio
import contextlib
from collections.abc import Callable

from nats.aio import client as nats_client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.errors import UnexpectedEOF
from nats.protocol.parser import PERMISSIONS_ERR

from ...loop import start_task
from .failures import FAILURES, no_answer

#: How many messages may fill the outboxes before the streams get a turn to send.
MESSAGES_BETWEEN_YIELDS = 32
# How long to wait for the tasks of nats-py to end when the socket is closed already, in seconds.
_CLOSE_TIMEOUT = 1.0


class Receiver(asyncio.Future[Msg]):
    """Calls `take` with each message of a subscription at once.

    nats-py sets the result of such a future instead of filling the queue and running the task of an ordinary
    subscription. The queue drops messages when it is full; ten thousand tasks cost memory.
    """

    def __init__(self, take: Callable[[Msg], None]) -> None:
        super().__init__()
        self._take = take

    def set_result(self, message: Msg, /) -> None:
        """Take one message."""
        self._take(message)


class Client(nats_client.Client):
    """A client that gives up a connection as soon as it is known to be dead, and sends nothing twice."""

    def __init__(self, ping_timeout: float) -> None:
        super().__init__()
        self._ping_timeout = ping_timeout
        self._messages_since_yield = 0
        self._next_pong: asyncio.Future[object] | None = None
        #: Why the connection was lost last.
        self.fault: Exception = ConnectionResetError("the connection has ended")

    async def confirm(self, timeout: float) -> None:
        """Wait until the server has processed everything that was sent before. Raises one of FAILURES.

        All calls within one turn of the event loop share a PING.
        """
        pong = self._next_pong
        if pong is None:
            pong = self._next_pong = asyncio.get_running_loop().create_future()
            start_task(self._send_ping(pong), "livepush nats ping")
        # Never cancelled: nats-py stops reading when a PONG arrives for a cancelled future.
        await asyncio.wait({pong}, timeout=timeout)
        if not pong.done():
            raise no_answer(timeout)
        failure = pong.result()
        if isinstance(failure, Exception):
            raise failure

    async def flush(self, timeout: float = 0) -> None:
        """Do as `confirm`, and give the connection up if the server does not answer in time.

        nats-py calls this after a reconnect. Its own version waits 10 s and then leaves the connection open.
        """
        try:
            await self.confirm(timeout or self._ping_timeout)
        except TimeoutError as error:
            await self._process_op_err(error)
            raise

    def abort(self) -> None:
        """Close the socket at once. A polite close waits until all is sent, and a dead server reads nothing."""
        # nats-py has no public access to it, and a web socket has no writer.
        writer = getattr(self._transport, "_io_writer", None)
        if isinstance(writer, asyncio.StreamWriter):
            # RuntimeError: the connection belongs to an event loop that is closed.
            with contextlib.suppress(RuntimeError):
                writer.transport.abort()

    async def aclose(self) -> None:
        """Close the connection at once. Raises nothing, except when cancelled."""
        self._drop_connection(ConnectionAbortedError("the connection was closed"))
        with contextlib.suppress(RuntimeError, *FAILURES):
            async with asyncio.timeout(_CLOSE_TIMEOUT):
                await self.close()

    async def _process_msg(self, *message: object) -> None:
        """Yield to other tasks during a burst, and drop what a lost connection still had in its buffer."""
        if self.is_reconnecting:
            return
        await super()._process_msg(*message)
        self._messages_since_yield += 1
        if self._messages_since_yield >= MESSAGES_BETWEEN_YIELDS:
            self._messages_since_yield = 0
            await asyncio.sleep(0)

    async def _process_err(self, message: str) -> None:
        """Reconnect after an error that nats-py ends the client for, such as expired credentials."""
        if PERMISSIONS_ERR in message:
            await super()._process_err(message)
        else:
            await self._process_op_err(NatsError(f"nats: {message}"))

    async def _process_op_err(self, error: Exception) -> None:
        """Close a lost connection at once, and never send later what was not sent on it."""
        if self.is_connected:
            self._drop_connection(error)
        await super()._process_op_err(error)

    async def _send_ping(self, pong: asyncio.Future[object] | None = None) -> None:
        """Send a PING behind the commands that wait to be sent. nats-py's overtakes them."""
        if pong is None:
            pong = asyncio.get_running_loop().create_future()
        if pong is self._next_pong:
            self._next_pong = None
        if pong.done():
            return
        if not self.is_connected:
            pong.set_result(self.fault)
            return
        self._pongs.append(pong)
        await self._send_command(nats_client.PING_PROTO)
        await self._flush_pending()

    def _drop_connection(self, error: Exception) -> None:
        if isinstance(error, UnexpectedEOF):
            error = ConnectionResetError("the server has closed the connection")
        self.fault = error
        self._pending = []
        self._pending_data_size = 0
        pongs = [*self._pongs, self._next_pong]
        self._pongs, self._next_pong = [], None
        for pong in pongs:
            # A result and no exception: asyncio would log one that nobody retrieves.
            if pong is not None and not pong.done():
                pong.set_result(error)
        self.abort()
