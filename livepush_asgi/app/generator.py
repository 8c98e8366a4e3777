"""The response from a generator: one client's stream of the events of an async iterator, without a broker."""

import logging
import threading
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from datetime import datetime
from typing import TypedDict, Unpack

from ..brokers.memory import MemoryBroker
from ..errors import InvalidGrantError
from ..grant import Refusal, SourceGrant
from ..http.authorize import INVALID, REFUSED_ERRORS, Refused, refused_for
from ..http.driver import STREAM_HEADERS, RawHeaders
from ..http.responses import refuse
from ..process.process import Process
from ..runtime.asgi import Receive, Scope, Send
from ..runtime.failure_log import fields
from ..stream.source import close_unused, iterator_of
from ..stream.source_stream import SourceStream
from ..wire.reasons import RefusalCause
from .livepush import LivePush
from .service import (
    FiniteStream,
    SSEStream,
    SSEStreamService,
    StreamBody,
    refuse_all,
    soft_refusal,
    sse_headers,
)

logger = logging.getLogger("livepush_asgi")

_thread = threading.local()


class SourceTerms(TypedDict, total=False):
    """The terms of a stream of a generator. Each may be left out.

    `push` is the LivePush of the application, whose timing, limits, slots, drain, `encode`, hooks and
    statistics then hold. Without it all such streams of the process share one of their own, with the defaults
    and without slots, which starts at the first request and drains at SIGTERM.
    `slot_key` takes a slot of `push.slots`; `push.disconnect(slot_key=...)` ends the stream. It needs `push`.
    `expires_at` ends the stream, an aware datetime or seconds since the epoch.
    `control_events` sends `livepush.open` at the start and `livepush.close` at the end. Without it a soft
    refusal is a `livepush.refused` event all the same.
    """

    push: LivePush | SSEStreamService | None
    slot_key: str | None
    expires_at: datetime | float | None
    control_events: bool


def default_push() -> LivePush:
    """Return the LivePush of streams without one: one per thread, since a thread runs one event loop."""
    found: LivePush | None = getattr(_thread, "push", None)
    if found is None:
        found = _thread.push = LivePush(MemoryBroker(), refuse_all)
    return found


async def open_source(
    scope: Mapping[str, object], source: AsyncIterable[object], **terms: Unpack[SourceTerms]
) -> SSEStream | FiniteStream:
    """Open a stream for an async iterator, which the stream closes. It runs when the stream is sent.

    For HEAD, and for a soft refusal, returns a FiniteStream. Raises Refused if the client gets no stream. In
    all three cases the iterator is closed and has not run.
    """
    iterator = iterator_of(source)
    stream: SSEStream | FiniteStream | None = None
    try:
        push, grant = _resolve(**terms)
        if scope.get("method") == "HEAD":
            return FiniteStream(sse_headers())
        stream = await _open(push, grant, iterator, scope.get("client"))
        return stream
    finally:
        if not isinstance(stream, SSEStream):
            await close_unused(iterator)


def _resolve(
    push: LivePush | SSEStreamService | None = None,
    slot_key: str | None = None,
    expires_at: datetime | float | None = None,
    control_events: bool = False,
    **unknown: object,
) -> tuple[LivePush, SourceGrant]:
    """Return the LivePush and the Grant that the terms mean. Raises Refused for an invalid slot key."""
    if unknown:
        names = ", ".join(f"`{name}`" for name in sorted(unknown))
        raise TypeError(
            f"a stream of a generator takes no {names}; it takes "
            "`push`, `slot_key`, `expires_at` and `control_events`. Set headers and a background task on the "
            "response; what other libraries call `ping` is Timing(heartbeat_interval=...) of `push`"
        )
    if push is None and slot_key is not None:
        raise TypeError("a slot_key needs the LivePush whose slots it counts in: push=push, slot_key=...")
    if isinstance(push, SSEStreamService):
        push = push.push
    if push is not None and not isinstance(push, LivePush):
        raise TypeError(f"push is a LivePush, or left out, not {push!r:.100}")
    try:
        grant = SourceGrant(slot_key=slot_key, expires_at=expires_at, control_events=control_events)
    except InvalidGrantError as error:
        # Routes make keys of what their clients send.
        logger.info(
            "a client named an invalid slot key, and got a 400: %s",
            error,
            extra=fields("invalid_name", error=str(error)),
        )
        raise Refused(Refusal(400, INVALID), RefusalCause.AUTHORIZE) from error
    return push or default_push(), grant


async def _open(
    push: LivePush, grant: SourceGrant, iterator: AsyncIterator[object], client: object
) -> SSEStream | FiniteStream:
    try:
        stream, process = await push._open_granted(grant, source=iterator)
    except REFUSED_ERRORS as error:
        return soft_refusal(refused_for(error, push.soft_refusals), push)
    assert isinstance(stream, SourceStream)
    return SSEStream(sse_headers(), SourceBody(stream, process, client))


class SourceBody(StreamBody):
    """The bytes of a stream of a source. It ends after the source was closed."""

    def __init__(self, stream: SourceStream, process: Process, client: object) -> None:
        super().__init__(stream, process, limited=process.context.tcp_timeouts.limit(client))
        self._source = stream.source

    async def __anext__(self) -> bytes:
        try:
            return await super().__anext__()
        except StopAsyncIteration:
            await self._source.wait_closed()
            raise

    async def aclose(self) -> None:
        """Close the stream, and wait until its source is closed, for a bounded time."""
        await super().aclose()
        await self._source.wait_closed()

    async def respond(self, receive: Receive, send: Send, headers: RawHeaders = STREAM_HEADERS) -> None:
        """Send the stream as an ASGI response, and wait until its source is closed."""
        try:
            await super().respond(receive, send, headers)
        finally:
            await self._source.wait_closed()


async def send_event_stream(
    scope: Scope,
    receive: Receive,
    send: Send,
    source: AsyncIterable[object],
    **terms: Unpack[SourceTerms],
) -> None:
    """Answer an ASGI HTTP request with the events of an async iterator, and return when it is closed.

    `source` yields Events, or data for one as `publish` takes it: `yield {"n": 1}` sends JSON. It needs no
    broker. It runs no further than the client takes: while a `send` waits, it produces one event more.
    It is closed when it ends or raises, when the client leaves or takes nothing for `Timing.send_timeout`,
    and in a drain. Its `finally` may then await for 3 seconds. For the terms see SourceTerms. A request that
    is refused gets the refusal's status, and the source does not run; nor does it for HEAD.
    """
    try:
        stream = await open_source(scope, source, **terms)
    except Refused as refused:
        await refuse(send, refused, [])
        return
    headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in stream.headers.items()]
    await stream.body.respond(receive, send, [(b"content-type", b"text/event-stream"), *headers])
