"""Drivers: send a stream as ASGI messages, and watch for the client's disconnect.

https://asgi.readthedocs.io/en/latest/specs/www.html#http
"""

import asyncio
from collections.abc import Coroutine, Sequence
from contextvars import copy_context
from typing import Any

import anyio
import anyio.lowlevel

from ..grant import Grant, RunGrant
from ..runtime.asgi import Message, Receive, Send
from ..runtime.disconnect import DisconnectWatcher
from ..runtime.inline_send import InlineSend, can_step
from ..runtime.tcp_timeout import Limited
from ..stream.stream import Stream
from ..wire.reasons import EndReason, StreamState

# The errors of `send` after a disconnect: OSError by specification 2.4, and the errors of anyio if the server
# or a middleware uses it.
DISCONNECT_ERRORS = (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError)

RawHeaders = Sequence[tuple[bytes, bytes]]

# The server sets `Connection`, `Transfer-Encoding` and `Content-Length`; they are wrong on HTTP/2.
STREAM_HEADERS: RawHeaders = (
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
)


def stream_headers(grant: Grant) -> RawHeaders:
    """Return the header fields of the response with this grant's stream."""
    if not isinstance(grant, RunGrant):
        return STREAM_HEADERS
    own = grant.dialect.headers.items()
    return [*STREAM_HEADERS, *[(name.lower().encode(), value.encode()) for name, value in own]]


def drive(
    stream: Stream, headers: RawHeaders, receive: Receive, send: Send, client: object = None
) -> Coroutine[Any, Any, None]:
    """Send the stream until it ends or the client disconnects, and close it in any case.

    The driver always watches `receive`, whatever spec version the server names: after a disconnect some
    servers raise from `send`, some drop the messages, and some report it through `receive` only. `client` is
    `scope["client"]`.
    """
    if stream.context.on_asyncio:
        return _AsyncioDriver(stream, receive, send).run(headers, receive, client)
    return _AnyioDriver(stream, send).run(headers, receive, client)


class _Driver(InlineSend):
    """The common part of both drivers: errors, and the watch for the disconnect."""

    __slots__ = ("_failure", "_limited", "_stream")

    def __init__(self, stream: Stream, send: Send) -> None:
        super().__init__(send)
        self._stream = stream
        self._limited: Limited | None = None
        self._failure: Exception | None = None

    async def _watch(self, receive: Receive) -> None:
        try:
            while (await receive())["type"] != "http.disconnect":
                # Ignore the request body. The checkpoint is for a `receive` that never waits.
                await anyio.lowlevel.checkpoint()
        except Exception as error:
            self.receive_failed(error)
        else:
            self.client_left()

    def client_left(self) -> None:
        """End the stream: the client has disconnected."""
        self._end_stream(self._stream.departure)

    def receive_failed(self, error: Exception) -> None:
        """End the stream: `receive` has raised."""
        self._failure = self._failure or error
        self._end_stream(EndReason.ERROR)

    def _end_stream(self, reason: EndReason) -> None:
        self._stream.abort(reason)

    def send_failed(self, error: Exception) -> None:
        """End the stream: `send` has raised, in most cases because the client has disconnected."""
        if isinstance(error, DISCONNECT_ERRORS):
            self._stream.end(self._stream.departure)
        elif self._stream.reason is not EndReason.DISCONNECT:
            self._stream.end(EndReason.ERROR)
            self._failure = self._failure or error

    def _release(self, *, stuck: bool) -> None:
        limited, self._limited = self._limited, None
        self._stream.context.tcp_timeouts.release(limited, stuck=stuck)

    def _close(self) -> None:
        self._stream.driver = None
        # A stream that has not ended was cancelled from outside: the server closed the connection.
        self._stream.end(self._stream.departure)
        self._release(stuck=self._stream.reason is not EndReason.DISCONNECT)
        self._stream.close()

    def _raise_failure(self) -> None:
        """Raise the failure, for the server to log. Called outside of the task group, which would wrap it."""
        if self._failure is not None:
            raise self._failure


class _AnyioDriver(_Driver):
    """A driver of two tasks: one sends the chunks, one watches for the disconnect."""

    __slots__ = ("_scope",)

    async def run(self, headers: RawHeaders, receive: Receive, client: object) -> None:
        try:
            self._limited = self._stream.context.tcp_timeouts.limit(client, receive)
            async with anyio.create_task_group() as tasks:
                self._scope = tasks.cancel_scope
                self._stream.driver = self
                tasks.start_soon(self._watch, receive)
                await self._write(headers)
                tasks.cancel_scope.cancel()
        finally:
            self._close()
        self._raise_failure()

    async def _write(self, headers: RawHeaders) -> None:
        stream, send = self._stream, self._send
        try:
            # Start the response when the stream has opened: every later event reaches the client.
            chunk = stream.take_chunk() or await stream.next_chunk()
            await send({"type": "http.response.start", "status": 200, "headers": list(headers)})
            while stream.state is not StreamState.CLOSED:
                if chunk or stream.finished:
                    await send(_body(chunk, more=not stream.finished))
                if stream.finished:
                    break
                chunk = await stream.next_chunk()
            if stream.state is not StreamState.CLOSED:
                self._release(stuck=False)
        except Exception as error:
            self.send_failed(error)

    def interrupt(self) -> None:
        self._scope.cancel()


