"""HistoryReader: reads the channels of one stream that are behind, in turn, one page at a time."""

import logging

import anyio

from ..errors import InvalidEventError
from ..hub.delivery import Delivery, delivery_of, gap_delivery
from ..hub.hub import Hub
from ..settings import Limits
from ..wire.reasons import GapReason
from .recovery import PageSlice, RecoveryState

logger = logging.getLogger("livepush_asgi")

# How many events one page has at most. A slower client reads pages less often.
PAGE = 100
# How long one read may take, and how long to wait before a retry, in seconds.
READ_TIMEOUT, RETRY = 10.0, 0.5


class HistoryReader:
    """Reads the channels that are behind in the recovery state."""

    __slots__ = ("_failures", "_hub", "_limits", "_recovery")

    def __init__(self, hub: Hub, state: RecoveryState, limits: Limits) -> None:
        self._hub = hub
        self._recovery = state
        self._limits = limits
        # How many reads in a row have returned nothing new.
        self._failures = 0

    async def next_deliveries(self) -> list[Delivery]:
        """Read a page of the next channel, with gaps where events are missing.

        Waits first if the last read of every channel has returned nothing new. Raises only when cancelled.
        """
        delay = self._recovery.read_at - self._hub.now()
        if self._failures >= max(1, len(self._recovery.behind)):
            delay = RETRY
        if delay > 0:
            await anyio.sleep(delay)
        if not self._recovery.behind:
            return []
        channel, position = self._recovery.next_behind()
        try:
            with anyio.fail_after(READ_TIMEOUT):
                page = await self._hub.history.read(channel, position, PAGE, self._limits.message_bytes)
        except Exception as error:
            if not self._failures:
                logger.debug("history cannot be read, trying until it works: %s", error)
            self._failures += 1
            return []
        live_end = self._hub.catch_up([channel]).get(channel)
        if live_end is None or channel not in self._recovery.behind:
            # The hub has not subscribed the channel, so there is no end to reach.
            self._failures += live_end is None
            return []
        self._hub.refresh(channel, page.epoch)
        part = self._recovery.take_page(channel, page, live_end)
        # The hub has delivered events that the log does not show yet, or has lost.
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
