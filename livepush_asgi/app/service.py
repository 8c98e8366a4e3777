"""SSEStreamService: the stream as headers and an async iterator of bytes, for frameworks whose views
return a streaming response. The surface of mgf-livepush, kept.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import anyio

from ..brokers import Broker
from ..errors import GrantRevokedError, LivePushError, NotRunningError
from ..grant import Grant, Refusal, StreamRequest
from ..http.driver import STREAM_HEADERS, RawHeaders, drive
from ..process.run import Run
from ..process.statistics import Statistics
from ..runtime.asgi import Receive, Send
from ..runtime.tcp_timeout import Limited
from ..settings import DrainPolicy, Limits, Timing
from ..slots import Slots
from ..stream.stream import Stream
from ..wire.reasons import EndReason
from .livepush import LivePush

IsDisconnected = Callable[[], Awaitable[bool]]

# How often a framework is asked whether the client is gone, in seconds. It is the only way to learn it
# where the framework neither cancels nor closes the body.
DISCONNECT_POLL = 0.5
# What mgf-livepush told its clients, in seconds: it pairs with the Retry-After of a full cap.
RETRY = 5.0


def sse_headers() -> dict[str, str]:
    """Return the headers that keep proxies from caching, changing or holding back a stream."""
    return {"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no"}


class StreamBody:
    """The bytes of one stream. Iterate it once; it gives everything back at its end.

    Also when it is closed (`aclose`), cancelled, left to the garbage collector, or never iterated
    for as long as the send timeout.
    """

    def __init__(
        self,
        stream: Stream,
        run: Run,
        is_disconnected: IsDisconnected | None = None,
        limited: Limited | None = None,
    ) -> None:
        self._stream = stream
        self._run = run
        self._is_disconnected = is_disconnected
        # Without `is_disconnected` only the heartbeat wakes an idle stream.
        self._patience = None if is_disconnected is None else DISCONNECT_POLL
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
                chunk = await self._stream.next_chunk(self._patience)
                if self._is_disconnected is not None and await self._is_disconnected():
                    self._stream.end(EndReason.DISCONNECT)
                    break
                if chunk:
                    return chunk
        except BaseException:
            # Cancelled: the framework ends the response, and some do not close what they iterate.
            await self.aclose()
            raise
        self._stream.close()
        self._release(stuck=False)
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Give everything back. Returns at once; harmless the second time."""
        self._stream.end(EndReason.DISCONNECT)
        self._stream.close()
        self._release(stuck=self._stream.reason is not EndReason.DISCONNECT)

    def close(self) -> None:
        """Give everything back soon. May be called from any thread; harmless the second time."""
        if not self._stream.finished:
            self._run.call_threadsafe(partial(self._stream.abort, EndReason.DISCONNECT))
        limited, self._limited = self._limited, None
        if limited is not None:
            stuck = self._stream.reason not in (None, EndReason.DISCONNECT)
            self._run.call_threadsafe(partial(self._run.context.connections.release, limited, stuck=stuck))

    async def respond(self, receive: Receive, send: Send, headers: RawHeaders = STREAM_HEADERS) -> None:
        """Send the stream as a whole ASGI response instead: no iterator, no polling."""
        # From here on the limit is that of the response.
        client = self._limited
        self._release(stuck=False)
        await drive(self._stream, headers, receive, send, client)

    def _release(self, *, stuck: bool) -> None:
        limited, self._limited = self._limited, None
        self._run.context.connections.release(limited, stuck=stuck)

    def __del__(self) -> None:
        # The collector may run anywhere, in another thread too; the loop does it when it comes to it.
        self.close()


@dataclass
class SSEStream:
    """What `open_stream` gives: the headers to set on the response and the bytes of its body."""

    headers: dict[str, str]
    body: StreamBody


class SSEStreamService:
    """Streams over a broker with a slot cap, for routes that authenticate by themselves.

    An application that has a LivePush opens streams with `SSEStreamService.of(push)`, and has one
    hub, one clock and one drain for both. `namespace` and `inline_send` are what they are for a LivePush.
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
            _nobody,
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

        Raises CapExceededError when the cap is full, before anything else is taken, what the broker raises
        when it cannot subscribe, GrantRevokedError if `disconnect` named the stream meanwhile, and
        NotRunningError while draining. Where the broker does not answer within `Timing.subscribe_timeout` the
        stream opens all the same. `is_disconnected` is asked twice a second; leave it
        out where the framework cancels or closes the body when the client has gone. `last_event_id` is
        what the client sent as such: without it, a client that comes back is not told what it missed.
        `client` is what `scope["client"]` says: known, it is noticed when it vanishes while nothing is sent
        but heartbeats.
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
        """Open a stream for a Grant: several channels, an expiry. Otherwise as `open_stream`."""
        stream, run = await self.push.open_stream(grant, last_event_id=last_event_id)
        try:
            # A broker that does not answer is not waited for any longer than in a mount.
            with anyio.move_on_after(self.push.timing.subscribe_timeout):
                if (failure := await run.hub.wait_attempted(grant.channel_names)) is not None:
                    raise failure
            if stream.finished:
                # Meanwhile it was cut: by a revocation, or because the process ends.
                raise _refused_by(stream.reason)
        except BaseException as error:
            # Cancelled by a framework whose client has left already: many do, where many come at once.
            left = isinstance(error, anyio.get_cancelled_exc_class())
            stream.end(EndReason.DISCONNECT if left else EndReason.ERROR)
            stream.close()
            raise
        limited = run.context.connections.limit(client)
        return SSEStream(sse_headers(), StreamBody(stream, run, is_disconnected, limited))

    async def aclose(self) -> None:
        """End every stream and give everything back."""
        await self.push.stop()

    def statistics(self) -> Statistics:
        """Return the numbers to watch."""
        return self.push.statistics()


def _refused_by(reason: EndReason | None) -> LivePushError:
    if reason is EndReason.REVOKED:
        return GrantRevokedError("the stream was revoked while it was being opened")
    return NotRunningError("no new streams: this process is giving up its streams, or has stopped")


def _nobody(request: StreamRequest) -> Refusal:
    return Refusal(404)
