"""SharedReads: identical reads of history, done once for all streams of the process.

After a restart or a deployment a thousand clients come back at the same position and read the same pages.
Those that ask while the read is under way wait for its page (single-flight), and those that ask within a
moment get the page that was read.

A page is the log at one moment, so one that another stream asked for may be older than the caller's request.
It is right for a caller in the same epoch if it brings events, since the events of an epoch never change; or
if it ends where this process has delivered the log to, since then there is nothing more to bring. Any other
page is read anew. A caller in another epoch may know of a loss that came after the page.
"""

from collections.abc import Callable

import anyio

from ..brokers import READ_BYTES, HistoryBroker, Page
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
    """A read that is under way, and how it ended."""

    __slots__ = ("_landed", "_waiting", "error", "page")

    def __init__(self) -> None:
        self.page: Page | None = None
        self.error: Exception | None = None
        self._landed = False
        # Made for the first that waits: it costs as much as a read in memory.
        self._waiting: anyio.Event | None = None

    def land(self) -> None:
        self._landed = True
        if self._waiting is not None:
            self._waiting.set()

    async def wait(self) -> None:
        if not self._landed:
            self._waiting = self._waiting or anyio.Event()
            await self._waiting.wait()


class SharedReads:
    """Reads the logs of `broker`. `end_of` says how far this process has delivered a channel's log."""

    def __init__(self, broker: HistoryBroker, clock: Clock, end_of: Callable[[str], Position | None]) -> None:
        #: Whether the logs are in this process, so that a read waits for nothing and costs next to nothing.
        self.in_process: bool = getattr(broker, "in_process", False)
        self._broker = broker
        self._clock = clock
        self._end_of = end_of
        self._flights: dict[Request, _Flight] = {}
        # The pages, and when each read began. The oldest is the first.
        self._pages: dict[Request, tuple[float, Page]] = {}
        self._bytes = 0
        # Those of the pages that do not have a client's position.
        self._refuting: set[Request] = set()

    async def read(self, channel: str, after: Position, limit: int, max_bytes: int) -> Page:
        """Return a page of what comes after a position. Raises what the broker raises.

        When the caller that reads is cancelled, another one reads for those that wait.
        """
        request = (channel, after.offset, limit, max_bytes)
        began, page = self._pages.get(request, (0.0, None))
        if (
            page is not None
            and self._clock.now() - began < KEEP
            and self._is_right(request, after.epoch, page)
        ):
            return page
        flight = self._flights.get(request)
        if flight is not None:
            await flight.wait()
            if flight.page is not None and self._is_right(request, after.epoch, flight.page):
                return flight.page
        return await self._read_anew(request)

    async def read_bounds(self, channel: str) -> Page:
        """Return an empty page that says where a log begins and ends now. Raises what the broker raises."""
        request = _bounds(channel)
        if (flight := self._flights.get(request)) is not None:
            await flight.wait()
        return await self._read_anew(request)

    def known_bounds(self, channel: str, since: float) -> Page | None:
        """Return what `read_bounds` read last, None if that began before `since`."""
        began, page = self._pages.get(_bounds(channel), (0.0, None))
        return page if began >= since else None

    def refute(self, channel: str) -> None:
        """Take note that the bounds that were read last do not have a client's position."""
        if _bounds(channel) in self._pages:
            self._refuting.add(_bounds(channel))

    def has_refuted(self, channel: str) -> bool:
        """Return whether the bounds that were read last do not have a client's position."""
        return _bounds(channel) in self._refuting

    async def _read_anew(self, request: Request) -> Page:
        # Any flight from here on has begun after the caller asked, so its page is as new as one of its own.
        while (flight := self._flights.get(request)) is not None:
            await flight.wait()
            if flight.page is not None:
                return flight.page
            if flight.error is not None:
                raise flight.error.with_traceback(None)
        channel, after, limit, max_bytes = request
        began = self._clock.now()
        flight = self._flights[request] = _Flight()
        try:
            page = flight.page = await self._broker.read(channel, after, limit, max_bytes=max_bytes)
        except Exception as error:
            flight.error = error
            raise
        finally:
            del self._flights[request]
            flight.land()
        self._keep(request, began, page)
        return page

    def _is_right(self, request: Request, epoch: str, page: Page) -> bool:
        end = self._end_of(request[0])
        if end is None or not page.epoch == epoch == end.epoch:
            return False
        return bool(page.records) or page.last >= end.offset

    def _keep(self, request: Request, began: float, page: Page) -> None:
        self._drop(request)
        if not self._pages:
            self._clock.call_later(KEEP, self._expire)
        self._pages[request] = began, page
        self._bytes += _size(page)
        while self._bytes > MOST_BYTES:
            self._drop(next(iter(self._pages)))

    def _drop(self, request: Request) -> None:
        self._refuting.discard(request)
        _, page = self._pages.pop(request, (0.0, None))
        if page is not None:
            self._bytes -= _size(page)

    def _expire(self) -> None:
        latest = self._clock.now() - KEEP
        for request, (began, _) in list(self._pages.items()):
            if began > latest:
                break
            self._drop(request)
        if self._pages:
            self._clock.call_later(KEEP, self._expire)


def _bounds(channel: str) -> Request:
    return (channel, 0, 0, READ_BYTES)


def _size(page: Page) -> int:
    return PAGE_COST + sum([len(record.payload) for record in page.records])
