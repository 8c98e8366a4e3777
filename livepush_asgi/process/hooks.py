"""StreamHooks: calls the application's hooks, and logs the end of each stream if that is asked for."""

import asyncio
import inspect
import logging
from collections.abc import Callable

from ..grant import Grant
from ..runtime.event_loop import now
from ..runtime.failure_log import FailureLog
from ..stream.stream import Stream
from ..wire.reasons import EndReason

# It gets one line of level INFO for each end, if the application sets its level. An application that sets the
# level of the root logger to INFO does not ask for a line per client.
stream_logger = logging.getLogger("livepush_asgi.streams")
if stream_logger.level == logging.NOTSET:
    stream_logger.setLevel(logging.WARNING)

#: Called when a stream opens.
OnOpen = Callable[[Grant], object]
#: Called when a stream has ended, with the reason and the duration in seconds.
OnEnd = Callable[[Grant, EndReason, float], object]


class StreamHooks:
    """Calls `on_open` and `on_end` for the streams of one run. Whatever a hook raises is logged."""

    def __init__(self, on_open: OnOpen | None, on_end: OnEnd | None) -> None:
        self._on_open = on_open
        self._on_end = on_end
        # When each open stream was opened, by the loop's clock.
        self._opened_at: dict[Stream, float] = {}
        self._failures = FailureLog()

    def opened(self, stream: Stream) -> None:
        """Called when a stream has its slot and is attached to its channels."""
        self._opened_at[stream] = now()
        if self._on_open is not None:
            self._call("on_open", self._on_open, stream.grant)

    def ended(self, stream: Stream, reason: EndReason) -> None:
        """Called when a stream has closed."""
        duration = now() - self._opened_at.pop(stream)
        grant = stream.grant
        if stream_logger.isEnabledFor(logging.INFO):
            stream_logger.info(
                "a stream ended: %s after %.1f s, channels %s, slot key %r",
                reason.value,
                duration,
                ", ".join(map(repr, grant.channel_names)),
                grant.slot_key,
            )
        if self._on_end is not None:
            self._call("on_end", self._on_end, grant, reason, duration)

    def _call(self, name: str, hook: Callable[..., object], *arguments: object) -> None:
        try:
            result = hook(*arguments)
            if inspect.iscoroutine(result):
                result.close()
                raise TypeError(f"{name} returned a coroutine, and hooks are plain functions")
        except (Exception, asyncio.CancelledError) as error:
            # A plain function is not cancelled: it has asked a future that was.
            self._failures.log(logging.ERROR, "%s raised, and the stream is not affected", name, error=error)


def make_hooks(on_open: OnOpen | None, on_end: OnEnd | None) -> StreamHooks | None:
    """Return the hooks for a run, or None if nobody wants to know of its streams."""
    wanted = on_open is not None or on_end is not None or stream_logger.isEnabledFor(logging.INFO)
    return StreamHooks(on_open, on_end) if wanted else None
