"""SubscriberStream: a stream that code of this process reads, instead of a client.

It keeps the promise by the same outbox, recovery and gaps as every stream. It tells its reader more than a
client: the channel of each event, and the event id even for an event that has an id of its own.
"""

import logging
from collections.abc import Callable

from ..grant import Grant
from ..hub.delivery import Batch
from ..runtime.failure_log import fields
from ..wire.control import origin_line
from ..wire.cursor import Position
from ..wire.event import with_id
from .composer import Composer
from .context import StreamContext
from .stream import Stream


class _OriginComposer(Composer):
    """Composes each event behind a line with its channel and the event id after it."""

    __slots__ = ()

    def __init__(
        self, context: StreamContext, grant: Grant, ends: dict[str, Position], last_event_id: str | None
    ) -> None:
        super().__init__(context, grant, ends, control_events=True, last_event_id=last_event_id)
        # Blocks with the id of a single channel are shared by all streams, and lack the line.
        self._single_channel = False

    def _compose_page(self, page: Batch) -> bytes:
        # The bytes of a page that clients share lack the lines.
        self._gap_queued = self._gap_queued or page.has_gap
        return self._compose(page)

    def _compose(self, batch: Batch) -> bytes:
        self._gap_queued = self._gap_queued and self._outbox_filled
        blocks = []
        for delivery in batch.deliveries:
            if delivery.position is not None:
                self._recovery.mark_sent(delivery.channel, delivery.position)
            if delivery.gap:
                blocks.append(with_id(delivery.bare, self._id))
            else:
                line, block = origin_line(delivery.channel, self._id), delivery.bare or delivery.block
                if block.count(b"\n\n") > 1:
                    # Another program has published several blocks as one event.
                    block = block[:-2].replace(b"\n\n", b"\n\n" + line) + block[-2:]
                blocks += line, block
        return b"".join(blocks)


class SubscriberStream(Stream):
    """A stream without deadlines: its reader may take any time for an event, and no client has to be kept.

    Read it with `next_chunk` until it is `finished`, and `close` it.
    """

    __slots__ = ()

    def log_slow(self) -> None:
        """Log that its reader was too slow. There may be one for each client of a WebSocket."""
        names = self.grant.channel_names
        self.context.failures.log(
            logging.WARNING,
            "a subscriber of %s was too slow and ends; take a broker with history or see Limits.overflow",
            ", ".join(names),
            extra=fields("subscriber_slow", channels=names),
        )

    def __init__(
        self,
        context: StreamContext,
        grant: Grant,
        on_closed: Callable[[Stream], None],
        *,
        last_event_id: str | None,
    ) -> None:
        super().__init__(context, grant, on_closed, last_event_id=last_event_id)

    def _make_composer(self, ends: dict[str, Position], last_event_id: str | None) -> Composer:
        return _OriginComposer(self.context, self.grant, ends, last_event_id)

    def _set_deadlines(self) -> None:
        super()._set_deadlines()
        self._check_timer.cancel()
