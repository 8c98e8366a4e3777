"""Subscriber, Received and Gap: the events of channels, read by code of the application."""

import json
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import anyio
import anyio.lowlevel

from ..errors import InvalidEventError
from ..stream.subscriber import SubscriberStream
from ..wire.control import origin_of
from ..wire.event import Event
from ..wire.parser import EventStreamParser, ParsedEvent
from ..wire.reasons import EndReason, GapReason, StreamState


@dataclass(frozen=True, slots=True)
class Received:
    """An event of a channel, as a Subscriber yields it.

    `subscribe(..., last_event_id=item.id)` goes on after it. Without history the id names no position, and
    such a subscriber begins with a Gap.
    """

    channel: str
    event: Event
    id: str

    @property
    def data(self) -> str:
        """The event's data: the text that was published, or the JSON of another value."""
        return str(self.event.data)

    # Any: the application knows what it publishes.
    def json(self) -> Any:
        """Return the value of the JSON in the data. Raises ValueError if it is none."""
        return json.loads(self.data)


@dataclass(frozen=True, slots=True)
class Gap:
    """The place of a channel at which events are missing, or may be, as a Subscriber yields it.

    `subscribe(..., last_event_id=item.id)` goes on here.
    """

    channel: str
    reason: GapReason
    id: str


class Subscriber:
    """The events of channels, for `async with` and then `async for`: `LivePush.subscribe` returns it.

    In the block it is subscribed: every event that is published from then on is yielded once and in the order
    of its channel, or a Gap is in its place. If the broker does not answer within `Timing.subscribe_timeout`,
    the block begins all the same, and a Gap tells when the channel is subscribed.

    While the code handles an event, the next ones wait in an outbox with the bounds of `Limits`, however long
    that takes. When it is full, `Limits.overflow` decides: the subscriber reads on from history, skips events
    behind a Gap, or ends.

    The iteration ends when the block is left, when the LivePush drains or stops (the events that were
    delivered to this process before are yielded first), and when the subscriber was too slow and the policy
    ends it, which is logged. `end_reason` says which. A drain waits until the block is left, within its
    window. A call that is cancelled loses no event. One task iterates at a time; another one gets
    `anyio.BusyResourceError`.
    """

    def __init__(self, open: Callable[[], Awaitable[SubscriberStream]], last_event_id: str | None) -> None:
        #: The event id after the item that was yielded last; before the first item, the id of the beginning.
        self.last_event_id = last_event_id or ""
        self._open = open
        self._stream: SubscriberStream | None = None
        self._opened = False
        self._parser = EventStreamParser()
        # The channel of the block that is read, and the event id after it.
        self._channel, self._id = "", self.last_event_id
        self._items: deque[Received | Gap] = deque()
        self._guard = anyio.ResourceGuard("iterating")

    @property
    def end_reason(self) -> EndReason | None:
        """Why it ended: `drain`, `slow`, `disconnect` if the block was left, or `error` for a defect.

        None while it has not ended. The events that were delivered before may still be yielded.
        """
        return None if self._stream is None else self._stream.reason

    async def __aenter__(self) -> Self:
        if self._stream is not None:
            raise RuntimeError("a Subscriber is entered once; call `subscribe` again")
        self._stream = await self._open()
        try:
            while not self._opened and await self._read(self._stream):
                pass
        except BaseException:
            self._leave(self._stream)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._stream is not None
        self._leave(self._stream)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Received | Gap:
        if self._stream is None:
            raise RuntimeError("enter it first: `async with push.subscribe(...) as events`")
        with self._guard:
            while not self._items:
                if not await self._read(self._stream):
                    raise StopAsyncIteration
        item = self._items.popleft()
        self.last_event_id = item.id
        return item

    def _leave(self, stream: SubscriberStream) -> None:
        self._items.clear()
        stream.end(EndReason.DISCONNECT)
        stream.close()

    async def _read(self, stream: SubscriberStream) -> bool:
        """Read the next chunk. Return False at the end."""
        # A reader that never waits must not block the event loop.
        await anyio.lowlevel.checkpoint()
        chunk = await stream.next_chunk()
        # A browser shows replacement characters for bytes that are not UTF-8, which another program may have
        # published.
        for block in chunk.decode("utf-8", "replace").encode().split(b"\n\n"):
            self._take_block(block)
        if not stream.finished or chunk:
            return True
        if stream.reason is EndReason.SLOW and stream.state is not StreamState.CLOSED:
            stream.log_slow()
        stream.close()
        return False

    def _take_block(self, block: bytes) -> None:
        self._parser.comments.clear()
        self._parser.ignored.clear()
        events = self._parser.feed(block + b"\n\n")
        # Only an event of the application follows such a line.
        of_application = bool(self._parser.comments)
        if of_application:
            self._channel, self._id = origin_of(self._parser.comments[0])
            if not self._passes(self._parser.comments[1:]):
                return
        for event in events:
            if of_application:
                self._items.append(self._received(event))
            else:
                self._take_control(event)

    def _passes(self, comments: Sequence[str]) -> bool:
        """Return whether to yield the event of a block, given the comments that were published with it."""
        return True

    def _received(self, parsed: ParsedEvent) -> Received | Gap:
        name = None if parsed.event == "message" else parsed.event
        try:
            event = Event(parsed.data, event=name, id=parsed.id, retry=parsed.retry)
        except InvalidEventError:
            # Another program has published it past all checks.
            return Gap(self._channel, GapReason.BROKER, self._id)
        return Received(self._channel, event, self._id)

    def _take_control(self, event: ParsedEvent) -> None:
        self._id = event.id or self._id
        match event.event:
            case "livepush.open":
                self._opened, self.last_event_id = True, self._id
            case "livepush.gap":
                told = json.loads(event.data)
                self._items.append(Gap(told["channel"], GapReason(told["reason"]), self._id))
