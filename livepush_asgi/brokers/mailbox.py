"""Mailbox: the subscription that the brokers here return.

It holds a bounded number of payloads for `get_message`, or forwards each one to a sink.
"""

from collections.abc import Callable, Sequence
from typing import cast

import anyio
import anyio.lowlevel

from ..errors import MessagesLostError, SubscriptionClosedError
from ..settings import check_whole
from ..wire.cursor import Position
from ..wire.event import positioned
from . import LoggedSink, Sink

#: How many messages a reader takes before it lets the streams send: few enough to fill no outbox, and enough
#: that the pause costs next to nothing.
MESSAGES_BETWEEN_PAUSES = 32


class Mailbox:
    """One subscription to one channel. The broker calls `deliver` and `lost` on the event loop's thread."""

    __slots__ = ("_arrived", "_closed", "_limit", "_logged", "_on_close", "_sink", "_waiting", "channel")

    def __init__(self, channel: str, on_close: Callable[["Mailbox"], None], limit: int = 1000) -> None:
        check_whole("limit", limit)
        self.channel = channel
        self._on_close = on_close
        self._limit = limit
        self._closed = False
        self._sink: Sink | None = None
        # The same sink, if it has `deliver_at`.
        self._logged: LoggedSink | None = None
        # None marks a place where payloads may be missing, so that the loss is reported in order.
        # A list takes less memory than a deque: a mailbox that forwards keeps it empty.
        self._waiting: list[bytes | None] = []
        self._arrived: anyio.Event | None = None

    def deliver(self, payload: bytes, /) -> None:
        """Take a payload. A full mailbox drops its oldest one, and its reader gets a MessagesLostError."""
        if self._closed:
            return
        if self._sink is not None:
            self._sink.deliver(payload)
            return
        self._waiting.append(payload)
        if len(self._waiting) > self._limit:
            self._drop_oldest()
        self._wake()

    def deliver_at(self, position: Position, payload: bytes, /) -> None:
        """Take a payload of a log. A sink with `deliver_at` gets the position unencoded, which is faster."""
        if self._logged is not None and not self._closed:
            self._logged.deliver_at(position, payload)
        else:
            self.deliver(positioned(position, payload))

    def deliver_after(self, position: Position, payloads: Sequence[bytes]) -> None:
        """Take the payloads that follow a position in a log."""
        if self._logged is not None and not self._closed:
            self._logged.deliver_after(position, payloads)
            return
        for payload in payloads:
            position = position.next()
            self.deliver_at(position, payload)

    def lost(self) -> None:
        """Note that payloads may be missing between the last one and the next."""
        if self._closed:
            return
        if self._sink is not None:
            self._sink.lost()
            return
        if not self._waiting or self._waiting[-1] is not None:
            self._waiting.append(None)
        self._wake()

    def forward(self, sink: Sink, /) -> None:
        """Deliver the payloads that wait, and all later ones, to `sink`."""
        self._sink = sink
        if hasattr(sink, "deliver_at"):
            self._logged = cast("LoggedSink", sink)
        while self._waiting:
            payload = self._waiting.pop(0)
            if payload is None:
                sink.lost()
            else:
                sink.deliver(payload)

    async def get_message(self, *, timeout: float) -> bytes | None:
        """Return the next payload, with its position if it has one. See `Subscription`."""
        if not self._waiting and not self._closed:
            with anyio.move_on_after(timeout):
                while not self._waiting and not self._closed:
                    self._arrived = self._arrived or anyio.Event()
                    await self._arrived.wait()
        else:
            await anyio.lowlevel.checkpoint()
        if self._waiting:
            payload = self._waiting.pop(0)
            if payload is None:
                raise MessagesLostError(f"messages of {self.channel!r} may have been lost")
            return payload
        if self._closed:
            raise SubscriptionClosedError(f"the subscription to {self.channel!r} is closed")
        return None

    async def close(self) -> None:
        """End the subscription and discard the payloads that wait."""
        if not self._closed:
            self._closed = True
            self._waiting.clear()
            self._on_close(self)
            self._wake()

    def _wake(self) -> None:
        if self._arrived is not None:
            self._arrived.set()
            self._arrived = None

    def _drop_oldest(self) -> None:
        if self._waiting[0] is None:
            self._waiting.pop(0)
        self._waiting.pop(0)
        self._waiting.insert(0, None)
