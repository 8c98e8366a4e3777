"""Process: a LivePush in one event loop, from start to stop. It owns the hub, the timers and the streams."""

import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

import anyio
from anyio.abc import TaskGroup

from ..brokers import Broker
from ..brokers.faults import Fault
from ..errors import (
    GrantExpiredError,
    GrantRevokedError,
    NotRunningError,
    ProcessFullError,
    SlotsUnavailableError,
)
from ..grant import Authorize, Grant, RunAccess, RunGrant, StreamRequest
from ..hub.hub import Hub
from ..runtime.asgi import Receive
from ..runtime.callbacks import Callbacks
from ..runtime.compression import warn_of_compression
from ..runtime.event_loop import (
    BackgroundFunction,
    loop_identity,
    on_asyncio,
    sleep_maker,
    soon_caller,
    spawn,
    threadsafe_caller,
)
from ..runtime.failure_log import StateLog, fields
from ..runtime.scheduler import Scheduler
from ..runtime.tcp_timeout import TcpTimeouts
from ..settings import DrainPolicy, Limits, Timing
from ..slots import Lease, Slots
from ..stream.context import StreamContext
from ..stream.run_stream import RunStream
from ..stream.source import Source, wait_all_closed
from ..stream.source_stream import SourceStream
from ..stream.stream import Stream
from ..stream.subscriber import SubscriberStream
from ..wire.encode import Encode
from .arrivals import Arrivals
from .drain import Drain
from .hooks import StreamHooks
from .observer import Observer
from .open_streams import OpenStreams, Reauthorization, Reauthorize
from .revoker import Revoker
from .signals import SignalWatch
from .statistics import Counters

logger = logging.getLogger("livepush_asgi")

# How long closing the subscriptions and the slots may take at the end, in seconds.
CLEANUP_TIMEOUT = 3.0
# After the process was full, it logs that there is room again when its streams fall below this part of the
# cap.
ROOM_AGAIN = 0.9
# How long a server may take to close its listening socket after a signal, in seconds.
LISTENER_CLOSE_TIME = 0.5
NOT_RUNNING = "no new streams: this process is draining or has stopped"


def check_expiry(grant: Grant | RunAccess) -> None:
    """Raise GrantExpiredError if the permission has expired."""
    if grant.expiry is not None and grant.expiry <= time.time():
        raise GrantExpiredError("the grant expired before its stream was opened")


@dataclass(slots=True)
class _ReplacementRelay:
    """Receives `on_replaced` of a lease before its stream exists, and passes it on to the stream."""

    stream: Stream | None = None
    was_replaced: bool = False

    def replaced(self) -> None:
        """Called when a newer stream has taken the slot."""
        self.was_replaced = True
        if self.stream is not None:
            self.stream.replaced()


