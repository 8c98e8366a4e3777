"""Carry a stream over ASGI: the start, its chunks as body messages, and the watch for the client's going.

https://asgi.readthedocs.io/en/latest/specs/www.html#http
"""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

import anyio
import anyio.lowlevel

from ..runtime.asgi import Message, Receive, Send
from ..runtime.disconnect import Departure
from ..runtime.event_loop import on_asyncio
from ..runtime.inline_send import DirectSend
from ..runtime.tcp_timeout import Limited
from ..stream.stream import Stream
from ..wire.reasons import EndReason, StreamState

# What `send` raises when the client is gone: OSError by specification 2.4, anyio's own errors where the
# server or a middleware is written with it.
GONE = (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError)

RawHeaders = Sequence[tuple[bytes, bytes]]

# No `Connection`, `Transfer-Encoding` or `Content-Length`: they are the server's, and wrong on HTTP/2.
STREAM_HEADERS: RawHeaders = (
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
)


def carry(
    stream: Stream, headers: RawHeaders, receive: Receive, send: Send, client: object = None
) -> Coroutine[Any, Any, None]:
    """Send the stream until it ends or the client is gone, and close it whatever happens.

    `receive` is watched all the time, whatever spec version the server names: some servers raise
    from `send` when the client has left, some swallow what is sent, some tell by `receive` only.
    `client` is what `scope["client"]` says.
    """
    limited = stream.context.connections.limit(client, receive)
    carrier = _AsyncioCarrier if on_asyncio() else _AnyioCarrier
    return carrier(stream, send, limited).run(headers, receive)


class _Carrier(DirectSend):
    """What both have in common: what becomes of errors, and the watch."""

    __slots__ = ("_failure", "_limited", "_stream")

    def __init__(self, stream: Stream, send: Send, limited: Limited | None) -> None:
        super().__init__(send)
        self._stream = stream
        self._limited = limited
        self._failure: Exception | None = None

    async def _watch(self, receive: Receive) -> None:
        try:
            while (await receive())["type"] != "http.disconnect":
                # A request body is of no interest. The checkpoint is for a `receive` that never waits.
                await anyio.lowlevel.checkpoint()
        except Exception as error:
            self.failed(error)
        else:
            self.left()

    def left(self) -> None:
        """Hear that the client has gone."""
        # The kernel may have been the first to give up a client that takes nothing.
        self._depart(EndReason.SLOW if self._stream.stalled else EndReason.DISCONNECT)

    def failed(self, error: Exception) -> None:
        """Hear that `receive` has raised."""
        self._failure = self._failure or error
        self._depart(EndReason.ERROR)

    def _depart(self, reason: EndReason) -> None:
        self._stream.abort(reason)

    def note(self, error: Exception) -> None:
        """Take note that `send` has failed: mostly that means no more than that the client is gone."""
        if isinstance(error, GONE):
            self._stream.end(EndReason.DISCONNECT)
        elif self._stream.reason is not EndReason.DISCONNECT:
            self._stream.end(EndReason.ERROR)
            self._failure = self._failure or error

    def _release(self, *, stuck: bool) -> None:
        limited, self._limited = self._limited, None
        self._stream.context.connections.release(limited, stuck=stuck)

    def _close(self) -> None:
        self._stream.carrier = None
        # Still unended, it was cancelled from outside: the server took the connection away.
        self._stream.end(EndReason.DISCONNECT)
        self._release(stuck=self._stream.reason is not EndReason.DISCONNECT)
        self._stream.close()

    def _raise(self) -> None:
        """Raise what has failed; out here, where it is not wrapped in a group, for the server to log."""
        if self._failure is not None:
            raise self._failure


