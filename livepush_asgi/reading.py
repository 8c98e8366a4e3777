"""HistoryReader: how one stream reads the logs of its channels, page by page and each in its turn."""

import logging
from collections.abc import Container, Mapping
from types import MappingProxyType

import anyio

from .control import gap_block
from .cursor import Position
from .errors import InvalidEventError
from .hub import Hub
from .outbox import Delivery
from .places import Places, Stretch
from .reasons import GapReason
from .settings import Limits
from .topic import delivery_of

logger = logging.getLogger("livepush_asgi")

Told = tuple[str, GapReason]

# How many events are read from history at once. A client that is slower reads less often.
PAGE = 100


# What nearly all streams have all the time; it is shared.
_NONE: Mapping[str, bool] = MappingProxyType({})


class HistoryReader:
    """Reads what `places` says is behind."""

    __slots__ = ("_asked", "_channels", "_hub", "_limits", "_places", "failed", "sought")

    def __init__(self, hub: Hub, places: Places, channels: tuple[str, ...], limits: Limits) -> None:
        #: Whether the last attempt brought nothing, and the next one should wait a while.
        self.failed = False
        self._hub = hub
        self._places = places
        self._channels = channels
        self._limits = limits
        #: The channels to begin in when their logs have been asked, and whether each came late.
        self.sought = _NONE
        self._asked: tuple[str, ...] = ()

    def place(self, ends: Mapping[str, Position | None], late: Container[str] = ()) -> list[Told]:
        """Begin in the channels whose logs end so, and return the gaps to tell.

        A log may have gone on under another epoch, and only it can say whether the client is in it. Where
        it could not be asked, that is put off for `seek`: not to know it is no reason to tell of a gap.
        """
        self._places.claim(ends.values())
        if self._places.has_cursor:
            strange = {name for name, end in ends.items() if end and not self._places.find(name, end)}
            if self._places.has_unclaimed and not strange.issubset(self._asked):
                self.sought = {**self.sought, **{name: name in late for name in strange}}
        told = []
        for channel, end in ends.items():
            if channel not in self.sought:
                gap = self._places.place(channel, end, late=channel in late)
                told += [] if gap is None else [(channel, gap)]
        return told

    async def seek(self) -> list[Told]:
        """Ask the logs that could not be asked, begin in their channels, and return the gaps to tell.

        Never raises but when cancelled.
        """
        try:
            for channel in list(self.sought):
                await self._is_kept(channel)
        except Exception as error:
            self._note(error)
            return []
        self._note(None)
        sought, self.sought = self.sought, _NONE
        late = {channel for channel, came_late in sought.items() if came_late}
        return self.place({channel: self._hub.end_of(channel) for channel in sought}, late)

    async def can_resume(self, timeout: float) -> bool:
        """Return whether history still has what the client's cursor asks for, in every channel."""
        with anyio.move_on_after(timeout):
            try:
                return all([await self._is_kept(name) for name in self._channels])
            except Exception as error:
                logger.debug("history cannot be read: %s", error)
        return False

    async def next_deliveries(self) -> list[Delivery]:
        """Read a page of the channel whose turn it is, with what is missing in it as gaps.

        Never raises but when cancelled.
        """
        channel, place = self._places.next_behind()
        try:
            page = await self._hub.read(channel, place.offset, PAGE, self._limits.message_bytes)
        except Exception as error:
            self._note(error)
            return []
        self._note(None)
        live_end = self._hub.end_of(channel)
        if live_end is None or not self._places.is_behind(channel):
            # Nobody delivers the channel any more: there is no hurry to be where that is.
            self.failed = live_end is None
            return []
        stretch = self._places.take_page(channel, page, live_end)
        if stretch.gap is None and not stretch.records and self._places.is_behind(channel):
            # The hub has delivered what the log does not show yet, or not any more.
            self.failed = True
        return _deliveries(channel, stretch)

    async def _is_kept(self, channel: str) -> bool:
        end = self._hub.end_of(channel)
        if end is None or not self._places.has_cursor:
            return True
        place = self._places.find(channel, end)
        if place == end:
            return True
        # The log may have gone on under another epoch, which this process has not heard of yet.
        page = await self._hub.read(channel, 0 if place is None else place.offset, 0)
        self._asked += (channel,)
        if page.epoch != end.epoch:
            self._hub.refresh(channel)
        place = place or self._places.find(channel, end, page)
        if place is None:
            return True
        placed = page.place_of(place)
        return placed is not None and placed.offset >= page.first - 1

    def _note(self, error: Exception | None) -> None:
        if error is not None and not self.failed:
            logger.debug("history cannot be read, trying until it works: %s", error)
        self.failed = error is not None


def _deliveries(channel: str, stretch: Stretch) -> list[Delivery]:
    deliveries = []
    if stretch.gap is not None:
        deliveries.append(_gap(channel, stretch.gap, stretch.start))
    for position, payload in stretch.records:
        try:
            deliveries.append(delivery_of(channel, payload, position))
        except InvalidEventError:
            deliveries.append(_gap(channel, GapReason.BROKER, position))
    return deliveries


def _gap(channel: str, reason: GapReason, position: Position) -> Delivery:
    block = gap_block(channel, reason, str(position))
    return Delivery(channel, block, position, gap_block(channel, reason), gap=True)
