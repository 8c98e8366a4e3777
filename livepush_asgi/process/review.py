"""Review: what becomes of the open streams when revocations may have been lost. Each is authorized again."""

import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from ..errors import NotRunningError
from ..grant import Grant, StreamRequest
from ..runtime.scheduler import Clock
from ..stream.stream import Stream
from ..wire.reasons import EndReason
from .open_streams import OpenStreams

logger = logging.getLogger("livepush_asgi")

# How many streams are authorized again at a time.
CONCURRENCY = 20
# Streams that cannot be authorized again end over so many seconds, so that they do not come back together.
SPREAD = 5.0

Reauthorize = Callable[[StreamRequest], Awaitable[Grant | None]]


class Review:
    """Authorizes streams again, in place; one review at a time. It keeps the requests that this needs."""

    def __init__(
        self, streams: OpenStreams, clock: Clock, tasks: TaskGroup, reauthorize: Reauthorize
    ) -> None:
        self._streams = streams
        self._clock = clock
        self._tasks = tasks
        self._reauthorize = reauthorize
        self._requests: dict[Stream, StreamRequest] = {}
        self._due = False
        self._running = False

    def keep(self, stream: Stream, request: StreamRequest) -> None:
        """Keep the request by which a stream can be authorized again, without what was read out of it."""
        self._requests[stream] = StreamRequest(request.scope)

    def forget(self, stream: Stream) -> None:
        """Let go of the request of a stream."""
        self._requests.pop(stream, None)

    def begin(self) -> None:
        """Have every open stream authorized again, soon. Returns at once."""
        self._due = True
        if not self._running:
            self._running = True
            self._tasks.start_soon(self._run, name="livepush review")

    async def _run(self) -> None:
        try:
            while self._due:
                self._due = False
                await self._review()
        finally:
            self._running = False

    async def _review(self) -> None:
        streams = [stream for stream in self._streams.all if stream.reason is None]
        others = [stream for stream in streams if stream not in self._requests]
        again = deque([stream for stream in streams if stream in self._requests])
        if not streams:
            return
        logger.warning(
            "revocations may have been lost while the broker was away: %d streams are authorized again, and "
            "%d that cannot be end within %.0f s",
            len(again),
            len(others),
            SPREAD,
        )
        for stream in others:
            self._clock.call_later(random.uniform(0.0, SPREAD), partial(stream.end, EndReason.REVOKED))
        async with anyio.create_task_group() as workers:
            for _ in range(min(CONCURRENCY, len(again))):
                workers.start_soon(self._authorize_again, again)

    async def _authorize_again(self, streams: deque[Stream]) -> None:
        while streams:
            stream = streams.popleft()
            request = self._requests.get(stream)
            if request is None:
                continue
            try:
                grant = await self._reauthorize(request)
            except NotRunningError:
                # A drain ends them all.
                return
            except Exception:
                logger.exception("a stream cannot be authorized again, so it ends")
                grant = None
            if grant is None or not _same_terms(grant, stream.grant):
                stream.end(EndReason.REVOKED)
            # An `authorize` that never waits must not hold up the event loop for ten thousand streams.
            await anyio.lowlevel.checkpoint()


def _same_terms(grant: Grant, other: Grant) -> bool:
    """Return whether a stream that was opened with `other` may stay open under `grant`."""
    return (
        set(grant.channels) == set(other.channels)
        and grant.slot_key == other.slot_key
        and _lasts_as_long(grant.expiry, other.expiry)
    )


def _lasts_as_long(expiry: float | None, other: float | None) -> bool:
    return expiry is None or (other is not None and expiry >= other)
