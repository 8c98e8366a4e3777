"""SourceStream: a stream whose events come from a Source instead of channels."""

from collections.abc import Callable

from ..grant import Grant
from ..runtime.event_loop import wake
from ..wire.control import open_block, retry_line
from ..wire.cursor import Position
from ..wire.event import HEARTBEAT
from ..wire.reasons import EndReason, StreamState
from .composer import Composer
from .context import StreamContext
from .source import Source
from .stream import Stream


class SourceComposer(Composer):
    """Composes the chunks of a stream without channels from those of its source."""

    __slots__ = ("_source",)

    def __init__(self, context: StreamContext, grant: Grant, source: Source, *, control_events: bool) -> None:
        super().__init__(context, grant, {}, control_events=control_events, last_event_id=None)
        self._source = source

    def open(self, retry: int) -> bool:
        """Compose the open event, or the reconnection time `retry` alone. Always returns True."""
        self._count_opening(resumed=False)
        self._head = open_block(retry, None, resumed=False) if self._control_events else retry_line(retry)
        return True

    def ready(self) -> bytes:
        """Return the next chunk, or b"" if nothing is ready. Sets `end_reason` at the end of the source."""
        chunk = self.flush()
        self.end_reason = self._source.end_reason
        if not chunk and self.heartbeat_due and self.end_reason is None:
            chunk = HEARTBEAT
        self.heartbeat_due = False
        return chunk

    def flush(self) -> bytes:
        """Return what waits as one chunk."""
        head, self._head = self._head, b""
        block = self._source.take()
        if block:
            self.sent_events += 1
        return head + block

    def discard(self) -> None:
        """Discard everything that has not been sent."""
        super().discard()
        self._source.take()


class SourceStream(Stream):
    """One client's stream of the events of a source. Its end closes the source, if possible before."""

    __slots__ = ("source",)

    def __init__(
        self,
        context: StreamContext,
        grant: Grant,
        on_closed: Callable[[Stream], None],
        source: Source,
        *,
        control_events: bool,
    ) -> None:
        self.source = source
        super().__init__(context, grant, on_closed, control_events=control_events)

    def end(self, reason: EndReason) -> None:
        """End the stream and close its source. Returns at once."""
        super().end(reason)
        self.source.stop()

    def _make_composer(self, ends: dict[str, Position], last_event_id: str | None) -> Composer:
        return SourceComposer(self.context, self.grant, self.source, control_events=self._control_events)

    def _ready(self) -> bytes:
        if self.state is StreamState.OPENING:
            # Here and not earlier: this is the task of the request, with its context variables.
            self.source.start(self._source_ready)
        return super()._ready()

    def _last_chunk(self) -> bytes:
        # Until then the events that the source has produced go out.
        return super()._last_chunk() if self.source.over or self.finished else self._composer.flush()

    def _source_ready(self) -> None:
        # Sent before the next step of the source, which may block the event loop.
        if self._parked and (chunk := self._composer.ready()):
            self._send_inline(chunk, self._now())
        else:
            wake(self.sleeping)
