"""The open streams of a process: by slot key and by channel, their revocation, and their reauthorization."""

import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from functools import partial

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from ..errors import NotRunningError
from ..grant import Authorize, Grant, StreamRequest
from ..hub.hub import Hub
from ..runtime.asgi import Scope
from ..runtime.event_loop import spawn
from ..runtime.failure_log import FailureLog, fields
from ..runtime.scheduler import Scheduler
from ..stream.stream import Stream
from ..stream.subscriber import SubscriberStream
from ..wire.reasons import EndReason, StreamState
from .revocation import Revocation, can_be_revoked

logger = logging.getLogger("livepush_asgi")

# How long a revoked stream may take to send the events that were published before, in seconds. Then it is
# aborted.
FLUSH_TIMEOUT = 1.0
# How many streams are authorized again at the same time.
CONCURRENCY = 20
# How long to wait, in seconds, before `authorize` is called once more for the streams for which it failed.
RETRY_DELAY = 0.5
# Streams that cannot be authorized again end spread over this time, in seconds, so that their clients do not
# all reconnect at once.
SPREAD = 5.0


class EndingStreams:
    """Streams that are ending. `closed` is set when all of them have closed."""

    def __init__(self, streams: Iterable[Stream]) -> None:
        self.remaining = {stream for stream in streams if stream.state is not StreamState.CLOSED}
        #: How many of the streams were not ending before.
        self.count = sum(stream.reason is None for stream in self.remaining)
        self.closed = anyio.Event()
        if not self.remaining:
            self.closed.set()

    def discard(self, stream: Stream) -> None:
        """Called when a stream has closed."""
        self.remaining.discard(stream)
        if not self.remaining:
            self.closed.set()


class OpenStreams:
    """The open streams, by slot key. The hub knows the streams of a channel: they are its listeners.

    With `keep_requests`, the request of each stream is kept for its reauthorization. This costs about 0.7 KiB
    per stream.
    """

    def __init__(self, *, keep_requests: bool) -> None:
        self.all: set[Stream] = set()
        #: The scope of a stream's request, and the `authorize` of its route, if any. Streams without a
        #: request are not in it.
        self.requests: dict[Stream, tuple[Scope, Authorize | None]] = {}
        self._keep_requests = keep_requests
        # Most keys have one stream, which needs no set.
        self._by_key: dict[str, Stream | set[Stream]] = {}
        self._ending: set[EndingStreams] = set()

    def add(self, stream: Stream, request: StreamRequest | None, authorize: Authorize | None) -> None:
        """Add an open stream."""
        self.all.add(stream)
        if request is not None and self._keep_requests:
            self.requests[stream] = request.scope, authorize
        key = stream.grant.slot_key
        if key is not None:
            known = self._by_key.setdefault(key, stream)
            if isinstance(known, set):
                known.add(stream)
            elif known is not stream:
                self._by_key[key] = {known, stream}

    def discard(self, stream: Stream) -> None:
        """Remove a stream that has closed."""
        self.all.discard(stream)
        self.requests.pop(stream, None)
        key = stream.grant.slot_key
        if key is not None:
            known = self._by_key.get(key)
            if isinstance(known, set):
                known.discard(stream)
            if known is stream or not known:
                self._by_key.pop(key, None)
        for ending in self._ending:
            ending.discard(stream)

    def of_key(self, slot_key: str) -> list[Stream]:
        """Return the streams of a slot key."""
        known = self._by_key.get(slot_key)
        return list(known) if isinstance(known, set) else [] if known is None else [known]

    def revoke(self, hub: Hub, revocation: Revocation) -> EndingStreams:
        """End the streams that a revocation matches. Returns at once; late streams are aborted."""
        if revocation.slot_key is not None:
            found = self.of_key(revocation.slot_key)
        else:
            listeners = hub.listeners(revocation.channel or "")
            streams = [listener for listener in listeners if isinstance(listener, Stream)]
            # A permission is a client's. Code of this process needs none.
            found = [stream for stream in streams if not isinstance(stream, SubscriberStream)]
        ending = EndingStreams(stream for stream in found if revocation.matches(stream.grant))
        if ending.remaining:
            self._ending.add(ending)
            for stream in list(ending.remaining):
                stream.end(EndReason.REVOKED)
            # This task must outlive the LivePush, and the task that revokes, which may be cancelled.
            spawn(partial(self._abort_remaining, ending), "livepush revocation")
        return ending

    async def _abort_remaining(self, ending: EndingStreams) -> None:
        with anyio.move_on_after(FLUSH_TIMEOUT):
            await ending.closed.wait()
        for stream in list(ending.remaining):
            stream.abort(EndReason.REVOKED)
        self._ending.discard(ending)


