"""StreamHooks: calls the application's hooks and the observers, and logs the end of each stream on demand."""

import asyncio
import inspect
import logging
from collections.abc import Callable, Sequence

from ..grant import Grant
from ..runtime.failure_log import FailureLog, fields
from ..stream.counts import Sent
from ..stream.stream import Stream
from ..wire.reasons import EndReason
from .observer import Observer

# It gets one line of level INFO for each end, if the application sets its level. An application that sets the
# level of the root logger to INFO does not ask for a line per client.
stream_logger = logging.getLogger("livepush_asgi.streams")
if stream_logger.level == logging.NOTSET:
    stream_logger.setLevel(logging.WARNING)

#: Called when a stream opens.
OnOpen = Callable[[Grant], object]
#: Called when a stream has ended, with the reason, the duration in seconds, and what was sent.
OnEnd = Callable[[Grant, EndReason, float, Sent], object]


class StreamHooks:
    """Calls `on_open`, `on_end` and the observers for the streams of a process, and logs what they raise."""

    def __init__(
        self, on_open: OnOpen | None, on_end: OnEnd | None, observers: Sequence[Observer] = ()
    ) -> None:
        self._on_open = on_open
        self._on_end = on_end
        self._observers = observers
        self._failures = FailureLog()

    def opened(self, stream: Stream) -> None:
        """Called when a stream has its slot and is attached to its channels."""
        if self._on_open is not None:
            self._call("on_open", self._on_open, stream.grant)

    def responded(self, stream: Stream, seconds: float) -> None:
        """Called when the response of a stream starts, so many seconds after its request."""
        for observer in self._observers:
            self._call("an observer", observer.opened, stream, seconds)

    def sample(self, observer: Observer) -> None:
        """Call the `sample` of an observer."""
        self._call("an observer", observer.sample)

    def ended(self, stream: Stream, reason: EndReason, duration: float) -> None:
        """Called when a stream has closed that was open for so many seconds."""
        for observer in self._observers:
            self._call("an observer", observer.ended, stream, reason, duration)
        grant, sent = stream.grant, stream.sent
        if stream_logger.isEnabledFor(logging.INFO):
            stream_logger.info(
                "a stream ended: %s after %.1f s, %d events and %d bytes sent, channels %s, slot key %r",
                reason.value,
                duration,
                sent.events,
                sent.bytes,
                ", ".join(map(repr, grant.channel_names)),
                grant.slot_key,
                extra=fields(
                    "stream_ended",
                    reason=reason.value,
                    seconds=duration,
                    events=sent.events,
                    bytes=sent.bytes,
                    channels=grant.channel_names,
                    slot_key=grant.slot_key,
                ),
            )
        if self._on_end is not None:
            self._call("on_end", self._on_end, grant, reason, duration, sent)

    def _call(self, name: str, hook: Callable[..., object], *arguments: object) -> None:
        try:
            result = hook(*arguments)
            if inspect.iscoroutine(result):
                result.close()
                raise TypeError(f"{name} returned a coroutine, and hooks are plain functions")
        except (Exception, asyncio.CancelledError) as error:
            # A plain function is not cancelled: it has asked a future that was.
            self._failures.log(
                logging.ERROR,
                "%s raised, and the stream is not affected",
                name,
                error=error,
                extra=fields("hook_failed", name=name),
            )


def make_hooks(
    on_open: OnOpen | None, on_end: OnEnd | None, observers: Sequence[Observer] = ()
) -> StreamHooks | None:
    """Return the hooks for a process, or None if nobody wants to know of its streams."""
    wanted = on_open is not None or on_end is not None or stream_logger.isEnabledFor(logging.INFO)
    return StreamHooks(on_open, on_end, observers) if wanted or observers else None
