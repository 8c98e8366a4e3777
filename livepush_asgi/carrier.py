"""Carry a stream over ASGI: the start, its chunks as body messages, and the watch for the client's going.

https://asgi.readthedocs.io/en/latest/specs/www.html#http
"""

from collections.abc import Sequence

import anyio
import anyio.lowlevel

from .reasons import EndReason
from .stream import Stream, StreamState
from .types import Message, Receive, Send

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


async def carry(stream: Stream, headers: RawHeaders, receive: Receive, send: Send) -> None:
    """Send the stream until it ends or the client is gone, and close it whatever happens.

    `receive` is watched all the time, whatever spec version the server names: some servers raise
    from `send` when the client has left, some swallow what is sent, some tell by `receive` only.
    """
    failures: list[Exception] = []
    try:
        async with anyio.create_task_group() as tasks:
            stream.on_abort = tasks.cancel_scope.cancel
            tasks.start_soon(_watch, stream, receive, failures)
            await _write(stream, headers, send, failures)
            tasks.cancel_scope.cancel()
    finally:
        # Still unended, it was cancelled from outside: the server took the connection away.
        stream.end(EndReason.DISCONNECT)
        stream.close()
    # Raised out here, where it is not wrapped in a group, for the server to log.
    if failures:
        raise failures[0]


async def _write(stream: Stream, headers: RawHeaders, send: Send, failures: list[Exception]) -> None:
    try:
        await send({"type": "http.response.start", "status": 200, "headers": list(headers)})
        while not stream.finished:
            chunk = await stream.next_chunk()
            if stream.state is StreamState.CLOSED:
                return
            await send(_body(chunk, more=not stream.finished))
    except GONE:
        stream.end(EndReason.DISCONNECT)
    except Exception as error:
        if stream.reason is not EndReason.DISCONNECT:
            stream.end(EndReason.ERROR)
            failures.append(error)


async def _watch(stream: Stream, receive: Receive, failures: list[Exception]) -> None:
    try:
        while (await receive())["type"] != "http.disconnect":
            # A request body is of no interest. The checkpoint is for a `receive` that never waits.
            await anyio.lowlevel.checkpoint()
        stream.abort(EndReason.DISCONNECT)
    except Exception as error:
        failures.append(error)
        stream.abort(EndReason.ERROR)


def _body(chunk: bytes, *, more: bool) -> Message:
    return {"type": "http.response.body", "body": chunk, "more_body": more}
