"""SharedReads: one read of history for all streams of the process that need the same page.

After a restart or a deployment a thousand clients reconnect at the same position and read the same pages.
Callers during a read wait for its page (single-flight), and callers shortly afterwards get the cached page.
What streams send of a page is composed once too: its events with their ids, and the joined bytes.

A page shows the log at one moment, so a cached page may be older than the caller's request. It is current for
a caller in the same epoch if it has events, since the events of an epoch never change; or if it ends at the
last position that this process has delivered, since the log then has no more. Any other page is read again. A
caller in another epoch may know of a loss that came after the page.
"""

import contextlib
from collections.abc import Callable

import anyio

from ..brokers import READ_BYTES, HistoryBroker, Page, has_beside, payloads_of
from ..brokers.memory import MemoryBroker
from ..errors import InvalidEventError
from ..runtime.scheduler import Scheduler
from ..wire.cursor import Position
from ..wire.reasons import GapReason
from .delivery import MAX_GROWTH, Batch, Delivery, LogBatch, delivery_of, gap_delivery

# How long a page is cached, in seconds, and the largest size of all cached pages, in bytes.
MAX_AGE = 2.0
MAX_BYTES = 8 * 1024 * 1024
# The size of a page and of each event beside its payload, in bytes, so that empty ones are bounded too.
PAGE_OVERHEAD, EVENT_OVERHEAD = 1024, 512
# How often a page holds each payload: as it was read, as a block without and with an id, joined for streams
# on one channel, and for those on several.
COPIES = 4 + MAX_GROWTH

# The channel, the offset to read after, and the most events and bytes.
Request = tuple[str, int, int, int]


class SharedPage:
    """A page of a log. Its events become deliveries once, for all streams that send them."""

    __slots__ = ("_batch", "_channel", "page")

    def __init__(self, channel: str, page: Page) -> None:
        self.page = page
        self._channel = channel
        self._batch: Batch | None = None

    @property
    def batch(self) -> Batch:
        """All events of the page, with positions in the page's epoch."""
        if self._batch is None:
            self._batch = self._make_batch()
        return self._batch

    def seen_from(self, position: Position) -> "SharedPage":
        """Return the part of the page that a client at this position reads, as `Page.seen_from` does."""
        page = self.page.seen_from(position)
        return self if page is self.page else SharedPage(self._channel, page)

    def after(self, offset: int) -> Batch:
        """Return the events with offsets above `offset`."""
        records = self.page.records
        if not records or records[0].offset > offset:
            return self.batch
        skipped = sum([record.offset <= offset for record in records])
        return self.batch.part(skipped, len(records))

    def _make_batch(self) -> Batch:
        # `at` does not check the epoch again.
        records, start = self.page.records, Position(self.page.epoch, 0)
        if records and records[-1].offset - records[0].offset == len(records) - 1:
            before = start.at(records[0].offset - 1)
            with contextlib.suppress(InvalidEventError):
                return LogBatch(self._channel, before, payloads_of(records))
        deliveries = [self._delivery_of(record.payload, start.at(record.offset)) for record in records]
        return Batch(deliveries, has_gap=any(delivery.gap for delivery in deliveries))

    def _delivery_of(self, payload: bytes, position: Position) -> Delivery:
        try:
            return delivery_of(self._channel, payload, position)
        except InvalidEventError:
            return gap_delivery(self._channel, GapReason.BROKER, position)


class _Read:
    """A read of a log, and its page or error when it has ended."""

    __slots__ = ("_ended", "_has_ended", "error", "page", "refuted", "size", "started_at")

    def __init__(self, started_at: float) -> None:
        self.started_at = started_at
        self.page: SharedPage | None = None
        self.error: Exception | None = None
        #: How many bytes the page takes in the cache.
        self.size = 0
        #: Whether the page has refuted the position of a client.
        self.refuted = False
        self._has_ended = False
        # Created for the first task that waits: it costs as much as a read in memory.
        self._ended: anyio.Event | None = None

    def end(self) -> None:
        self._has_ended = True
        if self._ended is not None:
            self._ended.set()

    async def wait(self) -> None:
        if not self._has_ended:
            self._ended = self._ended or anyio.Event()
            await self._ended.wait()