class _AnyioCarrier(_Carrier):
    """Two tasks of anyio: one writes, one watches."""

    __slots__ = ("_scope",)

    async def run(self, headers: RawHeaders, receive: Receive) -> None:
        try:
            async with anyio.create_task_group() as tasks:
                self._scope = tasks.cancel_scope
                self._stream.carrier = self
                tasks.start_soon(self._watch, receive)
                await self._write(headers)
                tasks.cancel_scope.cancel()
        finally:
            self._close()
        self._raise()

    async def _write(self, headers: RawHeaders) -> None:
        stream, send = self._stream, self._send
        try:
            # The response starts when the stream has opened: what is published then reaches the client.
            chunk = await stream.next_chunk()
            await send({"type": "http.response.start", "status": 200, "headers": list(headers)})
            while stream.state is not StreamState.CLOSED:
                await send(_body(chunk, more=not stream.finished))
                if stream.finished:
                    break
                chunk = await stream.next_chunk()
            if stream.state is not StreamState.CLOSED:
                self._release(stuck=False)
        except Exception as error:
            self.note(error)

    def interrupt(self) -> None:
        self._scope.cancel()


class _AsyncioCarrier(_Carrier):
    """The same with less: a task group, its scope and its events are half of what an idle stream holds.

    And most of what it sends is sent directly, without waking any task.
    """

    __slots__ = ("_cancelled_before", "_departure", "_interrupted", "_task", "_watcher")

    def __init__(self, stream: Stream, send: Send, limited: Limited | None) -> None:
        super().__init__(stream, send, limited)
        self._interrupted = False
        self._task: asyncio.Task[Any] | None = None
        self._departure: Departure | None = None
        self._watcher: asyncio.Task[None] | None = None

    async def run(self, headers: RawHeaders, receive: Receive) -> None:
        # One coroutine from the start to the end: each is 500 bytes, and there are ten thousand of them.
        stream, send = self._stream, self._send
        try:
            self._begin(receive)
            # The response starts when the stream has opened: what is published then reaches the client.
            chunk = await stream.next_chunk()
            await send({"type": "http.response.start", "status": 200, "headers": list(headers)})
            del headers, receive
            stream.direct = self if stream.context.inline_send and self.applies(send) else None
            while stream.state is not StreamState.CLOSED:
                if chunk or stream.finished:
                    await send(_body(chunk, more=not stream.finished))
                if stream.finished:
                    break
                # Not to be held while the stream sleeps.
                chunk = b""
                chunk = await stream.next_chunk()
                if self.unfinished:
                    await self.finish()
            if stream.state is not StreamState.CLOSED:
                self._release(stuck=False)
        except Exception as error:
            self.note(error)
        except asyncio.CancelledError:
            if self._is_cancelled_from_outside():
                raise
        finally:
            self._close()
            await self._end_watcher()
        self._raise()

    def _begin(self, receive: Receive) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._cancelled_before = task.cancelling()
        self._stream.carrier = self
        if self._stream.context.inline_send and Departure.applies(receive):
            self._departure = Departure(receive, self)
            self._departure.listen()
        else:
            self._watcher = task.get_loop().create_task(self._watch(receive))
        # Not before: an eager watcher may have seen the client go, and a running task cannot be interrupted.
        self._task = task

    def _is_cancelled_from_outside(self) -> bool:
        # As asyncio.timeout does: what was asked for here ends here, what comes from outside goes on.
        task = asyncio.current_task()
        assert task is not None
        return not self._interrupted or task.uncancel() > self._cancelled_before

    async def _end_watcher(self) -> None:
        watcher, self._watcher = self._watcher, None
        if watcher is not None and not watcher.done():
            watcher.cancel()
            # Whatever becomes of this wait, the watcher ends: it has been told.
            await asyncio.wait([watcher])

    def _depart(self, reason: EndReason) -> None:
        if self._departure is None:
            self._stream.abort(reason)
        elif self._stream.state is not StreamState.CLOSED:
            # Outside of any task: the stream's own gives back what was taken, in its next step.
            self._stream.end(reason)
            self.interrupt()

    def _close(self) -> None:
        # First of all what was taken is given back, whatever a `send` makes of being given up.
        super()._close()
        # Nothing of a stream is left for the garbage collector: what refers back is let go.
        self._stream.direct = self._task = None
        departure, self._departure = self._departure, None
        if departure is not None:
            departure.close()
        self.give_up()

    def interrupt(self) -> None:
        # In the task itself nothing has to be interrupted: it sees at its next step that all is over.
        task = self._task
        if task is not None and not self._interrupted and asyncio.current_task() is not task:
            self._interrupted = True
            task.cancel()


def _body(chunk: bytes, *, more: bool) -> Message:
    return {"type": "http.response.body", "body": chunk, "more_body": more}
