"""Feed: what one stream sends next. It joins the outbox, the history, the snapshots and the heartbeats."""

import logging
from typing import Protocol

import anyio

from .broker import Page
from .control import gap_block, open_block, retry_line
from .cursor import Position
from .errors import InvalidEventError
from .event import HEARTBEAT, with_id
from .hub import Hub
from .loop import Waker
from .outbox import Delivery, LatestOutbox, Outbox, OutboxFullError
from .places import Places, Stretch
from .reasons import EndReason, GapReason
from .request import Grant
from .settings import Limits, Timing
from .snapshot import blocks_of
from .topic import delivery_of

logger = logging.getLogger("livepush_asgi")

# How many events are read from history at once. A client that is slower reads less often.
PAGE = 100
# How long to wait, in seconds, before history that could not be read is asked again.
RETRY = 0.5


class Household(Protocol):
    """What a feed needs of the process."""

    hub: Hub
    timing: Timing
    limits: Limits


class Feed:
    """The bytes of one stream, in the order in which they go out. `next` gives what can go out now."""

    def __init__(
        self,
        house: Household,
        grant: Grant,
        waker: Waker,
        *,
        control_events: bool,
        last_event_id: str | None,
    ) -> None:
        #: Whether to open without having heard from the broker.
        self.hurried = False
        self.heartbeat_due = False
        #: Why the stream has to end, when its client would have to be told what it cannot be told.
        self.unanswerable: EndReason | None = None
        self._hub = house.hub
        self._timing = house.timing
        self._limits = house.limits
        self._grant = grant
        self._waker = waker
        self._control_events = control_events
        self._resuming = bool(last_event_id)
        self._outbox = (
            LatestOutbox(house.limits) if house.limits.overflow == "latest" else Outbox(house.limits)
        )
        replayed = house.limits.replay_events
        self._places = Places(grant.channel_names, last_event_id or None, grant.replay, replayed)
        self._gap_waits = False
        self._single = len(grant.channel_names) == 1
        # What is to go out before anything else: the open event, a page of history, a snapshot.
        self._head = b""
        self._snapshot_due = False
        self._reading_failed = False

    def put(self, delivery: Delivery) -> None:
        """Queue a delivery, or leave it to the history. Raises OutboxFullError."""
        if not self._places.settled and not self._places.admits(delivery):
            return
        try:
            self._outbox.put(delivery)
        except OutboxFullError:
            if not self._fall_behind(delivery):
                raise

    def put_gap(self, channel: str, reason: GapReason, position: Position | None) -> None:
        """Queue the word that events are missing. Raises OutboxFullError."""
        if self._places.hears_gap(channel, position):
            self._gap_waits = True
            id_ = None if position is None else str(position)
            bare = gap_block(channel, reason)
            gap = Delivery(channel, gap_block(channel, reason, id_), position, bare, gap=True)
            try:
                self._outbox.put(gap)
            except OutboxFullError:
                if not self._fall_behind(gap):
                    raise

    def begin(self, channel: str) -> None:
        """Take note that a channel is subscribed: what is published from now on is the client's."""
        self._places.begin(channel, self._hub.end_of(channel))

    def begin_late(self, channel: str) -> GapReason | None:
        """Begin in a channel that was not there when the stream opened. Return the gap to tell, if any."""
        end = self._hub.end_of(channel)
        self._places.claim([end])
        gap = self._places.place(channel, end, late=True)
        self._waker.wake()
        return gap

    async def open(self) -> None:
        """Begin in every channel that is there, and prepare the open event. Cancelling it is harmless."""
        resumable = await self._can_resume()
        # Nothing waits from here on: what the hub delivers from now on is queued.
        ends = {
            name: self._hub.end_of(name) for name in self._grant.channel_names if self._hub.is_ready(name)
        }
        self._places.claim(ends.values())
        gaps = {name: self._places.place(name, end) for name, end in ends.items()}
        told = [(name, reason) for name, reason in gaps.items() if reason is not None]
        resumed = self._resuming and resumable and not told
        retry = self._timing.own_retry()
        if self._control_events:
            self._head = open_block(retry, self._places.id, resumed=resumed)
            self._head += b"".join(gap_block(name, reason) for name, reason in told)
        else:
            self._head = retry_line(retry)
        self._snapshot_due = not resumed

    def ready(self) -> bytes:
        """Return what waits in the outbox, if nothing has to go out before it; else b""."""
        if self._head or self._snapshot_due or not self._outbox or self._places.behind:
            return b""
        self.heartbeat_due = False
        return self._joined()

    async def next(self) -> bytes:
        """Return what can go out now, b"" if that is nothing. Waits for history and snapshots only."""
        if self._snapshot_due and self._grant.snapshot is not None:
            self._head += await blocks_of(self._grant.snapshot)
        self._snapshot_due = False
        # A page for each message, so that a busy live channel does not keep one that is behind waiting.
        if not self._head and self._places.behind:
            await self._read_on()
        head, self._head = self._head, b""
        chunk = head + self._joined()
        if chunk:
            self.heartbeat_due = False
        elif self.heartbeat_due:
            self.heartbeat_due = False
            return HEARTBEAT
        elif self._reading_failed:
            await self._waker.wait(RETRY)
        return chunk

    def flush(self) -> bytes:
        """Return everything that waits here. What is left in the history stays there."""
        chunk, self._head = self._head, b""
        while self._outbox and self.unanswerable is None:
            chunk += self._joined()
        return chunk

    def discard(self) -> None:
        """Forget what waits."""
        self._head = b""
        self._outbox.clear()

    def _fall_behind(self, delivery: Delivery) -> bool:
        """Empty the outbox and read on from history, if that has what waits."""
        if self._limits.overflow != "resume":
            return False
        channels = self._outbox.give_up_positioned()
        if delivery.position is not None:
            channels.append(delivery.channel)
        elif channels:
            self._outbox.put(delivery)
        self._places.fall_behind(channels)
        return bool(channels)

    async def _can_resume(self) -> bool:
        """Return whether history still has what the client's cursor asks for, in every channel."""
        if not self._resuming:
            return False
        with anyio.move_on_after(self._timing.subscribe_timeout):
            try:
                return all([await self._is_kept(name) for name in self._grant.channel_names])
            except Exception as error:
                logger.debug("history cannot be read: %s", error)
        return False

    async def _is_kept(self, channel: str) -> bool:
        end = self._hub.end_of(channel)
        if end is None or not self._places.has_cursor:
            return True
        place = self._places.find(channel, end)
        if place == end:
            return True
        # The log may have gone on under another epoch, which this process has not heard of yet.
        page = await self._hub.read(channel, 0 if place is None else place.offset, 0)
        if page.epoch != end.epoch:
            self._hub.refresh(channel)
        place = place or self._places.find(channel, end, page)
        if place is None:
            return True
        placed = page.place_of(place)
        return placed is not None and placed.offset >= page.first - 1

    async def _read_on(self) -> None:
        """Put a page of history at the head. A channel that has it all is live again at that moment."""
        channel, place = self._places.next_behind()
        try:
            page = await self._hub.read(channel, place.offset, PAGE)
        except Exception as error:
            self._note_reading(error)
            return
        self._note_reading(None)
        live_end = self._hub.end_of(channel)
        if live_end is None or not self._places.is_behind(channel):
            return
        stretch = self._places.take_page(channel, self._cut(page), live_end)
        self._head = self._compose(self._deliveries(channel, stretch))
        if not self._head and self._places.is_behind(channel):
            # The hub has delivered what the log does not show yet, or not any more.
            self._reading_failed = True

    def _note_reading(self, error: Exception | None) -> None:
        if error is not None and not self._reading_failed:
            logger.debug("history cannot be read, trying until it works: %s", error)
        self._reading_failed = error is not None

    def _cut(self, page: Page) -> Page:
        """Return no more of a page than goes into one message, but one event at least."""
        size = 0
        for number, record in enumerate(page.records):
            size += len(record.payload)
            if number and size > self._limits.message_bytes:
                return Page(page.epoch, page.first, page.last, page.records[:number])
        return page

    def _deliveries(self, channel: str, stretch: Stretch) -> list[Delivery]:
        deliveries = []
        if stretch.gap is not None:
            self._gap_waits = True
            deliveries.append(self._gap(channel, stretch.gap, stretch.start))
        for position, payload in stretch.records:
            try:
                deliveries.append(delivery_of(channel, payload, position))
            except InvalidEventError:
                self._gap_waits = True
                deliveries.append(self._gap(channel, GapReason.BROKER, position))
        return deliveries

    def _gap(self, channel: str, reason: GapReason, position: Position) -> Delivery:
        block = gap_block(channel, reason, str(position))
        return Delivery(channel, block, position, gap_block(channel, reason), gap=True)

    def _joined(self) -> bytes:
        dropped = self._outbox.take_dropped()
        if dropped and not self._control_events:
            self.unanswerable = EndReason.SLOW
            return b""
        gaps = b"".join(gap_block(channel, GapReason.OVERFLOW) for channel in dropped)
        self._snapshot_due = self._snapshot_due or bool(dropped)
        return gaps + self._compose(self._outbox.take())

    def _compose(self, deliveries: list[Delivery]) -> bytes:
        """Join deliveries and take note of where the client will be when it has them."""
        if self._single and not self._gap_waits:
            return self._compose_quickly(deliveries)
        self._gap_waits = False
        blocks = []
        for delivery in deliveries:
            if delivery.gap:
                if not self._control_events:
                    self.unanswerable = EndReason.BROKER
                    break
                self._snapshot_due = True
            block = delivery.block
            if delivery.position is not None:
                self._places.mark_sent(delivery.channel, delivery.position)
                if not self._single:
                    block = with_id(delivery.bare, self._places.id)
            blocks.append(block)
        return b"".join(blocks)

    def _compose_quickly(self, deliveries: list[Delivery]) -> bytes:
        """Join the events of one channel: each brings its id, and the last one says where the client is."""
        for delivery in reversed(deliveries):
            if delivery.position is not None:
                self._places.mark_sent(delivery.channel, delivery.position)
                break
        return b"".join([delivery.block for delivery in deliveries])
