"""SSEStreamService: a stream as headers and an async iterator of bytes.

For frameworks whose views return a streaming response. It has the interface of mgf-livepush.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Self

import anyio

from ..brokers import Broker
from ..errors import GrantRevokedError, LivePushError, NotRunningError
from ..grant import Authorize, Grant, Refusal, RunGrant, StreamRequest
from ..http.authorize import Refused
from ..http.driver import STREAM_HEADERS, RawHeaders, drive
from ..http.responses import soft_block
from ..process.process import NOT_RUNNING, Process
from ..process.statistics import Statistics
from ..runtime.asgi import Receive, Send
from ..runtime.tcp_timeout import Limited
from ..settings import DrainPolicy, Limits, Timing
from ..slots import Slots
from ..stream.stream import Stream
from ..wire.reasons import EndReason
from .livepush import LivePush

IsDisconnected = Callable[[], Awaitable[bool]]

# How often `is_disconnected` is called, in seconds. It is needed where the framework neither cancels nor
# closes the body after a disconnect.
DISCONNECT_POLL = 0.5
# The reconnection time of mgf-livepush, in seconds. It equals the Retry-After of a full cap.
RETRY = 5.0


def sse_headers() -> dict[str, str]:
    """Return the headers that keep proxies from caching, transforming or buffering a stream."""
    return {"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no"}


def _headers_of(grant: Grant) -> dict[str, str]:
    own = grant.dialect.headers if isinstance(grant, RunGrant) else {}
    return {**sse_headers(), **own}


class StreamBody:
    """The bytes of one stream, as an async iterator. Iterate it once.

    It closes its stream when the stream ends, on `aclose`, when the iteration is cancelled, when it is
    garbage-collected, and when it was not iterated for the send timeout.
    """

    def __init__(
        self,
        stream: Stream,
        process: Process,
        is_disconnected: IsDisconnected | None = None,
        limited: Limited | None = None,
    ) -> None:
        self._stream = stream
        self._process = process
        self._is_disconnected = is_disconnected
        # Without `is_disconnected` an idle stream need not wake up before its heartbeat.
        self._poll_interval = None if is_disconnected is None else DISCONNECT_POLL
        self._limited = limited

    @property
    def end_reason(self) -> EndReason | None:
        """Why the stream ended, None while it has not."""
        return self._stream.reason

    def __aiter__(self) -> "StreamBody":
        return self

    async def __anext__(self) -> bytes:
        try:
            while not self._stream.finished:
                chunk = await self._stream.next_chunk(self._poll_interval)
                if self._is_disconnected is not None and await self._is_disconnected():
                    self._stream.end(EndReason.DISCONNECT)
                    break
                if chunk:
                    return chunk
        except BaseException:
            # Some frameworks do not close the body after they cancelled its iteration.
            await self.aclose()
            raise
        self._stream.close()
        self._release(stuck=False)
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Close the stream. Returns at once; harmless the second time."""
        self._stream.end(self._stream.departure)
        self._stream.close()
        self._release(stuck=self._stream.reason is not EndReason.DISCONNECT)

    def close(self) -> None:
        """Close the stream soon. Any thread may call this; harmless the second time."""
        if not self._stream.finished:
            self._process.call_threadsafe(partial(self._stream.abort, EndReason.DISCONNECT))
        limited, self._limited = self._limited, None
        if limited is not None:
            stuck = self._stream.reason not in (None, EndReason.DISCONNECT)
            self._process.call_threadsafe(
                partial(self._process.context.tcp_timeouts.release, limited, stuck=stuck)
            )

    async def respond(self, receive: Receive, send: Send, headers: RawHeaders = STREAM_HEADERS) -> None:
        """Send the stream as an ASGI response, instead of iterating it. Does not poll `is_disconnected`."""
        # `drive` sets the TCP timeout itself.
        client = self._limited
        self._release(stuck=False)
        await drive(self._stream, headers, receive, send, client)

    def _release(self, *, stuck: bool) -> None:
        limited, self._limited = self._limited, None
        self._process.context.tcp_timeouts.release(limited, stuck=stuck)

    def __del__(self) -> None:
        # The garbage collector may run in any thread, so use `close` and not `aclose`.
        self.close()


@dataclass
class SSEStream:
    """The result of `open_stream`: the headers and the body of the response."""

    headers: dict[str, str]
    body: StreamBody


class FiniteStream:
    """Stands for an SSEStream where none is open: the answer to HEAD, or a soft refusal.

    It is its own body, of one block or of none, and holds nothing to give back.
    """

    def __init__(self, headers: dict[str, str], block: bytes = b"", status: int = 200) -> None:
        self.headers = headers
        self._block = block
        self._status = status

    @property
    def body(self) -> Self:
        """The stream itself."""
        return self

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._block:
            yield self._block

    async def aclose(self) -> None:
        """Do nothing."""

    async def respond(self, receive: Receive, send: Send, headers: RawHeaders = STREAM_HEADERS) -> None:
        """Send the block as a whole ASGI response."""
        await send({"type": "http.response.start", "status": self._status, "headers": list(headers)})
        await send({"type": "http.response.body", "body": self._block, "more_body": False})


def refusal_headers(refusal: Refusal) -> dict[str, str]:
    """Return the header fields of a refusal, with `Retry-After` if it has one."""
    retry_after = {} if refusal.retry_after is None else {"Retry-After": str(refusal.retry_after)}
    return {**refusal.headers, **retry_after}


