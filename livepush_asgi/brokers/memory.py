"""MemoryBroker: pub/sub inside one process, with history. It needs no server."""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cache
from itertools import accumulate

import anyio.lowlevel

from ..errors import PositionConflictError
from ..runtime.event_loop import is_running, loop_identity, time_source
from ..runtime.failure_log import fields
from ..settings import value_or_default
from ..wire.cursor import Position, new_epoch
from ..wire.event import payload_bytes
from . import READ_BYTES, Page, Records, Subscription
from .history import History
from .mailbox import Mailbox
from .segments import Segments
from .workers import one_of_several

logger = logging.getLogger("livepush_asgi")

# Without a pause a publisher in a loop would fill every outbox before one stream could send. A pause at each
# publish would send each event as a message of its own; events between two pauses are sent together.
PUBLISHES_BETWEEN_PAUSES = 128
BYTES_BETWEEN_PAUSES = 128 * 1024
# Seconds between two searches for idle logs, and how many logs one search forgets at most: a thousand take
# less than a millisecond.
SEARCH_INTERVAL, LOGS_PER_SEARCH = 10.0, 1000
# Bytes that an event takes beside its payload: the objects around the payload and its time.
EVENT_COST = 80


class Usage:
    """How many bytes several logs keep together: their payloads, and `EVENT_COST` for each event."""

    __slots__ = ("bytes",)

    def __init__(self) -> None:
        self.bytes = 0


class MemoryLog:
    """The log of one channel, bounded by a History. Times are seconds of one clock."""

    __slots__ = ("_events", "_history", "_keys", "_size", "_usage", "end", "mailboxes", "used")

    def __init__(self, history: History, now: float, usage: Usage | None = None) -> None:
        #: The position of the newest event.
        self.end = Position(new_epoch(), 0)
        #: When the log was last used.
        self.used = now
        #: The subscriptions of the channel. A log with subscriptions is kept: its streams hold positions.
        self.mailboxes: dict[Mailbox, None] = {}
        self._history = history
        self._usage = usage or Usage()
        # Offsets follow from the order.
        self._events = Segments()
        self._size = 0
        # Created with the first key: most channels never have one.
        self._keys: OrderedDict[str, int] | None = None

    @property
    def last(self) -> int:
        """The offset of the newest event, 0 if there was none."""
        return self.end.offset

    @property
    def is_empty(self) -> bool:
        """Whether no event is kept."""
        return not self._events.count

    def known(self, key: str) -> Position | None:
        """Return the position of the event that was added with this idempotency key."""
        offset = self._keys.get(key) if self._keys else None
        return None if offset is None else self.end.at(offset)

    def ends_at(self, position: Position) -> bool:
        """Return whether the newest event is at a position; offset 0 means that there was none."""
        if position is self.end:
            return True
        return self.last == 0 if position.offset == 0 else position == self.end

    def append(self, payload: bytes, now: float, key: str | None = None) -> Position:
        """Add an event, and drop events that exceed the bounds."""
        self.end = self.end.next()
        self._events.append(payload, now)
        size = len(payload)
        self._size += size
        self._usage.bytes += size + EVENT_COST
        if key is not None:
            self._keys = self._keys or OrderedDict()
            self._keys[key] = self.end.offset
            # No more keys are remembered than events.
            if len(self._keys) > self._history.events:
                self._keys.popitem(last=False)
        self.trim(now)
        return self.end

    def extend(self, payloads: Sequence[bytes], now: float) -> None:
        """Add events in order, and drop events that exceed the bounds."""
        number, size = len(payloads), sum(map(len, payloads))
        self.end = self.end.at(self.end.offset + number)
        self._events.extend(payloads, now)
        self._size += size
        self._usage.bytes += size + number * EVENT_COST
        self.trim(now)

    def page(self, after: int, limit: int, now: float, max_bytes: int = READ_BYTES) -> Page:
        """Return up to `limit` events with offsets above `after`."""
        self.used = now
        self.trim(now)
        first = self.last - self._events.count + 1
        skipped = min(max(0, after - first + 1), self._events.count)
        payloads = self._events.part(skipped, skipped + limit)
        if sum(map(len, payloads)) > max_bytes:
            fitting = sum(size <= max_bytes for size in accumulate(map(len, payloads)))
            payloads = payloads[: max(1, fitting)]
        return Page(self.end.epoch, first, self.last, Records(first + skipped, payloads))

    def trim(self, now: float) -> None:
        """Drop the oldest events until the channel's bounds hold."""
        history, events = self._history, self._events
        while events.count and (
            events.count > history.events
            or (self._size > history.size and events.count > 1)
            or (history.age is not None and now - events.oldest_time > history.age)
        ):
            self._drop_oldest()

    def shrink(self, most: int, *, leave: int) -> None:
        """Drop the oldest events until all logs use `most` bytes, or `leave` events are left in this one."""
        while self._events.count > leave and self._usage.bytes > most:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        size = len(self._events.drop_oldest())
        self._size -= size
        self._usage.bytes -= size + EVENT_COST