class _AsyncioDriver(_Driver):
    """A driver for asyncio without a task group, which would double the memory of an idle stream.

    It sends most chunks inline, without waking a task.
    """

    __slots__ = ("_cancelled_before", "_disconnect", "_inline", "_interrupted", "_task", "_watcher")

    def __init__(self, stream: Stream, receive: Receive, send: Send) -> None:
        super().__init__(stream, send)
        may_step = stream.context.inline_send
        self._inline = may_step and self.can_begin
        self._disconnect = DisconnectWatcher(receive, self) if may_step and can_step(receive) else None
        self._interrupted = False
        self._task: asyncio.Task[Any] | None = None
        self._watcher: asyncio.Task[None] | None = None

    async def run(self, headers: RawHeaders, receive: Receive, client: object) -> None:
        # One coroutine for the whole stream: each coroutine takes 500 bytes per stream.
        stream, send = self._stream, self._send
        try:
            self._begin(receive, client)
            # Start the response when the stream has opened: every later event reaches the client.
            chunk = stream.take_chunk() or await stream.next_chunk()
            await send({"type": "http.response.start", "status": 200, "headers": list(headers)})
            del headers, receive
            self._context = None if self._is_stepped else copy_context()
            stream.inline = self._inline
            while stream.state is not StreamState.CLOSED:
                if chunk or stream.finished:
                    await send(_body(chunk, more=not stream.finished))
                    if stream.finished:
                        break
                else:
                    try:
                        assert stream.sleeping is not None
                        await stream.sleeping
                    finally:
                        stream.awake()
                    if self.unfinished is not None:
                        await self.finish()
                chunk = stream.take_chunk()
            if stream.state is not StreamState.CLOSED:
                self._release(stuck=False)
        except Exception as error:
            self.send_failed(error)
        except asyncio.CancelledError:
            if self._is_cancelled_from_outside():
                raise
        finally:
            unfinished = self.unfinished
            self._close()
            await self._end_watcher()
            if isinstance(unfinished, asyncio.Task) and not unfinished.done():
                # The application ends after everything that it has started.
                await asyncio.wait([unfinished])
        self._raise_failure()

    def _begin(self, receive: Receive, client: object) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._cancelled_before = task.cancelling()
        self._limited = self._stream.context.tcp_timeouts.limit(client, receive)
        self._stream.driver = self
        if self._disconnect is not None:
            self._disconnect.start()
        else:
            self._watcher = task.get_loop().create_task(self._watch(receive))
        # Set last: an eager watcher may see the disconnect at once, and `interrupt` must not cancel this
        # task.
        self._task = task

    def _is_cancelled_from_outside(self) -> bool:
        # As in `asyncio.timeout`: a cancellation by `interrupt` ends here, and one from outside goes on.
        task = asyncio.current_task()
        assert task is not None
        return not self._interrupted or task.uncancel() > self._cancelled_before

    async def _end_watcher(self) -> None:
        watcher, self._watcher = self._watcher, None
        if watcher is not None and not watcher.done():
            watcher.cancel()
            # The watcher ends even if this wait is cancelled.
            await asyncio.wait([watcher])

    def _end_stream(self, reason: EndReason) -> None:
        if self._disconnect is None:
            self._stream.abort(reason)
        elif self._stream.state is not StreamState.CLOSED:
            # This runs outside of any task. The stream's task closes the stream in its next step.
            self._stream.end(reason)
            self.interrupt()

    def _close(self) -> None:
        # Close the stream first: closing an unfinished `send` may raise.
        super()._close()
        # Break the reference cycles, so that the stream needs no garbage collection.
        self._stream.inline, self._task = False, None
        disconnect, self._disconnect = self._disconnect, None
        if disconnect is not None:
            disconnect.close()
        self.abandon()

    def interrupt(self) -> None:
        # The task itself checks in its next step whether the stream is closed, so it need not be cancelled.
        task = self._task
        if task is not None and not self._interrupted and asyncio.current_task() is not task:
            self._interrupted = True
            task.cancel()


def _body(chunk: bytes, *, more: bool) -> Message:
    return {"type": "http.response.body", "body": chunk, "more_body": more}
