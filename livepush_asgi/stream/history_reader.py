"""HistoryReader: how one stream reads the logs of its channels, page by page and each in its turn."""

import logging
from collections.abc import Container, Iterable, Mapping
from types import MappingProxyType

import anyio

from ..brokers import Page
from ..errors import InvalidEventError
from ..hub.channel import delivery_of
from ..hub.coalescing import Delivery
from ..hub.hub import Hub
from ..settings import Limits
from ..wire.control import gap_block
from ..wire.cursor import Position, event_id
from ..wire.reasons import GapReason
from .recovery import ChannelGap, Places, Stretch

logger = logging.getLogger("livepush_asgi")

# How many events are read from history at once. A client that is slower reads less often.
PAGE = 100
# How long one read of history may take, in seconds, before it is tried again.
READ_TIMEOUT = 10.0
# A broker that answers within this time, in seconds, has not waited for a server.
AT_ONCE = 0.001

# Shared by all streams that have no log to look into: nearly all of them.
_NONE: Mapping[str, bool] = MappingProxyType({})


class HistoryReader:
    """Reads what `places` says is behind."""

    __slots__ = ("_channels", "_failures", "_hub", "_kept", "_limits", "_places", "sought")

    def __init__(self, hub: Hub, places: Places, channels: tuple[str, ...], limits: Limits) -> None:
        self._hub = hub
        self._places = places
        self._channels = channels
        self._limits = limits
        # How many attempts in a row have brought nothing.
        self._failures = 0
        #: The channels to begin in when their logs have been asked, and whether each came late.
        self.sought = _NONE
        # Whether each log has all that the client missed, None where it has to be asked.
        self._kept: dict[str, bool | None] = {}

    @property
    def failed(self) -> bool:
        """Whether no channel could be read on in its last turn, and the next attempt should wait a while."""
        return self._failures >= max(1, self._places.count_behind)

    def place(self, ends: Mapping[str, Position | None], late: Container[str] = ()) -> list[ChannelGap]:
        """Begin in the channels whose logs end so, and return the gaps to tell.

        A log may continue under another epoch, and only a read can tell whether it has the client's
        position. Where that read has failed, `seek` repeats it later, and no gap is told meanwhile.
        """
        known = dict(ends)
        for channel, end in ends.items():
            if end and self._places.must_ask(channel, end) and not self._places.place_of(channel, end):
                self.sought = {**self.sought, channel: channel in late}
                del known[channel]
        return self._places.place(known, late)

    async def seek(self) -> list[ChannelGap]:
        """Ask the logs that could not be asked, begin in their channels, and return the gaps to tell.

        A log that cannot be asked now is asked again. Never raises but when cancelled.
        """
        # Their logs have gone on under another epoch since anything was known of them.
        self._kept = {}
        with anyio.move_on_after(READ_TIMEOUT):
            await self._ask(self.sought)
        sought = self.sought
        self.sought = {name: late for name, late in sought.items() if self._kept.get(name) is None} or _NONE
        self._failures = self._failures + 1 if self.sought else 0
        late = {channel for channel, came_late in sought.items() if came_late}
        return self.place({name: self._hub.end_of(name) for name in sought if name not in self.sought}, late)

    def resumable(self) -> bool | None:
        """Return whether history still has what the client's cursor asks for, in every channel.

        None if that takes a look into a log first: then call `look_up`.
        """
        if not self._kept:
            self._kept = {name: self._is_kept(name) for name in self._channels}
        return None if None in self._kept.values() else all(self._kept.values())

    async def look_up(self, timeout: float) -> bool:
        """Look into the logs of which that is not known; False if one takes longer than `timeout` seconds."""
        with anyio.move_on_after(timeout):
            await self._ask(self._channels)
        return all(self._kept.values())

    async def next_deliveries(self) -> list[Delivery]:
        """Read a page of the channel whose turn it is, with what is missing in it as gaps.

        Never raises but when cancelled.
        """
        channel, place = self._places.next_behind()
        try:
            with anyio.fail_after(READ_TIMEOUT):
                page = await self._hub.read(channel, place, PAGE, self._limits.message_bytes)
        except Exception as error:
            self._note(error)
            return []
        live_end = self._hub.end_of(channel)
        if live_end is None or not self._places.is_behind(channel):
            # The hub delivers the channel no more, so the stream need not hurry to its end.
            self._failures += live_end is None
            return []
        if page.epoch != live_end.epoch:
            # The log has gone on under another epoch, of which this process has not heard yet.
            self._hub.refresh(channel)
        stretch = self._places.take_page(channel, page, live_end)
        if stretch.gap is None and not stretch.records and self._places.is_behind(channel):
            # The hub has delivered what the log does not show yet, or not any more.
            self._failures += 1
        else:
            self._note(None)
        return _deliveries(channel, stretch)

    def _is_kept(self, channel: str) -> bool | None:
        """Return whether the log has all that the client missed, None if it has to be asked."""
        end = self._hub.end_of(channel)
        if end is None or not self._places.must_ask(channel, end):
            return True
        page = self._hub.bounds_of(channel, self._places.place_of(channel, end))
        return None if page is None else self._is_kept_in(channel, page)

    def _is_kept_in(self, channel: str, page: Page) -> bool:
        end = self._hub.end_of(channel)
        if end is not None and page.epoch != end.epoch:
            # The log has gone on under another epoch, of which this process has not heard yet.
            self._hub.refresh(channel)
        return self._places.find_in(channel, page)

    async def _ask(self, channels: Iterable[str]) -> None:
        """Look into logs of which nothing is known: side by side from the first one on that takes a while."""
        for name in channels:
            if name not in self._kept:
                self._kept[name] = self._is_kept(name)
        waiting = [name for name in channels if self._kept[name] is None]
        while waiting:
            began = self._hub.now()
            await self._look_into(waiting.pop(0))
            if self._hub.now() - began > AT_ONCE:
                break
        if waiting:
            async with anyio.create_task_group() as asking:
                for channel in waiting:
                    asking.start_soon(self._look_into, channel)

    async def _look_into(self, channel: str) -> None:
        try:
            page = await self._hub.read_bounds(channel)
        except Exception as error:
            logger.debug("the history of %r cannot be read: %s", channel, error)
        else:
            self._kept[channel] = self._is_kept_in(channel, page)

    def _note(self, error: Exception | None) -> None:
        if error is None:
            self._failures = 0
            return
        if not self._failures:
            logger.debug("history cannot be read, trying until it works: %s", error)
        self._failures += 1


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
    block = gap_block(channel, reason, event_id(channel, position))
    return Delivery(channel, block, position, gap_block(channel, reason), gap=True)
