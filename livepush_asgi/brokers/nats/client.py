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
from ..timeouts import no_answer
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

    def __init__(self, ping_timeout: float) -> None:
        super().__init__()
        self._ping_timeout = ping_timeout
        self._messages_since_pause = 0
        self._next_pong: asyncio.Future[object] | None = None
        self._pong_timers: dict[asyncio.Future[object], asyncio.TimerHandle] = {}
        #: The reason for the last loss of the connection.
        self.fault: Exception = ConnectionResetError("the connection has ended")

    def ping(self) -> asyncio.Future[object]:
        """Send a PING, which the server answers when it has processed all commands so far.

        The result of the future is True, or the error that prevented an answer. Do not cancel the future:
        nats-py stops reading when a PONG arrives for a future that is done. All calls within one turn of the
        event loop share it. If the server sends nothing for `ping_timeout` seconds, the connection is given
        up.
        """
        pong = self._next_pong
        if pong is None:
            pong = self._next_pong = asyncio.get_running_loop().create_future()
            start_task(self._send_ping(pong), "livepush nats ping")
        return pong

    async def flush(self, timeout: float = 0) -> None:
        """Return when the server has processed all commands so far. nats-py calls this after a reconnect.

        Its own version gives up after 10 s and leaves the connection open.
        """
        failure = await asyncio.shield(self.ping())
        if isinstance(failure, Exception):
            raise failure

    def abort(self) -> None:
        """Close the socket at once. nats-py would wait until all is sent, which a dead server never reads."""
        # There is no public access to it. A web socket has no writer.
        writer = getattr(self._transport, "_io_writer", None)
        if isinstance(writer, asyncio.StreamWriter):
            # RuntimeError: the connection belongs to an event loop that is closed.
            with contextlib.suppress(RuntimeError):
                writer.transport.abort()

    async def aclose(self) -> None:
        """Close the connection at once. Raises CancelledError only."""
        self._drop_connection(ConnectionAbortedError("the connection was closed"))
        with contextlib.suppress(RuntimeError, *FAILURES):
            async with asyncio.timeout(_CLOSE_TIMEOUT):
                await self.close()

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        """Pause during a burst, and drop messages that the buffer of a lost connection still has."""
        if self.is_reconnecting:
            return
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
        """Drop a lost connection before nats-py closes it and connects again."""
        if self.is_connected:
            self._drop_connection(error)
        await super()._process_op_err(error)

    async def _send_ping(self, future: asyncio.Future[object] | None = None) -> None:
        """Send a PING after the commands that wait to be sent. nats-py's own PING overtakes them."""
        pong = asyncio.get_running_loop().create_future() if future is None else future
        if pong is self._next_pong:
            self._next_pong = None
        if not pong.done() and not self.is_connected:
            pong.set_result(self.fault)
        if not pong.done():
            pong.add_done_callback(lambda done: self._pong_timers.pop(done).cancel())
            self._start_pong_timer(pong)
            self._pongs.append(pong)
            await self._send_command(nats_client.PING_PROTO)
            await self._flush_pending()

    def _start_pong_timer(self, pong: asyncio.Future[object]) -> None:
        loop, seen = asyncio.get_running_loop(), self.stats["in_msgs"]
        self._pong_timers[pong] = loop.call_later(self._ping_timeout, self._check_pong, pong, seen)

    def _check_pong(self, pong: asyncio.Future[object], seen: int) -> None:
        if self.stats["in_msgs"] > seen:
            # The server is alive: its answer comes after messages that this process has not read yet.
            self._start_pong_timer(pong)
        else:
            error = no_answer(self._ping_timeout)
            start_task(self._process_op_err(error), "livepush nats reconnect")

    def _drop_connection(self, error: Exception) -> None:
        if isinstance(error, UnexpectedEOF):
            error = ConnectionResetError("the server has closed the connection")
        self.fault = error
        # nats-py would send the pending commands on the next connection, after their publishers got an error.
        self._pending = []
        self._pending_data_size = 0
        pongs, self._pongs = [*self._pongs, self._next_pong], []
        for pong in pongs:
            if pong is not None and not pong.done():
                pong.set_result(error)
        self.abort()
