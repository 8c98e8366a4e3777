"""Drain: a process that ends gives up its streams, spread over a window."""

import logging
import random
from functools import partial

import anyio

from ..runtime.scheduler import Scheduler
from ..settings import DrainPolicy
from ..stream.stream import Stream
from ..wire.reasons import EndReason
from .signals import SignalWatch

logger = logging.getLogger("livepush_asgi")

# The part of the window in which streams are told to end. The rest is for what they still have to send.
SPREAD = 0.8
# Fewer streams than this are no storm when they come back: they are given up in a part of the window.
FULL_SPREAD_FROM = 10
# How long a server may take to end by itself, in seconds, before the default action of a signal ends it.
EXIT_TIMEOUT = 1.0
# How long a server that cuts its connections at a signal has for the last bytes of the streams, in seconds.
LAST_CHUNK_TIME = 0.2


class Drain:
    """Ends the streams of a run within the window of its policy, and holds signals until that is done."""

    def __init__(
        self, policy: DrainPolicy, streams: set[Stream], scheduler: Scheduler, signals: SignalWatch
    ) -> None:
        self._policy = policy
        self._streams = streams
        self._scheduler = scheduler
        self._signals = signals
        self._empty = anyio.Event()
        #: Set when no stream is left.
        self.done = anyio.Event()

    def stream_closed(self) -> None:
        """Take note that a stream has closed."""
        if not self._streams:
            self._empty.set()

    async def run(self) -> None:
        """End every stream at a random moment of the window, cut those that are left, and pass signals on."""
        streams, window = self._streams, self._policy.window
        span = SPREAD * window * min(1.0, len(streams) / FULL_SPREAD_FROM)
        if streams:
            logger.warning("draining: %d streams end within %.1f s", len(streams), span)
        for stream in streams:
            self._scheduler.call_later(random.uniform(0.0, span), partial(stream.end, EndReason.DRAIN))
        with anyio.move_on_after(window):
            while streams:
                self._empty = anyio.Event()
                await self._empty.wait()
        self.abort_remaining()
        await self.release_signals()

    def abort_remaining(self) -> None:
        """Cut every stream that is left. Returns at once."""
        for stream in list(self._streams):
            stream.abort(EndReason.DRAIN)
        self.done.set()

    async def release_signals(self) -> None:
        """Let the server have the signals that were held. Its streams have ended."""
        if self._signals.fatal:
            # The server may have been told to end in another way, and be about to stop this run.
            await anyio.sleep(EXIT_TIMEOUT)
        elif self._signals.holding:
            await anyio.sleep(LAST_CHUNK_TIME)
        self._signals.release()
