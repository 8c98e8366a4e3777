"""Drain: ends the streams of a process, spread over a window."""

import logging
import random
from functools import partial

import anyio

from ..runtime.failure_log import fields
from ..runtime.scheduler import Scheduler
from ..settings import DrainPolicy
from ..stream.stream import Stream
from ..wire.reasons import EndReason
from .signals import SignalWatch

logger = logging.getLogger("livepush_asgi")

# The part of the window in which streams are ended. In the rest they send their last events.
SPREAD = 0.8
# Fewer streams than this end in a part of the window: their reconnects are no storm.
FULL_SPREAD_FROM = 10
# How long a server may take to exit by itself, in seconds, before the default action of a signal kills it.
EXIT_TIMEOUT = 1.0
# How long a server that closes its connections at a signal may take to send the last chunks, in seconds.
LAST_CHUNK_TIME = 0.2


class Drain:
    """Ends the streams of a process within the window of its policy, and then releases the held signals.

    `subscribers` end at once, and the drain waits, within the window, until their code has left them.
    """

    def __init__(
        self,
        policy: DrainPolicy,
        streams: set[Stream],
        subscribers: set[Stream],
        scheduler: Scheduler,
        signals: SignalWatch,
    ) -> None:
        self._policy = policy
        self._streams = streams
        self._subscribers = subscribers
        self._scheduler = scheduler
        self._signals = signals
        self._empty = anyio.Event()
        #: Set when all streams have ended.
        self.done = anyio.Event()

    def stream_closed(self) -> None:
        """Called when a stream has closed."""
        if not self._streams and not self._subscribers:
            self._empty.set()

    async def run(self) -> None:
        """End each stream at a random moment of the window, abort late ones, and release the signals."""
        streams, window = self._streams, self._policy.window
        span = SPREAD * window * min(1.0, len(streams) / FULL_SPREAD_FROM)
        count, began_at = len(streams), self._scheduler.now()
        if count:
            logger.info(
                "draining: %d streams end within %.1f s",
                count,
                span,
                extra=fields("drain_begins", streams=count, seconds=span),
            )
        self.end_subscribers()
        for stream in streams:
            self._scheduler.call_later(random.uniform(0.0, span), partial(stream.end, EndReason.DRAIN))
        with anyio.move_on_after(window):
            while streams or self._subscribers:
                self._empty = anyio.Event()
                await self._empty.wait()
        late, took = len(streams), self._scheduler.now() - began_at
        self.abort_remaining()
        if count:
            logger.info(
                "drained: %d streams have ended in %.1f s, %d of them were cut off",
                count,
                took,
                late,
                extra=fields("drain_ends", streams=count, seconds=took, cut_off=late),
            )
        await self.release_signals()

    def abort_remaining(self) -> None:
        """Abort every stream that has not closed. Returns at once."""
        self.end_subscribers()
        for stream in list(self._streams):
            stream.abort(EndReason.DRAIN)
        self.done.set()

    def end_subscribers(self) -> None:
        """End the subscribers, which yield what was delivered to them first. Returns at once."""
        for stream in list(self._subscribers):
            stream.end(EndReason.DRAIN)

    async def release_signals(self) -> None:
        """Pass the held signals on to the server, after the end of its streams."""
        if self._signals.fatal:
            # The server may shut down in another way, and be about to stop this LivePush.
            await anyio.sleep(EXIT_TIMEOUT)
        elif self._signals.holding:
            await anyio.sleep(LAST_CHUNK_TIME)
        self._signals.release()
