"""SharedReads: identical reads of history, done once for all streams of the process.

After a restart or a deployment a thousand clients come back at the same position and read the same pages.
Those that ask while the read is under way wait for its page (single-flight), and those that ask within a
moment get it from here.

A page is the log at one moment, so one that somebody else asked for may be older than the caller's request.
It is right for a caller in the same epoch if it brings events, since the events of an epoch never change; or
if it ends where this process has delivered the log to, since then there is nothing more to bring. Any other
page is read anew. A caller in another epoch may know of a loss that came after the page.
"""

from collections.abc import Callable

import anyio

from ..brokers import HistoryBroker, Page
from ..runtime.scheduler import Clock
from ..wire.cursor import Position

# How long a page is kept for others, in seconds, and how many bytes of payload all of them have at most.
KEEP = 2.0
MOST_BYTES = 8 * 1024 * 1024
# Bytes that a page takes beside its payloads, so that empty pages are bounded too.
PAGE_COST = 1024

# The channel, the offset to read after, and how many events and bytes at most.
Request = tuple[str, int, int, int]


class _Flight:
    """A read that is under way. `landed` is set when it has ended, in one way or another."""

    __slots__ = ("error", "landed", "page")

    def __init__(self) -> None:
        self.landed = anyio.Event()
        self.page: Page | None = None
        self.error: Exception | None = None


class SharedReads:
    """Reads the logs of `broker`. `end_of` says how far this process has delivered a channel's log."""

    def __init__(self, broker: HistoryBroker, clock: Clock, end_of: Callable[[str], Position | None]) -> None:
        self._broker = broker
        self._clock = clock
        self._end_of = end_of
        self._flights: dict[Request, _Flight] = {}
        # The oldest is the first.
        self._pages: dict[Request, tuple[float, Page]] = {}
        self._bytes = 0

    async def read(self, channel: str, after: Position, limit: int, max_bytes: int) -> Page:
        """Return a page of what comes after a position. Raises what the broker raises.

        When the caller that reads is cancelled, another one reads for those that wait.
        """
        request = (channel, after.offset, limit, max_bytes)
        page = self._kept(request)
        if page is not None and self._is_right(channel, after.epoch, page):
            return page
        flight = self._flights.get(request)
        if flight is not None:
            await flight.landed.wait()
            if flight.page is not None and self._is_right(channel, after.epoch, flight.page):
                return flight.page
        return await self._read_new(request)

    async def read_new(self, channel: str, after: int, limit: int, max_bytes: int) -> Page:
        """Return a page that was not read before this call. Otherwise as `read` does."""
        request = (channel, after, limit, max_bytes)
        if (flight := self._flights.get(request)) is not None:
            await flight.landed.wait()
        return await self._read_new(request)

    async def _read_new(self, request: Request) -> Page:
        # Any flight from here on has begun after the caller asked, so its page is as new as one of its own.
        while (flight := self._flights.get(request)) is not None:
            await flight.landed.wait()
            if flight.page is not None:
                return flight.page
            if flight.error is not None:
                raise flight.error.with_traceback(None)
        return await self._read(request)

    async def _read(self, request: Request) -> Page:
        channel, after, limit, max_bytes = request
        flight = self._flights[request] = _Flight()
        try:
            flight.page = await self._broker.read(channel, after, limit, max_bytes=max_bytes)
        except Exception as error:
            flight.error = error
            raise
        finally:
            del self._flights[request]
            flight.landed.set()
        self._keep(request, flight.page)
        return flight.page

    def _is_right(self, channel: str, epoch: str, page: Page) -> bool:
        end = self._end_of(channel)
        if end is None or not page.epoch == epoch == end.epoch:
            return False
        return bool(page.records) or page.last >= end.offset

    def _kept(self, request: Request) -> Page | None:
        since, page = self._pages.get(request, (0.0, None))
        return page if page is not None and self._clock.now() - since < KEEP else None

    def _keep(self, request: Request, page: Page) -> None:
        self._drop(request)
        if not self._pages:
            self._clock.call_later(KEEP, self._expire)
        self._pages[request] = (self._clock.now(), page)
        self._bytes += _size(page)
        while self._bytes > MOST_BYTES:
            self._drop(next(iter(self._pages)))

    def _drop(self, request: Request) -> None:
        _, page = self._pages.pop(request, (0.0, None))
        if page is not None:
            self._bytes -= _size(page)

    def _expire(self) -> None:
        latest = self._clock.now() - KEEP
        for request, (since, _) in list(self._pages.items()):
            if since > latest:
                break
            self._drop(request)
        if self._pages:
            self._clock.call_later(KEEP, self._expire)


def _size(page: Page) -> int:
    return PAGE_COST + sum(len(record.payload) for record in page.records)
