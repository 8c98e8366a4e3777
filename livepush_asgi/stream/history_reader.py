"""HistoryReader: reads the channels of one stream that are behind, in turn, one page at a time."""

import logging

import anyio

from ..hub.delivery import Batch
from ..hub.hub import Hub
from ..hub.shared_reads import SharedPage
from ..settings import Limits
from .recovery import RecoveryState

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

    def take_known(self, max_bytes: int) -> Batch | None:
        """Return the next page if another stream has read it lately, and if it fits into so many bytes."""
        if self._must_wait:
            return None
        channel, position = self._recovery.next_behind()
        page = self._hub.history.known_page(channel, position, PAGE, self._limits.message_bytes)
        if page is None or page.batch.size > max_bytes:
            return None
        self._recovery.rotate_behind()
        return self._take(channel, page)

    def take_nowait(self) -> Batch | None:
        """Return the next page if the broker has it in this process."""
        if self._must_wait:
            return None
        channel, position = self._recovery.next_behind()
        page = self._hub.history.read_nowait(channel, position, PAGE, self._limits.message_bytes)
        if page is None:
            return None
        self._recovery.rotate_behind()
        return self._take(channel, page)

    @property
    def _must_wait(self) -> bool:
        return self._failures > 0 or self._recovery.read_at > self._hub.now()

    async def read(self) -> Batch:
        """Read a page of the next channel, with gaps where events are missing.

        Waits first if the last read of every channel has returned nothing new. Raises only when cancelled.
        """
        delay = self._recovery.read_at - self._hub.now()
        if self._failures >= max(1, len(self._recovery.behind)):
            delay = RETRY
        if delay > 0:
            await anyio.sleep(delay)
        if not self._recovery.behind:
            return Batch(())
        channel, position = self._recovery.next_behind()
        self._recovery.rotate_behind()
        try:
            with anyio.fail_after(READ_TIMEOUT):
                page = await self._hub.history.read(channel, position, PAGE, self._limits.message_bytes)
        except Exception as error:
            if not self._failures:
                logger.debug("history cannot be read, trying until it works: %s", error)
            self._failures += 1
            return Batch(())
        if not self._recovery.is_at(channel, position):
            # `take_known` has taken this page meanwhile: several streams waited for it.
            return Batch(())
        return self._take(channel, page)

    def _take(self, channel: str, page: SharedPage) -> Batch:
        """Return what the client is sent of a page."""
        recovery = self._recovery
        live_end = self._hub.catch_up([channel]).get(channel)
        if live_end is None or channel not in recovery.behind:
            # The hub has not subscribed the channel, so there is no end to reach.
            self._failures += live_end is None
            return Batch(())
        self._hub.refresh(channel, page.page.epoch)
        batch = recovery.take_page(channel, page, live_end)
        # The hub has delivered events that the log does not show yet, or has lost.
        is_futile = not batch.count and channel in recovery.behind
        self._failures = self._failures + 1 if is_futile else 0
        return batch
