"""HistoryReader: how one stream reads the logs of its channels, page by page and each in its turn."""

import logging
from dataclasses import replace

import anyio

from .broker import Page
from .hub import Hub
from .places import Places, Stretch
from .settings import Limits

logger = logging.getLogger("livepush_asgi")

# How many events are read from history at once. A client that is slower reads less often.
PAGE = 100


class HistoryReader:
    """Reads what `places` says is behind."""

    __slots__ = ("_channels", "_hub", "_limits", "_places", "failed")

    def __init__(self, hub: Hub, places: Places, channels: tuple[str, ...], limits: Limits) -> None:
        #: Whether the last attempt brought nothing, and the next one should wait a while.
        self.failed = False
        self._hub = hub
        self._places = places
        self._channels = channels
        self._limits = limits

    async def can_resume(self, timeout: float) -> bool:
        """Return whether history still has what the client's cursor asks for, in every channel."""
        with anyio.move_on_after(timeout):
            try:
                return all([await self._is_kept(name) for name in self._channels])
            except Exception as error:
                logger.debug("history cannot be read: %s", error)
        return False

    async def next_stretch(self) -> tuple[str, Stretch] | None:
        """Read a page of the channel whose turn it is. Never raises but when cancelled."""
        channel, place = self._places.next_behind()
        try:
            page = await self._hub.read(channel, place.offset, PAGE)
        except Exception as error:
            self._note(error)
            return None
        self._note(None)
        live_end = self._hub.end_of(channel)
        if live_end is None or not self._places.is_behind(channel):
            # Nobody delivers the channel any more: there is no hurry to be where that is.
            self.failed = live_end is None
            return None
        stretch = self._places.take_page(channel, self._cut(page), live_end)
        if stretch.gap is None and not stretch.records and self._places.is_behind(channel):
            # The hub has delivered what the log does not show yet, or not any more.
            self.failed = True
        return channel, stretch

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

    def _note(self, error: Exception | None) -> None:
        if error is not None and not self.failed:
            logger.debug("history cannot be read, trying until it works: %s", error)
        self.failed = error is not None

    def _cut(self, page: Page) -> Page:
        """Return no more of a page than goes into one message, but one event at least."""
        size = 0
        for number, record in enumerate(page.records):
            size += len(record.payload)
            if number and size > self._limits.message_bytes:
                return replace(page, records=page.records[:number])
        return page
