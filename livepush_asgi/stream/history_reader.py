"""HistoryReader: how one stream reads the logs of its channels, as its RecoveryState says.

When a stream opens the logs are asked whether they still have the client's positions; then the channels that
are behind are read, a page at a time and each in its turn.
"""

import logging
from collections.abc import Sequence

import anyio

from ..brokers import Page
from ..errors import InvalidEventError
from ..hub.delivery import Delivery, delivery_of, gap_delivery
from ..hub.hub import Hub
from ..settings import Limits
from ..wire.reasons import GapReason
from .recovery import ChannelGap, PageSlice, RecoveryState, Resumption

logger = logging.getLogger("livepush_asgi")

# How many events are read from history at once. A client that is slower reads less often.
PAGE = 100
# How long one read of history may take, in seconds, before it is tried again.
READ_TIMEOUT = 10.0
# How long to wait, in seconds, before history that could not be read is asked again.
RETRY = 0.5
# How long the bounds of a log are good for, in seconds, so that a crowd of clients asks for them once. A
# client that comes back with an epoch which began within that time is told of a gap that there is not.
BOUNDS_AGE = 0.05


class HistoryReader:
    """Reads the logs of `channels` for one stream."""

    __slots__ = (
        "_channels",
        "_failures",
        "_hub",
        "_limits",
        "_opened_at",
        "_read_at",
        "_seek_at",
        "_state",
        "_unasked",
    )

    def __init__(self, hub: Hub, state: RecoveryState, channels: tuple[str, ...], limits: Limits) -> None:
        self._hub = hub
        self._state = state
        self._channels = channels
        self._limits = limits
        self._opened_at = hub.now()
        # When the deferred channels are due, and when the first page is: a client that comes with a wrong
        # position and leaves at once costs no read.
        self._seek_at = self._opened_at + RETRY
        self._read_at = self._opened_at
        # The channels whose logs have to be asked before the stream opens; None until that is known.
        self._unasked: list[str] | None = None
        # How many attempts in a row have brought nothing.
        self._failures = 0

    def resumable(self) -> bool | None:
        """Return whether history still has what the client's cursor asks for, in every channel.

        None if the logs have to be asked first: then await `look_up`.
        """
        if self._unasked is None:
            self._unasked = self._find_in_known(self._channels, self._hub.now() - BOUNDS_AGE)
        if not self._unasked:
            return not self._resumption.missed
        return False if self._asks_later else None

    async def look_up(self, timeout: float) -> bool:
        """Ask the logs of which that is not known; False if one takes longer than `timeout` seconds.

        Over a network the first log is asked alone, then four, sixteen and so on side by side, until one does
        not have the client's position. So a hostile id, which is wrong in every channel, costs one read. The
        logs that were not asked are left to `seek`.
        """
        unasked = left = self._unasked or []
        count = len(unasked) if self._hub.history.in_process else 1
        with anyio.move_on_after(timeout):
            while left and not self._asks_later:
                await self._ask(left[:count])
                left, count = left[count:], 4 * count
        self._seek_at = self._hub.now() + RETRY
        return all(map(self._resumption.has_asked, unasked)) and not self._resumption.missed

    @property
    def _asks_later(self) -> bool:
        """Whether no more logs are asked for this client before its stream opens."""
        return self._resumption.suspect and not self._hub.history.in_process

    @property
    def must_seek(self) -> bool:
        """Whether `seek` is what to do next."""
        resumption = self._state.resumption
        if resumption is None or not resumption.deferred:
            return False
        return not self._state.behind or self._hub.now() >= self._seek_at

    async def seek(self) -> list[ChannelGap]:
        """Ask the logs of the deferred channels, begin in these channels, and return the gaps to tell.

        A log that cannot be asked now is asked again. Never raises but when cancelled.
        """
        await self._wait_until(self._seek_at)
        deferred = self._resumption.deferred
        with anyio.move_on_after(READ_TIMEOUT):
            # What any stream has read since this one opened is as good as a read of its own.
            await self._ask(self._find_in_known(deferred, self._opened_at))
        self._seek_at = self._hub.now() + RETRY
        return self._state.place(self._hub.catch_up(deferred))

    async def next_deliveries(self) -> list[Delivery]:
        """Read a page of the channel whose turn it is, with what is missing in it as gaps.

        Waits a while first if no channel could be read on in its last turn. Never raises but when cancelled.
        """
        if self._failures >= max(1, len(self._state.behind)):
            await anyio.sleep(RETRY)
        await self._wait_until(self._read_at)
        if not self._state.behind:
            return []
        channel, place = self._state.next_behind()
        try:
            with anyio.fail_after(READ_TIMEOUT):
                page = await self._hub.history.read(channel, place, PAGE, self._limits.message_bytes)
        except Exception as error:
            if not self._failures:
                logger.debug("history cannot be read, trying until it works: %s", error)
            self._failures += 1
            return []
        live_end = self._hub.catch_up([channel]).get(channel)
        if live_end is None or channel not in self._state.behind:
            # The hub delivers the channel no more, so the stream need not hurry to its end.
            self._failures += live_end is None
            return []
        self._compare_epochs(channel, page)
        part = self._state.take_page(channel, page, live_end)
        if part.gap is None and not part.records and channel in self._state.behind:
            # The hub has delivered what the log does not show yet, or not any more.
            self._failures += 1
        else:
            self._failures = 0
        return _deliveries(channel, part)

    async def _wait_until(self, moment: float) -> None:
        delay = moment - self._hub.now()
        if delay > 0:
            await anyio.sleep(delay)

    @property
    def _resumption(self) -> Resumption:
        assert self._state.resumption is not None
        return self._state.resumption

    def _find_in_known(self, channels: Sequence[str], since: float) -> list[str]:
        """Find the client in logs whose bounds were read since then; return the channels of the others.

        The first ones of these are those in which the position may be wrong: the others' is within the log.
        """
        resumption = self._resumption
        within, beyond = list[str](), list[str]()
        for channel in channels:
            end = self._hub.end_of(channel)
            if end is None or not resumption.must_ask(channel, end):
                continue
            history, place = self._hub.history, resumption.place_of(channel, end)
            is_beyond = place is None or place.offset > end.offset
            page = history.known_bounds(channel, since)
            # Bounds that were read before the stream opened say nothing of a position beyond them, unless
            # nobody but this process writes the log.
            is_new = since >= self._opened_at or (history.in_process and is_beyond)
            if page is not None and (place is None or is_new or page.has(place)):
                self._find_in(channel, page)
            elif is_beyond:
                beyond.append(channel)
                resumption.suspect |= page is not None and history.has_refuted(channel)
            else:
                within.append(channel)
        return beyond + within

    async def _ask(self, channels: list[str]) -> None:
        if len(channels) == 1 or self._hub.history.in_process:
            for channel in channels:
                await self._look_into(channel)
        else:
            async with anyio.create_task_group() as asking:
                for channel in channels:
                    asking.start_soon(self._look_into, channel)

    async def _look_into(self, channel: str) -> None:
        try:
            page = await self._hub.history.read_bounds(channel)
        except Exception as error:
            logger.debug("the history of %r cannot be read: %s", channel, error)
        else:
            self._find_in(channel, page)

    def _find_in(self, channel: str, page: Page) -> None:
        self._compare_epochs(channel, page)
        history = self._hub.history
        if not self._resumption.find_in(channel, page):
            history.refute(channel)
            if not history.in_process:
                self._read_at = self._hub.now() + BOUNDS_AGE

    def _compare_epochs(self, channel: str, page: Page) -> None:
        end = self._hub.end_of(channel)
        if end is not None and page.epoch != end.epoch:
            # The log goes on under another epoch, of which this process has not heard yet.
            self._hub.refresh(channel)


def _deliveries(channel: str, part: PageSlice) -> list[Delivery]:
    deliveries = [] if part.gap is None else [gap_delivery(channel, part.gap, part.start)]
    for position, payload in part.records:
        try:
            deliveries.append(delivery_of(channel, payload, position))
        except InvalidEventError:
            deliveries.append(gap_delivery(channel, GapReason.BROKER, position))
    return deliveries
