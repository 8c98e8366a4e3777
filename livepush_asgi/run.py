"""Run: what lives from start to stop in one event loop. It owns the hub, the clock and the streams."""

import logging
import random
import time
from collections import deque
from collections.abc import Callable
from functools import partial

import anyio
from anyio.abc import TaskGroup

from .admission import Admission
from .broker import Broker
from .clock import Clock
from .connection import Connections
from .drain import SignalWatch
from .errors import GrantExpiredError, GrantRevokedError, NotRunningError, SlotsUnavailableError
from .hub import Hub
from .loop import loop_identity, make_alarm, spawn, threadsafe_caller
from .open_streams import Opening, OpenStreams
from .reasons import EndReason
from .request import Grant, StreamRequest
from .review import Reauthorize, Review
from .revoker import Revoker
from .settings import DrainPolicy, Limits, Timing
from .slots import Lease, Slots
from .slots.memory import MemorySlotCap
from .statistics import Tally
from .stream import Stream
from .types import Receive
from .waiting import Waits

logger = logging.getLogger("livepush_asgi")

# How long giving back subscriptions and slots may take at the end, in seconds.
CLEANUP_TIMEOUT = 3.0
# How long a server may take to end by itself before a signal's default ends it, in seconds.
EXIT_TIMEOUT = 1.0
# How long a server that cuts its connections at a signal has for the last bytes it was given, in seconds.
LAST_WORDS = 0.2
# So few streams are no storm when they come back: a drain of fewer takes a part of its window only.
STORM = 10


