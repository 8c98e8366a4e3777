"""HistoryReader: how one stream reads the channels that are behind, a page at a time and each in its turn."""

import logging

import anyio

from ..errors import InvalidEventError
from ..hub.delivery import Delivery, delivery_of, gap_delivery
from ..hub.hub import Hub
from ..settings import Limits
from ..wire.reasons import GapReason
from .recovery import PageSlice, RecoveryState

logger = logging.getLogger("livepush_asgi")

# How many events are read from history at once. A client that is slower reads less often.
PAGE = 100
# How long one read of history may take, in seconds, and how long to wait before it is tried again.
READ_TIMEOUT, RETRY = 10.0, 0.5


class HistoryReader:
    """Reads what `state` says is behind."""

    __slots__ = ("_failures", "_hub", "_limits", "_recovery")

    def __init__(self, hub: Hub, state: RecoveryState, limits: Limits) -> None:
        self._hub = hub
        self._recovery = state
        self._limits = limits
        # How many attempts in a row have brought nothing.
        self._failures = 0

    async def next_deliveries(self) -> list[Delivery]:
        """Read a page of the channel whose turn it is, with what is missing in it as gaps.

        Waits a while first if no channel could be read on in its last turn. Never raises but when cancelled.
        """
        delay = self._recovery.read_at - self._hub.now()
        if self._failures >= max(1, len(self._recovery.behind)):
            delay = RETRY
        if delay > 0:
            await anyio.sleep(delay)
        if not self._recovery.behind:
            return []
        channel, place = self._recovery.next_behind()
        try:
            with anyio.fail_after(READ_TIMEOUT):
                page = await self._hub.history.read(channel, place, PAGE, self._limits.message_bytes)
        except Exception as error:
            if not self._failures:
                logger.debug("history cannot be read, trying until it works: %s", error)
            self._failures += 1
            return []
        live_end = self._hub.catch_up([channel]).get(channel)
        if live_end is None or channel not in self._recovery.behind:
            # The hub delivers the channel no more, so the stream need not hurry to its end.
            self._failures += live_end is None
            return []
        self._hub.refresh(channel, page.epoch)
        part = self._recovery.take_page(channel, page, live_end)
        # Nothing new: the hub has delivered what the log does not show yet, or not any more.
        is_futile = part.gap is None and not part.records and channel in self._recovery.behind
        self._failures = self._failures + 1 if is_futile else 0
        return _deliveries(channel, part)


def _deliveries(channel: str, part: PageSlice) -> list[Delivery]:
    deliveries = [] if part.gap is None else [gap_delivery(channel, part.gap, part.start)]
    for position, payload in part.records:
        try:
            deliveries.append(delivery_of(channel, payload, position))
        except InvalidEventError:
            deliveries.append(gap_delivery(channel, GapReason.BROKER, position))
    return deliveries