def soft_refusal(refused: Refused, push: LivePush) -> FiniteStream:
    """Return the response of a soft refusal. Raises a refusal that is not soft."""
    if not refused.soft:
        raise refused
    block = soft_block(refused, refused.cause, push.timing)
    return FiniteStream({**sse_headers(), **refusal_headers(refused)}, block)


class SSEStreamService:
    """Streams over a broker with a slot cap, for routes that authenticate by themselves.

    An application that has a LivePush opens streams with `SSEStreamService.of(push)`, so that both share one
    hub, one scheduler and one drain. `namespace` and `inline_send` are those of LivePush.
    """

    def __init__(
        self,
        broker: Broker,
        slot_cap: Slots | None = None,
        *,
        heartbeat_seconds: float | None = 15.0,
        limits: Limits | None = None,
        drain: DrainPolicy | None = None,
        control_events: bool = True,
        namespace: str | None = None,
        inline_send: bool = True,
    ) -> None:
        self.push = LivePush(
            broker,
            refuse_all,
            slots=slot_cap,
            timing=Timing(heartbeat_interval=heartbeat_seconds, retry=RETRY),
            limits=limits,
            drain=drain,
            control_events=control_events,
            namespace=namespace,
            inline_send=inline_send,
        )

    @classmethod
    def of(cls, push: LivePush) -> "SSEStreamService":
        """Return a service that opens its streams in an existing LivePush."""
        service = cls.__new__(cls)
        service.push = push
        return service

    async def open_stream(
        self,
        *,
        channel: str,
        slot_key: str | None = None,
        is_disconnected: IsDisconnected | None = None,
        last_event_id: str | None = None,
        client: object = None,
    ) -> SSEStream:
        """Take a slot, subscribe, and return the stream.

        The caller has authorized the client. A revocation between that decision and this call is missed;
        `open_authorized` misses none.

        `is_disconnected` is called twice a second; leave it out if the framework cancels or closes the body
        after a disconnect. `last_event_id` is the last event id of the client; without it, a client that
        reconnects does not resume. `client` is `scope["client"]`; with it, a client that vanishes is detected
        even while the stream sends only heartbeats.

        Raises CapExceededError if all slots are taken, before it subscribes; what the broker raises if it
        cannot subscribe; GrantRevokedError if `disconnect` revokes the stream while it is opened; and
        NotRunningError in a drain. If the broker does not answer within `Timing.subscribe_timeout`, the
        stream opens without it.
        """
        grant = Grant(channels=channel, slot_key=slot_key)
        return await self.open_granted(grant, is_disconnected, last_event_id, client)

    async def open_granted(
        self,
        grant: Grant,
        is_disconnected: IsDisconnected | None = None,
        last_event_id: str | None = None,
        client: object = None,
    ) -> SSEStream:
        """Open a stream for a Grant, with several channels for example. Otherwise as `open_stream`."""
        stream, process = await self.push._open_granted(grant, last_event_id=last_event_id)
        return await self._wait_open(stream, process, is_disconnected, client)

    async def open_authorized(
        self, authorize: Authorize, request: StreamRequest, is_disconnected: IsDisconnected | None = None
    ) -> SSEStream:
        """Open the stream that `authorize` grants. It has the signature of the `authorize` of LivePush.

        No revocation is missed. If `disconnect` revokes the stream while `authorize` decides, or while the
        stream waits for its slot, `authorize` is called again. It is also called again for the open stream
        if revocations may have been lost; the stream then ends unless `authorize` returns an equal Grant.

        Raises a Refusal if `authorize` refuses, raises or takes too long. Otherwise as `open_stream`.
        """
        stream, process = await self.push._open_authorized(authorize, request)
        return await self._wait_open(stream, process, is_disconnected, request.scope.get("client"))

    async def _wait_open(
        self, stream: Stream, process: Process, is_disconnected: IsDisconnected | None, client: object
    ) -> SSEStream:
        try:
            # A stream of a LivePush waits for the broker for the same time.
            with anyio.move_on_after(self.push.timing.subscribe_timeout):
                if (failure := await process.hub.wait_attempted(stream.grant.channel_names)) is not None:
                    raise failure
            if stream.finished:
                # A revocation or a drain ended the stream while it waited.
                raise _error_for(stream.reason)
        except BaseException as error:
            # A framework cancels the view when the client leaves.
            left = isinstance(error, anyio.get_cancelled_exc_class())
            stream.end(EndReason.DISCONNECT if left else EndReason.ERROR)
            stream.close()
            raise
        limited = process.context.tcp_timeouts.limit(client)
        return SSEStream(_headers_of(stream.grant), StreamBody(stream, process, is_disconnected, limited))

    async def aclose(self) -> None:
        """Drain and stop."""
        await self.push.stop()

    def statistics(self) -> Statistics:
        """Return the numbers to watch."""
        return self.push.statistics()


def _error_for(reason: EndReason | None) -> LivePushError:
    if reason is EndReason.REVOKED:
        return GrantRevokedError("the stream was revoked while it was being opened")
    return NotRunningError(NOT_RUNNING)


def refuse_all(request: StreamRequest) -> Refusal:
    """Refuse: the `authorize` of a LivePush whose streams are opened by routes alone."""
    return Refusal(404)
