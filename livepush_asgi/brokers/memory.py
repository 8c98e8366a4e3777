"""MemoryBroker: pub/sub inside one process, with history. The embedded default; it needs nothing."""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import cache

import anyio.lowlevel

from ..errors import PositionConflictError
from ..runtime.event_loop import is_running, loop_identity, time_source
from ..wire.cursor import Position
from . import READ_BYTES, Page, Subscription
from .history import History
from .mailbox import Mailbox
from .memory_log import Kept, MemoryLog
from .workers import one_of_several

logger = logging.getLogger("livepush_asgi")

# A publisher in a loop would otherwise fill every outbox before one stream had its turn to send.
# Yielding at each publish, on the other hand, would make one message of each event: what comes between
# two yields goes out as one.
PUBLISHES_BETWEEN_YIELDS = 128
BYTES_BETWEEN_YIELDS = 128 * 1024
# How often idle logs are looked for, in seconds, and how many are let go of in one call: a thousand cost less
# than a millisecond.
LOOK_INTERVAL, LOGS_PER_LOOK = 10.0, 1000


class MemoryBroker:
    """Delivers to the subscriptions of this process, at once and in the order of publishing.

    It keeps a log of each channel, bounded by `history`; it is gone with the process, and a client
    that comes back to another one is told so. All logs together are bounded by `History.total_size`, in
    bytes. A log to which nobody listens is forgotten when it was idle for the history's age, or longest of
    too many.

    Use it on one event loop: while there are subscriptions, a call on another running loop raises
    RuntimeError, since its events would arrive late or never. From another thread, publish through
    `anyio.from_thread.run` or asgiref's `async_to_sync`, which hand the call to the loop. Its events do not
    reach other processes: with several workers take a broker with a server. A process that can be known to
    be one of several logs a warning with its first subscription.
    """

    #: There is no server that could lose what this process has heard, or keep it from hearing.
    in_process = True

    def __init__(self, history: History | None = None) -> None:
        self._history = history or History()
        # Made once, and not for each of ten thousand subscriptions.
        self._on_close = self._forget
        # The one that was idle longest is the first.
        self._logs: OrderedDict[str, MemoryLog] = OrderedDict()
        # Those that keep events. The one to which nothing was added for the longest time is the first.
        self._filled: OrderedDict[str, MemoryLog] = OrderedDict()
        self._newest: MemoryLog | None = None
        self._kept = Kept()
        self._look_at = 0.0
        # The event loop on which the subscriptions are, and how many there are.
        self._loop: object | None = None
        self._listening = 0
        # The event loop that uses the broker, from the first call on.
        self._clock: Callable[[], float] = time.monotonic
        self._publishes = 0
        self._bytes = 0

    async def publish(self, channel: str, payload: str | bytes) -> int:
        """Append a payload to the channel's log, deliver it, and return how many subscriptions took it."""
        data = payload.encode() if isinstance(payload, str) else bytes(payload)
        await self.append(channel, data)
        return self.subscriptions(channel)

    async def subscribe(self, channel: str) -> Subscription:
        """Return a subscription that gets what is published from now on."""
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
        expected: Position | None = None,
    ) -> Position:
        """Append and deliver an event. See `broker.HistoryBroker`."""
        now = self._now()
        log = self._log(channel, now)
        if idempotency_key is not None and (known := log.known(idempotency_key)) is not None:
            return known
        if expected is not None and not _is_end(expected, log):
            raise PositionConflictError(channel, log.end)
        position = log.append(payload, now, idempotency_key)
        if log is not self._newest:
            self._newest = self._filled[channel] = log
            self._filled.move_to_end(channel)
        if self._kept.bytes > self._history.total_size:
            self._shed(log)
        for mailbox in tuple(log.mailboxes):
            mailbox.deliver_at(position, payload)
        self._publishes += 1
        self._bytes += len(payload)
        if self._publishes >= PUBLISHES_BETWEEN_YIELDS or self._bytes >= BYTES_BETWEEN_YIELDS:
            self._publishes = self._bytes = 0
            await anyio.lowlevel.checkpoint()
        return position

    async def read(self, channel: str, after: int, limit: int, *, max_bytes: int = READ_BYTES) -> Page:
        """Return a part of the channel's log. See `broker.HistoryBroker`."""
        now = self._now()
        return self._log(channel, now).page(after, limit, now, max_bytes)

    @property
    def size(self) -> int:
        """How many bytes all logs together keep, as `History.total_size` counts them."""
        return self._kept.bytes

    def subscriptions(self, channel: str) -> int:
        """Return how many subscriptions the channel has."""
        log = self._logs.get(channel)
        return len(log.mailboxes) if log else 0

    def _log(self, channel: str, now: float) -> MemoryLog:
        log = self._logs.get(channel)
        if log is None:
            # One log comes, so letting go of two keeps the number of looks bounded and the logs too.
            self._forget_idle(now, 2, coming=1)
            log = self._logs[channel] = MemoryLog(self._history, now, self._kept)
        self._logs.move_to_end(channel)
        log.used = now
        if now >= self._look_at:
            self._look(now)
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

    def _look(self, now: float) -> None:
        """Let go of what is too old, a part of it at a time, whatever channel is in use."""
        self._forget_idle(now, LOGS_PER_LOOK, coming=0)
        # The next call goes on where this one had to stop.
        is_done = not self._logs or not self._is_idle(next(iter(self._logs.values())), now)
        self._look_at = now + (LOOK_INTERVAL if is_done else 0.0)

    def _forget_idle(self, now: float, most: int, *, coming: int) -> None:
        for _ in range(min(most, len(self._logs))):
            channel, log = next(iter(self._logs.items()))
            idle = self._is_idle(log, now)
            if not idle and len(self._logs) + coming <= self._history.channels:
                return
            if log.mailboxes:
                log.trim(now)
                log.used = now
                self._logs.move_to_end(channel)
            else:
                log.clear()
                self._filled.pop(channel, None)
                del self._logs[channel]
                if log is self._newest:
                    self._newest = None

    def _is_idle(self, log: MemoryLog, now: float) -> bool:
        return self._history.age is not None and now - log.used > self._history.age

    def _shed(self, newest: MemoryLog) -> None:
        """Let go of the oldest events of the channels that were quiet longest; the newest event stays."""
        while self._kept.bytes > self._history.total_size:
            channel, log = next(iter(self._filled.items()))
            log.drop_oldest(self._history.total_size, leave=int(log is newest))
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
            " the streams of the others; run one worker, or take a broker with a server (RedisStreamsBroker)"
        )


def _is_end(expected: Position, log: MemoryLog) -> bool:
    if expected.offset == 0:
        return log.last == 0
    return expected == log.end