class Process:
    """A LivePush from its start to its stop. `launch` it once; `stop` it, or let the event loop end."""

    def __init__(
        self,
        broker: Broker,
        slots: Slots | None,
        timing: Timing,
        limits: Limits,
        drain_policy: DrainPolicy,
        counters: Counters,
        reauthorize: Reauthorize,
        inline_send: bool = True,
        hooks: StreamHooks | None = None,
        observers: Sequence[Observer] = (),
        encode: Encode | None = None,
    ) -> None:
        self.timing = timing
        self.scheduler = Scheduler()
        self._limits = limits
        self._inline_send = inline_send
        self._encode = encode
        self._in_process = getattr(broker, "in_process", False)
        # A broker in this process loses no command, so no stream has to be authorized again.
        self._open = OpenStreams(keep_requests=not self._in_process)
        self.streams = self._open.all
        #: The streams that code of this process reads. They count as no streams, and are not revoked.
        self.subscribers: set[Stream] = set()
        #: How many admitted requests have neither become a stream nor been refused yet.
        self.pending = 0
        # Whether the process was full, and has had no room since.
        self._was_full = False
        self._full_log = StateLog()
        #: Whether it has started and not ended. Every request reads it.
        self.running = False
        #: Whether a drain has begun, or a signal has announced it.
        self.draining = False
        #: Whether new streams are accepted. They are during the delay of a drain.
        self.accepting = True
        self.loop = loop_identity()
        self._call_loop = threadsafe_caller()
        self._to_call: deque[Callable[[], object]] = deque()
        self._called = anyio.Event()
        self.hub: Hub
        #: The objects that all streams share.
        self.context: StreamContext
        # The same for the streams that code of this process reads.
        self._subscriber_context: StreamContext
        #: Where requests wait before `authorize`.
        self.arrivals: Arrivals
        #: Awaits `authorize` and slots for requests.
        self.callbacks: Callbacks
        self.revoker: Revoker
        self._reauthorize = reauthorize
        self._tasks: TaskGroup
        self._broker = broker
        self._slots = slots
        # The generators that have not been closed.
        self._sources: set[Source] = set()
        #: Awaited when it has drained and stops, before it waits for the generators.
        self.on_stopping: list[Callable[[], Awaitable[object]]] = []
        # One bound method for all streams.
        self._on_closed = self._stream_closed
        #: How this process drains.
        self.drain_policy = drain_policy
        self._signals = SignalWatch(
            lambda: self.call_threadsafe(self._on_signal),
            hold=drain_policy.hold or drain_policy.delay > 0,
            window=drain_policy.delay + drain_policy.window,
        )
        self._drain = Drain(drain_policy, self.streams, self.subscribers, self.scheduler, self._signals)
        self._counters = counters
        self._hooks = hooks
        self._observers = [observer for observer in observers if observer.interval is not None]
        self._started = anyio.Event()
        self._started_at = 0.0
        #: Whether it has drained and is closing its resources. No task may be started any more.
        self.stopping = False
        self._ended = anyio.Event()

    @property
    def ended(self) -> bool:
        """Whether it has ended. It starts only once."""
        return self._ended.is_set()

    def launch(self) -> None:
        """Start it as a task of the event loop. Returns at once."""
        spawn(self._main, "livepush")

    async def wait_started(self) -> None:
        """Wait until streams can be opened."""
        await self._started.wait()

    async def stop(self) -> None:
        """Drain, close the subscriptions and the slots, and end."""
        await self.drain()
        self.stopping = True
        self._called.set()
        await self._ended.wait()

    def call_threadsafe(self, function: Callable[[], object]) -> None:
        """Schedule a function in a task. Any thread, signal handler or finalizer may call this.

        The function runs in a task, because anyio does not work in a callback of the event loop.
        """
        if self.ended:
            # All streams have closed, so the function has nothing to do.
            return
        self._to_call.append(function)
        self._call_loop(lambda: self._called.set())

    async def open(
        self,
        grant: Grant,
        *,
        decided_at: int,
        control_events: bool,
        last_event_id: str | None = None,
        request: StreamRequest | None = None,
        authorize: Authorize | None = None,
        receive: Receive | None = None,
        source: AsyncIterator[object] | None = None,
        requested_at: float | None = None,
    ) -> Stream:
        """Take a slot and return a stream that is attached to its channels. The caller has to close it.

        With a `source`, a SourceStream, which closes it; if this raises, the caller has to.

        `requested_at` is when the request came, by the loop's clock. `decided_at` is the value of
        `revoker.log.number` before the decision, read after `revoker.listen` returned. A reauthorization uses
        `request`, and `authorize` of the route if given. Raises CapExceededError, SlotsUnavailableError,
        NotRunningError, GrantRevokedError if a revocation after `decided_at` matches, and ClientLeftError. If
        it raises, no slot is taken.
        """
        self._check_admissible(grant, decided_at, request)
        if grant.slot_key is None or self._slots is None:
            stream = self._make_stream(grant, control_events, last_event_id, source)
        else:
            relay = _ReplacementRelay()
            lease = await self._acquire_slot(self._slots, grant.slot_key, relay, receive)
            try:
                # Check again: taking the slot may have waited.
                self._check_admissible(grant, decided_at, request)
                stream = self._make_stream(grant, control_events, last_event_id, source)
            except BaseException:
                lease.release()
                raise
            stream.lease, relay.stream = lease, stream
            if lease.on_replaced is not None:
                # From now on the cap calls the stream directly, unless the cap has kept the callback.
                lease.on_replaced = stream.replaced
            if relay.was_replaced:
                stream.replaced()
        self._open.add(stream, request, authorize)
        stream.requested_at = requested_at
        self._counters.opened += 1
        if self._hooks is not None:
            self._hooks.opened(stream)
        return stream

    def _make_stream(
        self,
        grant: Grant,
        control_events: bool,
        last_event_id: str | None,
        source: AsyncIterator[object] | None,
    ) -> Stream:
        if source is not None:
            made = self.make_source(source)
            return SourceStream(self.context, grant, self._on_closed, made, control_events=control_events)
        kind = RunStream if isinstance(grant, RunGrant) else Stream
        return kind(
            self.context,
            grant,
            self._on_closed,
            control_events=control_events,
            last_event_id=last_event_id,
        )

    def make_source(self, iterator: AsyncIterator[object], most_bytes: int | None = None) -> Source:
        """Return a Source. This process waits for its end when it stops; whoever starts it has to stop it."""
        source = Source(iterator, self.context, self._sources.discard, most_bytes)
        self._sources.add(source)
        return source

    def start_task(self, function: BackgroundFunction) -> None:
        """Start a task that is cancelled when this process stops. The function must not raise."""
        self._tasks.start_soon(function)

    def subscribe(self, grant: Grant, last_event_id: str | None) -> SubscriberStream:
        """Return a stream that code of this process reads. The caller has to close it.

        It needs no slot. Raises NotRunningError in a drain, and TypeError for a `replay` without history.
        """
        if not self.accepting or not self.running:
            raise NotRunningError(NOT_RUNNING)
        self.check_replay(grant)
        stream = SubscriberStream(
            self._subscriber_context, grant, self._subscriber_closed, last_event_id=last_event_id
        )
        self.subscribers.add(stream)
        return stream

    def listeners(self, channel: str) -> int:
        """Return how many streams of clients are attached to a channel."""
        own = sum([channel in stream.grant.channel_names for stream in self.subscribers])
        return len(self.hub.listeners(channel)) - own

    def check_replay(self, grant: Grant) -> None:
        """Raise TypeError if the grant replays history and the broker keeps none."""
        if grant.replay not in ("new", 0) and not self.hub.keeps_history:
            raise TypeError(
                f"replay={grant.replay!r} needs a broker with history, and this one keeps none "
                "(RedisBroker and NatsBroker keep none): use RedisStreamsBroker, JetStreamBroker, "
                "PostgresBroker or MemoryBroker, or leave replay out"
            )

    def admit(self) -> None:
        """Admit a request. The caller decrements `pending` when it has become a stream or was refused.

        `Limits.streams` counts admitted requests with the open streams, so that a burst of requests cannot
        exceed it while they wait for `authorize` or a slot. Raises ProcessFullError, and NotRunningError in a
        drain.
        """
        if not self.accepting:
            raise NotRunningError(NOT_RUNNING)
        limit = self._limits.streams
        if limit is not None:
            count = len(self.streams) + self.pending
            if count >= limit or self._was_full:
                self._check_limit(limit, count)
        self.pending += 1

    def _check_limit(self, limit: int, count: int) -> None:
        if count >= limit:
            self._was_full = True
            if self._full_log.begins():
                logger.warning(
                    "new streams are refused: this process has the %d that Limits(streams=...) allows; "
                    "raise that if it has the memory, or run more processes",
                    limit,
                    extra=fields("process_full", streams=count, limit=limit),
                )
            raise ProcessFullError(limit)
        if count < ROOM_AGAIN * limit:
            self._was_full = False
            if self._full_log.ends():
                logger.warning(
                    "there is room again for new streams: %d of %d are open",
                    count,
                    limit,
                    extra=fields("process_has_room", streams=count, limit=limit),
                )

    def _stream_closed(self, stream: Stream) -> None:
        self._open.discard(stream)
        reason, seconds = stream.reason, self.scheduler.now() - stream.opened_at
        assert reason is not None
        self._counters.stream_ended(stream, reason, seconds)
        self._drain.stream_closed()
        if self._hooks is not None:
            self._hooks.ended(stream, reason, seconds)

    def _subscriber_closed(self, stream: Stream) -> None:
        self.subscribers.discard(stream)
        self._drain.stream_closed()

    def drain_soon(self) -> None:
        """Start a drain: refuse new streams, and end the open ones within the window. Returns at once."""
        if self.accepting and self.running:
            self.draining, self.accepting = True, False
            self.callbacks.stop()
            self._tasks.start_soon(self._drain.run)

    async def drain(self) -> None:
        """Drain, and wait until all streams have ended."""
        self.drain_soon()
        if self.running:
            await self._drain.done.wait()

    async def _main(self) -> None:
        try:
            async with anyio.create_task_group() as self._tasks:
                self._set_up()
                self._tasks.start_soon(self.scheduler.run, name="livepush scheduler")
                if self.drain_policy.signals:
                    self._signals.install()
                self._started_at = self.scheduler.now()
                self.running = True
                if not self._in_process:
                    # Without streams too: it confirms revocations, and tells whether it reaches the broker.
                    self.revoker.start_listening()
                self._started.set()
                for observer in self._observers:
                    self._sample(observer)
                await self._call_functions()
                for stopping in self.on_stopping:
                    await stopping()
                # Before the scheduler ends: it bounds how long a generator may take.
                await wait_all_closed(list(self._sources))
                self._tasks.cancel_scope.cancel()
        except Exception:
            logger.exception(
                "all streams of this process end because of an error: this is a defect of livepush_asgi",
                extra=fields("run_failed"),
            )
        finally:
            # From here on no code may start a task.
            self.draining = self.stopping = True
            self.accepting = False
            self._signals.remove()
            await self._clean_up()
            self.running = False
            for observer in self._observers:
                self._call_sample(observer)
            self._ended.set()
            self._started.set()
            self._signals.release(ending=True)

    def _sample(self, observer: Observer) -> None:
        """Call the observer, now and every `interval` seconds."""
        self._call_sample(observer)
        assert observer.interval is not None
        self.scheduler.call_later(observer.interval, self._sample, observer)

    def _call_sample(self, observer: Observer) -> None:
        assert self._hooks is not None
        self._hooks.sample(observer)

    @property
    def starting(self) -> bool:
        """Whether this process has not been subscribed to the commands of the others yet."""
        return not (self._in_process or self.revoker.listening)

    @property
    def healthy(self) -> bool:
        """Whether the streams receive every event."""
        return self.hub.healthy and not self._starts_late

    @property
    def faults(self) -> tuple[Fault, ...]:
        """Why it is not healthy; empty while it is."""
        found = self.hub.faults
        if self._starts_late and not found:
            cause = "the broker has not answered since the start"
            return (Fault(cause=cause, seconds=self.scheduler.now() - self._started_at),)
        return found

    @property
    def _starts_late(self) -> bool:
        return self.starting and self.scheduler.now() - self._started_at > self.timing.subscribe_timeout

    @property
    def outbox_bytes(self) -> int:
        """How many bytes wait in the outboxes of clients."""
        # A copy: another thread may ask for it.
        return sum([stream.waiting_bytes for stream in list(self.streams)])

    @property
    def broker_reconnects(self) -> int:
        """How often the broker had a connection again, by its own count or, without one, the hub's."""
        reconnects: int | None = getattr(self._broker, "reconnects", None)
        return self._counters.hub.recoveries if reconnects is None else reconnects

    def _set_up(self) -> None:
        tasks, broker = self._tasks, self._broker
        warn_of_compression()
        self.hub = Hub(
            broker, self.scheduler, tasks, self.timing.linger, self.call_threadsafe, self._counters.hub
        )
        self.callbacks = Callbacks(tasks)
        self.arrivals = Arrivals(self.scheduler.now)
        self.context = StreamContext(
            hub=self.hub,
            make_sleep=sleep_maker(),
            call_soon=soon_caller(),
            callbacks=Callbacks(tasks),
            scheduler=self.scheduler,
            tcp_timeouts=TcpTimeouts(self.scheduler, self.timing),
            timing=self.timing,
            limits=self._limits,
            on_asyncio=on_asyncio(),
            inline_send=self._inline_send,
            counts=self._counters.streams,
            on_response=None if self._hooks is None else self._hooks.responded,
            encode=self._encode,
        )
        self._subscriber_context = replace(self.context, counts=self._counters.subscribers)
        self.revoker = Revoker(
            broker,
            self.hub,
            self.scheduler,
            tasks,
            self.call_threadsafe,
            self._open,
            Reauthorization(self._open, self.scheduler, tasks, self._reauthorize),
            self.timing.subscribe_timeout,
        )

    def _on_signal(self) -> None:
        policy = self.drain_policy
        if policy.delay and not self.draining and self.running:
            logger.info(
                "draining in %.1f s; until then new streams are accepted",
                policy.delay,
                extra=fields("drain_announced", seconds=policy.delay),
            )
            self.draining = True
            self.scheduler.call_later(policy.delay, self._end_delay)
            return
        self.drain_soon()
        if self._drain.done.is_set():
            self._tasks.start_soon(self._drain.release_signals)

    def _end_delay(self) -> None:
        if self.drain_policy.hold or self._signals.fatal:
            # The server would cut its streams: it hears of the signal after them.
            self.drain_soon()
        else:
            self._signals.release()
            self.scheduler.call_later(LISTENER_CLOSE_TIME, self.drain_soon)

    async def _call_functions(self) -> None:
        while not self.stopping:
            await self._called.wait()
            self._called = anyio.Event()
            while self._to_call:
                self._to_call.popleft()()

    async def _clean_up(self) -> None:
        self.callbacks.stop()
        self._drain.abort_remaining()
        with anyio.move_on_after(CLEANUP_TIMEOUT, shield=True):
            await self.hub.aclose()
            if self._slots is not None:
                try:
                    await self._slots.aclose()
                except Exception:
                    # Go on: `stop` and the next `start` wait for the end of this one.
                    logger.exception(
                        "closing the slots raised; the component stops all the same",
                        extra=fields("slots_close_failed"),
                    )
            await self.revoker.announce_exit()

    def _check_admissible(self, grant: Grant, decided_at: int, request: StreamRequest | None) -> None:
        if not self.accepting or not self.running:
            raise NotRunningError(NOT_RUNNING)
        if grant.expiry is not None:
            check_expiry(grant)
        log = self.revoker.log
        if log.number != decided_at and log.outdates(decided_at, grant, request):
            raise GrantRevokedError("the stream was revoked while it was being opened")

    async def _acquire_slot(
        self, slots: Slots, key: str, relay: _ReplacementRelay, receive: Receive | None
    ) -> Lease:
        acquiring = slots.acquire_lease(key, relay.replaced)
        if getattr(slots, "bounded", False):
            # This call never waits long, so it needs no timeout. The caller checks the grant again
            # afterwards.
            lease = await acquiring
        else:
            timeout = self.timing.authorize_timeout
            try:
                lease = await self.callbacks.result(
                    acquiring, receive=receive, timeout=timeout, discard=Lease.release
                )
            except TimeoutError as error:
                raise SlotsUnavailableError(f"the slot store did not answer within {timeout} s") from error
        if lease.replaced and self.running:
            self._tasks.start_soon(self.revoker.announce_replaced, lease)
        return lease