class Run:
    """One run of a LivePush. `start` it once; `stop` it, or let the event loop end."""

    def __init__(
        self,
        broker: Broker,
        slots: Slots | None,
        timing: Timing,
        limits: Limits,
        drain_policy: DrainPolicy,
        tally: Tally,
        reauthorize: Reauthorize,
        inline_send: bool = True,
    ) -> None:
        self.inline_send = inline_send
        self.timing = timing
        self.limits = limits
        self.clock = Clock()
        self.alarm = make_alarm()
        self.connections = Connections(self.clock, timing)
        self._open = OpenStreams()
        self.streams = self._open.all
        #: To be entered around the opening of a stream, and what is awaited before it.
        self.admission = Admission(limits.streams, self.streams)
        #: Whether it has started and not ended. Every request asks.
        self.running = False
        self.draining = False
        self.snapshots_fail = False
        self.loop = loop_identity()
        self._call_loop = threadsafe_caller()
        self._inbox: deque[Callable[[], object]] = deque()
        self._bell = anyio.Event()
        self.hub: Hub
        #: What requests wait for on their way to a stream.
        self.waits: Waits
        self.revoker: Revoker
        self._review: Review
        self._reauthorize = reauthorize
        self._tasks: TaskGroup
        self._broker = broker
        self._slots = slots
        self._drain_policy = drain_policy
        self._signals = SignalWatch(
            lambda: self.call_threadsafe(self._on_signal), hold=drain_policy.hold, window=drain_policy.window
        )
        self._tally = tally
        self._started = anyio.Event()
        #: Whether it has drained and gives everything back: no stream is left, and no task may be started.
        self.stopping = False
        self._ended = anyio.Event()
        self._drained = anyio.Event()
        self._empty = anyio.Event()

    @property
    def ended(self) -> bool:
        """Whether it has ended, and will not start again."""
        return self._ended.is_set()

    def launch(self) -> None:
        """Have it start, as a task of the event loop."""
        spawn(self._main, "livepush")

    async def wait_started(self) -> None:
        """Wait until streams can be opened."""
        await self._started.wait()

    async def stop(self) -> None:
        """Drain, give everything back and end."""
        await self.drain()
        self.stopping = True
        self._bell.set()
        await self._ended.wait()

    def call_threadsafe(self, function: Callable[[], object]) -> None:
        """Have the run call something soon. For signal handlers, finalizers and other threads.

        It is called in a task and not by the loop itself: outside of tasks anyio does not work.
        """
        if self.ended:
            # Every stream has given back what it had.
            return
        self._inbox.append(function)
        self._call_loop(lambda: self._bell.set())

    async def open(
        self,
        grant: Grant,
        *,
        decided_at: int,
        control_events: bool,
        last_event_id: str | None = None,
        request: StreamRequest | None = None,
        receive: Receive | None = None,
    ) -> Stream:
        """Take a slot and return a stream that listens already. The caller has to close it.

        `decided_at` is `revoker.log.number` from before the decision, once `revoker.listen` had returned.
        The `request` is what the stream can be authorized by again. Raises CapExceededError,
        SlotsUnavailableError, NotRunningError, GrantRevokedError if a revocation after `decided_at` matches,
        and ClientLeftError. Nothing is taken then.
        """
        self._check(grant, decided_at, request)
        opening = Opening()
        lease = await self._take(grant, opening, receive)
        try:
            # It may have waited.
            self._check(grant, decided_at, request)
            stream = Stream(self, grant, control_events=control_events, last_event_id=last_event_id)
        except BaseException:
            if lease is not None:
                lease.give_back()
            raise
        stream.lease = lease
        opening.became(stream, lease)
        self._open.add(stream)
        self.revoker.opened(stream, request)
        self._tally.opened += 1
        return stream

    def closed(self, stream: Stream) -> None:
        """Hear that a stream has given everything back."""
        self._open.discard(stream)
        self._review.forget(stream)
        assert stream.reason is not None
        self._tally.ended[stream.reason] += 1
        if not self.streams:
            self._empty.set()

    def drain_soon(self) -> None:
        """Refuse new streams from now on, and end the open ones within the window."""
        if not self.draining and self.running:
            self.draining = True
            self.waits.give_up()
            self._tasks.start_soon(self._drain)

    async def drain(self) -> None:
        """Drain, and wait until no stream is left."""
        self.drain_soon()
        if self.running:
            await self._drained.wait()

    async def _main(self) -> None:
        try:
            async with anyio.create_task_group() as self._tasks:
                self._furnish()
                self._tasks.start_soon(self.clock.run, name="livepush clock")
                if self._drain_policy.signals:
                    self._signals.install()
                self.running = True
                self._started.set()
                await self._answer_bell()
                self._tasks.cancel_scope.cancel()
        except Exception:
            logger.exception("the streams of this process have to end: this is a defect of livepush_asgi")
        finally:
            # From here on no task may be started, also where something has failed.
            self.draining = self.stopping = True
            self._signals.remove()
            await self._clean_up()
            self.running = False
            self._ended.set()
            self._started.set()
            self._signals.release(ending=True)

    def _furnish(self) -> None:
        tasks, broker = self._tasks, self._broker
        self.hub = Hub(broker, self.clock, tasks, self.timing.linger, self.call_threadsafe)
        self.waits = Waits(self.alarm, tasks)
        self._review = Review(self._open, self.clock, tasks, self._reauthorize)
        subscribe_timeout = self.timing.subscribe_timeout
        self.revoker = Revoker(broker, self.hub, tasks, self._open, self._review, subscribe_timeout)

    def _on_signal(self) -> None:
        self.drain_soon()
        if self._drained.is_set():
            self._tasks.start_soon(self._pass_signals_on)

    async def _pass_signals_on(self) -> None:
        if self._signals.fatal:
            # A server that was told otherwise is ending now that its streams have, and more gently than
            # by a signal; it stops this run before the time is over.
            await anyio.sleep(EXIT_TIMEOUT)
        elif self._signals.holding:
            await anyio.sleep(LAST_WORDS)
        self._signals.release()

    async def _answer_bell(self) -> None:
        while not self.stopping:
            await self._bell.wait()
            self._bell = anyio.Event()
            while self._inbox:
                self._inbox.popleft()()

    async def _clean_up(self) -> None:
        self.waits.give_up()
        for stream in list(self.streams):
            stream.abort(EndReason.DRAIN)
        self._drained.set()
        self._tally.delivered += self.hub.delivered
        with anyio.move_on_after(CLEANUP_TIMEOUT, shield=True):
            await self.hub.aclose()
            if self._slots is not None:
                try:
                    await self._slots.aclose()
                except Exception:
                    # `stop` waits for the end of this run, and the next `start` too.
                    logger.exception("closing the slots raised; the component stops all the same")
            await self.revoker.leave()

    async def _drain(self) -> None:
        # Streams that end by themselves need a moment after their time has come: the last part of the
        # window is theirs. What is left after it is cut off, so that the window is never outlasted.
        span = 0.8 * self._drain_policy.window * min(1.0, len(self.streams) / STORM)
        if self.streams:
            logger.warning("draining: %d streams end within %.1f s", len(self.streams), span)
        for stream in self.streams:
            self.clock.call_later(random.uniform(0.0, span), partial(stream.end, EndReason.DRAIN))
        with anyio.move_on_after(self._drain_policy.window):
            while self.streams:
                self._empty = anyio.Event()
                await self._empty.wait()
        for stream in list(self.streams):
            stream.abort(EndReason.DRAIN)
        self._drained.set()
        await self._pass_signals_on()

    def _check(self, grant: Grant, decided_at: int, request: StreamRequest | None) -> None:
        if self.draining or not self.running:
            raise NotRunningError("no new streams: this process is giving up its streams, or has stopped")
        if grant.expiry is not None and grant.expiry <= time.time():
            raise GrantExpiredError("the grant was over before its stream was opened")
        log = self.revoker.log
        if log.number != decided_at and log.outdates(decided_at, grant, request):
            raise GrantRevokedError("the stream was revoked while it was being opened")

    async def _take(self, grant: Grant, opening: Opening, receive: Receive | None) -> Lease | None:
        slots = self._slots
        if grant.slot_key is None or slots is None:
            return None
        take = slots.take(grant.slot_key, opening.replace)
        if type(slots) is MemorySlotCap or getattr(slots, "bounded", False):
            # It does not wait for long, and what has changed meanwhile is looked at afterwards.
            lease = await take
        else:
            timeout = self.timing.authorize_timeout
            try:
                lease = await self.waits.result(
                    take, receive=receive, timeout=timeout, discard=Lease.give_back
                )
            except TimeoutError as error:
                raise SlotsUnavailableError(f"no answer about a slot within {timeout} s") from error
        if lease.replaced and self.running:
            self._tasks.start_soon(self.revoker.tell_replaced, lease)
        return lease