class SharedReads:
    """Reads the logs of `broker`. `end_of` returns the last position of a channel that was delivered."""

    def __init__(
        self, broker: HistoryBroker, scheduler: Scheduler, end_of: Callable[[str], Position | None]
    ) -> None:
        #: Whether the logs are in the memory of this process, so that a read never waits.
        self.in_process: bool = getattr(broker, "in_process", False)
        self._broker = broker
        # The same, if it reads without waiting.
        self._memory = (
            broker if isinstance(broker, MemoryBroker) and has_beside(broker, "read", "read_nowait") else None
        )
        #: Whether `read_nowait` returns pages.
        self.reads_nowait = self._memory is not None
        self._scheduler = scheduler
        self._end_of = end_of
        self._in_flight: dict[Request, _Read] = {}
        # The reads with a page, the oldest first.
        self._cached: dict[Request, _Read] = {}
        self._bytes = 0

    def known_page(self, channel: str, after: Position, limit: int, max_bytes: int) -> SharedPage | None:
        """Return the page that `read` would return, if it was read lately; None if it has to be read."""
        read = self._known((channel, after.offset, limit, max_bytes), self._scheduler.now() - MAX_AGE)
        return None if read is None else self._current(channel, after.epoch, read)

    def read_nowait(self, channel: str, after: Position, limit: int, max_bytes: int) -> SharedPage | None:
        """Return the page that `read` would return, None if that would raise or `reads_nowait` is False."""
        if self._memory is None:
            return None
        request, read = (channel, after.offset, limit, max_bytes), _Read(self._scheduler.now())
        with contextlib.suppress(Exception):
            found = self._memory.read_nowait(channel, after.offset, limit, max_bytes=max_bytes)
            read.page = SharedPage(channel, found)
            self._cache(request, read)
        return read.page

    async def read(self, channel: str, after: Position, limit: int, max_bytes: int) -> SharedPage:
        """Return a page of the events after a position. Raises what the broker raises.

        If the caller that reads is cancelled, one of the waiting callers reads.
        """
        page = self.known_page(channel, after, limit, max_bytes)
        request = (channel, after.offset, limit, max_bytes)
        if page is None and (read := self._in_flight.get(request)) is not None:
            await read.wait()
            page = self._current(channel, after.epoch, read)
        return page or await self._read_now(request)

    async def read_bounds(self, channel: str) -> Page:
        """Return an empty page with the current bounds of a log. Raises what the broker raises."""
        request = _bounds(channel)
        if (read := self._in_flight.get(request)) is not None:
            await read.wait()
        return (await self._read_now(request)).page

    def known_bounds(self, channel: str, since: float) -> Page | None:
        """Return the last result of `read_bounds`, or None if that read began at `since` or earlier."""
        read = self._known(_bounds(channel), since)
        return None if read is None or read.page is None else read.page.page

    def clear(self) -> None:
        """Forget every page; the process has stopped, and no timer will drop them."""
        self._cached.clear()
        self._bytes = 0

    def refute(self, channel: str) -> None:
        """Record that the known bounds have refuted the position of a client."""
        if (read := self._cached.get(_bounds(channel))) is not None:
            read.refuted = True

    def has_refuted(self, channel: str) -> bool:
        """Return whether the known bounds have refuted the position of a client."""
        read = self._cached.get(_bounds(channel))
        return read is not None and read.refuted

    async def _read_now(self, request: Request) -> SharedPage:
        # A read that starts while the caller waits is as new as a read of its own.
        while (read := self._in_flight.get(request)) is not None:
            await read.wait()
            if read.page is not None:
                return read.page
            if read.error is not None:
                raise read.error.with_traceback(None)
        channel, after, limit, max_bytes = request
        read = self._in_flight[request] = _Read(self._scheduler.now())
        try:
            found = await self._broker.read(channel, after, limit, max_bytes=max_bytes)
            page = read.page = SharedPage(channel, found)
        except Exception as error:
            read.error = error
            raise
        finally:
            del self._in_flight[request]
            read.end()
        self._cache(request, read)
        return page

    def _current(self, channel: str, epoch: str, read: _Read) -> SharedPage | None:
        """Return the page of a read if it is current for a caller in this epoch."""
        found, end = read.page, self._end_of(channel)
        if found is None or end is None or not found.page.epoch == epoch == end.epoch:
            return None
        return found if found.page.records or found.page.last >= end.offset else None

    def _known(self, request: Request, since: float) -> _Read | None:
        read = self._cached.get(request)
        return read if read is not None and read.started_at > since else None

    def _cache(self, request: Request, read: _Read) -> None:
        if not self._cached:
            self._scheduler.call_later(MAX_AGE, self._expire)
        self._drop(request)
        read.size = _size(read)
        self._cached[request] = read
        self._bytes += read.size
        while self._bytes > MAX_BYTES:
            self._drop(next(iter(self._cached)))

    def _drop(self, request: Request) -> None:
        if (read := self._cached.pop(request, None)) is not None:
            self._bytes -= read.size

    def _expire(self) -> None:
        latest = self._scheduler.now() - MAX_AGE
        for request, read in list(self._cached.items()):
            if read.started_at > latest:
                break
            self._drop(request)
        if self._cached:
            self._scheduler.call_later(MAX_AGE, self._expire)


def _bounds(channel: str) -> Request:
    return (channel, 0, 0, READ_BYTES)


def _size(read: _Read) -> int:
    records = read.page.page.records if read.page else ()
    return PAGE_OVERHEAD + EVENT_OVERHEAD * len(records) + COPIES * sum(map(len, payloads_of(records)))
