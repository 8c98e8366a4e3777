"""nats-py's client, which reconnects by itself, with the changes that this package needs.

The docstring of each override says which behaviour of nats-py (2.9 to 2.16) it changes.
`tests/test_nats_reconnect.py` and the fault contract fail without most of them.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import TypeVar

from nats.aio import client as nats_client
from nats.errors import Error as NatsError
from nats.errors import StaleConnectionError, UnexpectedEOF
from nats.protocol.parser import PERMISSIONS_ERR

from ...runtime.event_loop import start_task
from ..mailbox import MESSAGES_BETWEEN_PAUSES
from .failures import FAILURES

Result = TypeVar("Result")

# How long to wait for the tasks of nats-py to end when the socket is closed already, in seconds.
_CLOSE_TIMEOUT = 1.0


class Receiver(asyncio.Future[Result]):
    """Calls `take` at once with each message of a subscription, or with a PONG.

    nats-py sets the result of this future for each of them. An ordinary subscription has a queue, which drops
    messages when it is full, and a task, of which ten thousand cost much memory. `take` must not raise, since
    nats-py would stop reading.
    """

    __slots__ = ("_take",)

    def __init__(self, take: Callable[[Result], None]) -> None:
        super().__init__()
        self._take = take

    def set_result(self, result: Result, /) -> None:
        """Take one message."""
        self._take(result)


def settle(future: asyncio.Future[Result], outcome: Result | Exception) -> None:
    """Set the result of a future, or its exception, unless it has one or its caller is gone."""
    if future.done():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


class Client(nats_client.Client):
    """A client that gives up a dead connection at once, with all commands that were not sent on it."""

    def __init__(self, on_lost: Callable[[Exception], None]) -> None:
        super().__init__()
        self._on_lost = on_lost
        self._messages_since_pause = 0
        self._when_processed: list[Callable[[], None]] = []

    def when_processed(self, callback: Callable[[], None]) -> None:
        """Call a function when the server has processed all commands so far. It must not raise.

        It is not called if the connection is lost before. All calls within one turn of the event loop share
        one PING.
        """
        if not self._when_processed:
            start_task(self._send_shared_ping(), "livepush nats ping")
        self._when_processed.append(callback)

    def drop(self) -> None:
        """Close the socket at once. nats-py would wait until all is sent, which a dead server never reads.

        It would also send the pending commands on the next connection, after their publishers got an error.
        """
        self._pending, self._pending_data_size = [], 0
        self._pongs, self._when_processed = [], []
        # There is no public access to it. A web socket has no writer.
        writer = getattr(self._transport, "_io_writer", None)
        if isinstance(writer, asyncio.StreamWriter):
            # RuntimeError: the connection belongs to an event loop that is closed.
            with contextlib.suppress(RuntimeError):
                writer.transport.abort()

    async def aclose(self) -> None:
        """Close the connection at once. Raises CancelledError only."""
        self.drop()
        # AttributeError: nats-py 2.9 has no socket yet.
        with contextlib.suppress(RuntimeError, AttributeError, *FAILURES):
            async with asyncio.timeout(_CLOSE_TIMEOUT):
                await self.close()

    async def flush(self, timeout: float = 0) -> None:
        """Do nothing. nats-py flushes after a reconnect, gives up after 10 s, and leaves the socket open."""

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
        """Drop a lost connection before nats-py closes it and connects again, and report it at once."""
        was_connected = self.is_connected
        if was_connected:
            self.drop()
        await super()._process_op_err(error)
        if isinstance(error, UnexpectedEOF):
            error = ConnectionResetError("the server has closed the connection")
        elif isinstance(error, StaleConnectionError):
            error = TimeoutError("the server does not answer")
        if was_connected:
            self._on_lost(error)

    async def _send_ping(self, future: asyncio.Future[bool] | None = None) -> None:
        """Send a PING after the commands that wait to be sent. nats-py's own PING overtakes them."""
        self._pongs.append(asyncio.get_running_loop().create_future() if future is None else future)
        await self._send_command(nats_client.PING_PROTO)
        await self._flush_pending()

    async def _send_shared_ping(self) -> None:
        callbacks, self._when_processed = self._when_processed, []
        # There are none if the connection was lost meanwhile.
        if callbacks:

            def call_all(pong: bool) -> None:
                for callback in callbacks:
                    callback()

            await self._send_ping(Receiver(call_all))