class MemoryBroker:
    """Delivers each payload to the subscriptions of this process, at once and in the order of publishing.

    It keeps a log of each channel, bounded by `history`. The logs end with the process: a client that
    reconnects to another process is told of a gap. `History.total_size` bounds all logs together, in bytes. A
    log without subscriptions is forgotten when it was idle for `History.age`, or when there are more than
    `History.channels` logs and it was idle longest.

    Use it on one event loop: while there are subscriptions, a call on another running loop raises
    RuntimeError, since its events would arrive late or never. From another thread, call
    `LivePush.publish_sync`, which hands the event to the loop. Events do not reach other processes: with
    several workers use a broker with a server. If this process seems to be one of several workers, the first
    subscription logs a warning.
    """

    #: There is no server that could lose commands, or withhold them from this process.
    in_process = True

    def __init__(self, history: History | None = None) -> None:
        #: The bounds of each log.
        self.history = value_or_default("history", history, History)
        # One bound method for all subscriptions, of which there may be ten thousand.
        self._on_close = self._forget
        # Ordered by last use, the least recently used first.
        self._logs: OrderedDict[str, MemoryLog] = OrderedDict()
        # The logs that are not empty, ordered by their last append.
        self._filled: OrderedDict[str, MemoryLog] = OrderedDict()
        self._newest: MemoryLog | None = None
        self._usage = Usage()
        self._search_at = 0.0
        # The event loop of the subscriptions, and how many there are.
        self._loop: object | None = None
        self._listening = 0
        self._clock: Callable[[], float] = time.monotonic
        self._publishes = 0
        self._bytes = 0

    async def publish(self, channel: str, payload: str | bytes) -> int:
        """Append a payload to the channel's log, deliver it, and return how many subscriptions got it."""
        data = payload_bytes(payload)
        await self.append(channel, data)
        return self.subscriptions(channel)

    async def subscribe(self, channel: str) -> Subscription:
        """Return a subscription that gets every payload published from now on."""
        _warn_of_workers()
        mailbox = Mailbox(channel, self._on_close)
        self._log(channel, self._now()).mailboxes[mailbox] = None
        self._listening += 1
        return mailbox

    async def append(
        self,
        channel: str,
        payload: bytes,
        *,
        idempotency_key: str | None = None,
        expected_position: Position | None = None,
    ) -> Position:
        """Append and deliver an event. See `HistoryBroker`."""
        now = self._now()
        log = self._log(channel, now)
        if idempotency_key is not None and (known := log.known(idempotency_key)) is not None:
            return known
        if expected_position is not None and not log.ends_at(expected_position):
            raise PositionConflictError(channel, log.end)
        position = self._add(log, channel, payload, now, idempotency_key)
        if self._publishes >= PUBLISHES_BETWEEN_PAUSES or self._bytes >= BYTES_BETWEEN_PAUSES:
            await self._pause()
        return position

    async def append_batch(
        self, channel: str, payloads: Sequence[bytes], *, expected_position: Position
    ) -> Position:
        """Append and deliver events in order. See `BatchBroker`."""
        self._now()
        position = self.append_nowait(channel, payloads, expected_position=expected_position)
        if self._publishes >= PUBLISHES_BETWEEN_PAUSES or self._bytes >= BYTES_BETWEEN_PAUSES:
            await self._pause()
        return position

    def append_nowait(
        self, channel: str, payloads: Sequence[bytes], *, expected_position: Position
    ) -> Position:
        """Do what `append_batch` does, without a pause; for the event loop that has called `append`."""
        now = self._clock()
        log = self._log(channel, now)
        if not log.ends_at(expected_position):
            raise PositionConflictError(channel, log.end)
        if len(payloads) == 1:
            return self._add(log, channel, payloads[0], now)
        before = log.end
        log.extend(payloads, now)
        # A delivery may make its listener publish to this channel.
        end = log.end
        self._note_append(log, channel)
        for mailbox in tuple(log.mailboxes):
            mailbox.deliver_after(before, payloads)
        self._publishes += len(payloads)
        self._bytes += sum(map(len, payloads))
        return end

    def _add(
        self, log: MemoryLog, channel: str, payload: bytes, now: float, key: str | None = None
    ) -> Position:
        position = log.append(payload, now, key)
        self._note_append(log, channel)
        if log.mailboxes:
            for mailbox in tuple(log.mailboxes):
                mailbox.deliver_at(position, payload)
        self._publishes += 1
        self._bytes += len(payload)
        return position

    def _note_append(self, log: MemoryLog, channel: str) -> None:
        if log is not self._newest:
            self._newest = self._filled[channel] = log
            self._filled.move_to_end(channel)
        if self._usage.bytes > self.history.total_size:
            self._shrink_logs(log)

    async def _pause(self) -> None:
        self._publishes = self._bytes = 0
        await anyio.lowlevel.checkpoint()

    async def read(self, channel: str, after: int, limit: int, *, max_bytes: int = READ_BYTES) -> Page:
        """Return a part of the channel's log. See `HistoryBroker`."""
        return self.read_nowait(channel, after, limit, max_bytes=max_bytes)

    def read_nowait(self, channel: str, after: int, limit: int, *, max_bytes: int = READ_BYTES) -> Page:
        """Do what `read` does, which never waits; for the event loop that `read` may be called on."""
        now = self._now()
        return self._log(channel, now).page(after, limit, now, max_bytes)

    @property
    def size(self) -> int:
        """How many bytes all logs together keep, as `History.total_size` counts them."""
        return self._usage.bytes

    def subscriptions(self, channel: str) -> int:
        """Return how many subscriptions the channel has."""
        log = self._logs.get(channel)
        return len(log.mailboxes) if log else 0

    def _log(self, channel: str, now: float) -> MemoryLog:
        log = self._logs.get(channel)
        if log is None:
            # Up to two for each new log: their number shrinks to the bound, and no call takes long.
            self._forget_idle(now, 2, coming=1)
            log = self._logs[channel] = MemoryLog(self.history, now, self._usage)
        self._logs.move_to_end(channel)
        log.used = now
        if now >= self._search_at:
            self._forget_idle(now, LOGS_PER_SEARCH, coming=0)
            # A search that could not forget all idle logs continues with the next call.
            is_done = not self._logs or not self._is_idle(next(iter(self._logs.values())), now)
            self._search_at = now + (SEARCH_INTERVAL if is_done else 0.0)
        return log

    def _now(self) -> float:
        """Return the time of the running loop's clock. Raises RuntimeError if that is the wrong loop."""
        loop = loop_identity()
        if loop is not self._loop:
            self._change_loop(loop)
        return self._clock()

    def _change_loop(self, loop: object) -> None:
        if self._listening and self._loop is not None and is_running(self._loop):
            raise RuntimeError(
                "MemoryBroker is used on the event loop of its subscriptions, and this is another one, from"
                " which events would be late or lost: hand the call over with anyio.from_thread.run or"
                " asyncio.run_coroutine_threadsafe, or take a broker with a server"
            )
        self._loop, self._clock = loop, time_source()

    def _forget_idle(self, now: float, most: int, *, coming: int) -> None:
        """Forget up to `most` logs: idle ones, and the least recently used while there are too many.

        `coming` is the number of logs that the caller is about to add.
        """
        for _ in range(min(most, len(self._logs))):
            channel, log = next(iter(self._logs.items()))
            if not self._is_idle(log, now) and len(self._logs) + coming <= self.history.channels:
                return
            if log.mailboxes:
                log.trim(now)
                log.used = now
                self._logs.move_to_end(channel)
                continue
            log.shrink(0, leave=0)
            self._filled.pop(channel, None)
            del self._logs[channel]
            if log is self._newest:
                self._newest = None

    def _is_idle(self, log: MemoryLog, now: float) -> bool:
        return self.history.age is not None and now - log.used > self.history.age

    def _shrink_logs(self, newest: MemoryLog) -> None:
        """Drop the oldest events of the least recently published channels. The newest event stays."""
        while self._usage.bytes > self.history.total_size:
            channel, log = next(iter(self._filled.items()))
            log.shrink(self.history.total_size, leave=int(log is newest))
            if log is newest:
                return
            if log.is_empty:
                del self._filled[channel]

    def _forget(self, mailbox: Mailbox) -> None:
        del self._logs[mailbox.channel].mailboxes[mailbox]
        self._listening -= 1


@cache
def _warn_of_workers() -> None:
    if one_of_several():
        logger.warning(
            "MemoryBroker is used in one of several worker processes: what is published in one does not reach"
            " the streams of the others; run one worker, or take a broker with a server (RedisStreamsBroker)",
            extra=fields("memory_of_one_worker"),
        )