#: Decides again about a stream, by the `authorize` of its route or of the application. None ends the stream.
#: It raises what `authorize` raises.
Reauthorize = Callable[[StreamRequest, Authorize | None], Awaitable[Grant | None]]


class Reauthorization:
    """Authorizes the open streams again after revocations may have been lost. One pass at a time."""

    def __init__(
        self, streams: OpenStreams, scheduler: Scheduler, tasks: TaskGroup, decide: Reauthorize
    ) -> None:
        self._streams = streams
        self._scheduler = scheduler
        self._tasks = tasks
        self._decide = decide
        self._failures = FailureLog()
        self._due = False
        self._running = False

    def begin(self) -> None:
        """Start to authorize every open stream again. Returns at once."""
        self._due = True
        if not self._running:
            self._running = True
            self._tasks.start_soon(self._run, name="livepush reauthorization")

    async def _run(self) -> None:
        while self._due:
            self._due = False
            await self._reauthorize_all()
        self._running = False

    async def _reauthorize_all(self) -> None:
        requests = self._streams.requests
        streams = [
            stream for stream in self._streams.all if stream.reason is None and can_be_revoked(stream.grant)
        ]
        again = deque([stream for stream in streams if stream in requests])
        others = [stream for stream in streams if stream not in requests]
        if not streams:
            return
        logger.warning(
            "revocations may have been lost while the broker was away: %d streams are authorized again, and "
            "%d that cannot be end within %.0f s",
            len(again),
            len(others),
            SPREAD,
            extra=fields("revocations_lost", authorized_again=len(again), ending=len(others), seconds=SPREAD),
        )
        for stream in others:
            self._scheduler.call_later(random.uniform(0.0, SPREAD), partial(stream.end, EndReason.REVOKED))
        failed: deque[Stream] = deque()
        await self._decide_all(again, lambda stream, error: failed.append(stream))
        if failed:
            # The database may have been away together with the broker.
            await anyio.sleep(RETRY_DELAY)
            await self._decide_all(failed, self._end_failed)

    async def _decide_all(
        self, streams: deque[Stream], on_failure: Callable[[Stream, Exception], None]
    ) -> None:
        async with anyio.create_task_group() as workers:
            for _ in range(min(CONCURRENCY, len(streams))):
                workers.start_soon(self._worker, streams, on_failure)

    async def _worker(self, streams: deque[Stream], on_failure: Callable[[Stream, Exception], None]) -> None:
        while streams:
            stream = streams.popleft()
            # The stream may have closed meanwhile.
            if (kept := self._streams.requests.get(stream)) is None:
                continue
            scope, authorize = kept
            try:
                grant = await self._decide(StreamRequest(scope), authorize)
            except NotRunningError:
                # The drain ends all streams.
                return
            except Exception as error:
                on_failure(stream, error)
            else:
                if grant is None or not _allows(grant, stream.grant):
                    stream.end(EndReason.REVOKED)
            # An `authorize` that never waits must not block the event loop for ten thousand streams.
            await anyio.lowlevel.checkpoint()

    def _end_failed(self, stream: Stream, error: Exception) -> None:
        text = "authorize failed twice for an open stream, so the stream ends"
        self._failures.log(logging.ERROR, text, error=error, extra=fields("reauthorization_failed"))
        stream.end(EndReason.REVOKED)


def _allows(grant: Grant, earlier: Grant) -> bool:
    """Return whether a stream that was opened with the earlier grant may stay open under this one."""
    lasts = grant.expiry is None or (earlier.expiry is not None and grant.expiry >= earlier.expiry)
    return lasts and grant.slot_key == earlier.slot_key and set(grant.channels) == set(earlier.channels)
