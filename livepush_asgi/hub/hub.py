"""Hub: the only place that knows who listens to what in this process."""

import logging
import random
from collections.abc import Iterable
from functools import partial

import anyio
from anyio.abc import TaskGroup

from ..brokers import READ_BYTES, Broker, HistoryBroker, Page
from ..runtime.event_loop import BackgroundFunction, Caller, soon_caller
from ..runtime.scheduler import Clock, Timer
from ..wire.cursor import Position
from ..wire.event import COMMAND_CHANNEL, RESERVED_PREFIX
from .channel import CLOSE_TIMEOUT, Listener, Topic
from .coalescing import Turn
from .logged_channel import LoggedTopic
from .shared_reads import SharedReads

logger = logging.getLogger("livepush_asgi")

# How long a channel may look quiet before its log is asked, in seconds.
CHECK_INTERVAL = 40.0
# How long the bounds of a log are good for, in seconds. A client that comes back with an epoch which began
# within that time is told of a gap that there is not.
BOUNDS_AGE = 0.05
# How often it is seen which channels have to be asked, in seconds: one timer for ten thousand of them.
LOOK_INTERVAL = 1.0
# How long a channel that is wanted again waits for its former subscription to be closed, in seconds.
CLOSE_WAIT = CLOSE_TIMEOUT + 1.0


class _Closing:
    """How many former subscriptions of one channel are being closed, and an event for when none is left."""

    __slots__ = ("count", "done")

    def __init__(self) -> None:
        self.count = 0
        self.done = anyio.Event()


class Hub:
    """Joins local listeners to the broker: one subscription per channel, counted, released after `linger`."""

    def __init__(
        self, broker: Broker, clock: Clock, tasks: TaskGroup, linger: float, call_in_task: Caller
    ) -> None:
        self._broker = broker
        # Asked once: it costs as much as subscribing a channel in memory.
        self._log = broker if isinstance(broker, HistoryBroker) else None
        self._reads = None if self._log is None else SharedReads(self._log, clock, self.end_of)
        self._clock = clock
        #: The event loop's monotonic clock, in seconds.
        self.now = clock.now
        self._tasks = tasks
        self._call_in_task = call_in_task
        self._linger = linger
        self._turn = Turn(soon_caller(), clock.now)
        self._topics: dict[str, Topic] = {}
        self._scopes: dict[Topic, anyio.CancelScope] = {}
        # The channels without listeners, until their time to linger is over.
        self._lingering: dict[Topic, Timer] = {}
        self._closing: dict[str, _Closing] = {}
        self._failing: set[Topic] = set()
        self._delivered_before = 0
        self._looking = False
        # Made once, and not for each of ten thousand channels.
        self._watch = self._note
        self._spawn = self._start

    @property
    def channels(self) -> int:
        """How many of the application's channels this process is subscribed to."""
        return sum(1 for channel in self._topics if not channel.startswith(RESERVED_PREFIX))

    @property
    def delivered(self) -> int:
        """How many events were put into outboxes since the start."""
        return self._delivered_before + sum(_delivered_by(topic) for topic in self._topics.values())

    @property
    def healthy(self) -> bool:
        """Whether every channel that somebody listens to is subscribed."""
        return not self._failing and getattr(self._broker, "healthy", True)

    def attach(self, channel: str, listener: Listener) -> bool:
        """Let the listener hear the channel, and return whether it is subscribed already.

        If it is not, `subscribed` of the listener is called when it is: what is published from then
        on reaches the listener.
        """
        topic = self._topics.get(channel)
        if topic is None:
            topic = self._topics[channel] = self._make(channel)
            self._scopes[topic] = scope = anyio.CancelScope()
            self._tasks.start_soon(self._keep, topic, scope, name=f"livepush channel {channel}")
        elif (timer := self._lingering.pop(topic, None)) is not None:
            timer.cancel()
        topic.add(listener)
        return topic.ready

    def is_ready(self, channel: str) -> bool:
        """Return whether the channel is, or once was, subscribed."""
        topic = self._topics.get(channel)
        return topic is not None and topic.ready

    def listeners(self, channel: str) -> tuple[Listener, ...]:
        """Return who listens to the channel."""
        topic = self._topics.get(channel)
        return () if topic is None else topic.hearers()

    def end_of(self, channel: str) -> Position | None:
        """Return up to where this process has delivered the channel's log, None if it has none."""
        topic = self._topics.get(channel)
        return None if topic is None else topic.position

    def refresh(self, channel: str) -> None:
        """Read the channel's log, which is known to be in another epoch than this process has heard of."""
        topic = self._topics.get(channel)
        if isinstance(topic, LoggedTopic):
            topic.lost()

    async def read(self, channel: str, after: Position, limit: int, max_bytes: int = READ_BYTES) -> Page:
        """Read the log of a channel, once for all that ask for the same. Raises what the broker raises."""
        assert self._reads is not None
        return await self._reads.read(channel, after, limit, max_bytes)

    async def read_bounds(self, channel: str) -> Page:
        """Return an empty page that says where a log begins and ends. Raises what the broker raises."""
        assert self._reads is not None
        page = await self._reads.read_new(channel, 0, 0, READ_BYTES)
        topic = self._topics.get(channel)
        if isinstance(topic, LoggedTopic):
            topic.bounds = page, self.now() + BOUNDS_AGE
        return page

    def bounds_of(self, channel: str, place: Position | None) -> Page | None:
        """Return what `read_bounds` returned last, None if that is too old.

        So a crowd of clients asks for the bounds of a log once. A page that ends before `place` is too old.
        """
        topic = self._topics.get(channel)
        if not isinstance(topic, LoggedTopic) or topic.bounds is None:
            return None
        page, until = topic.bounds
        good = self.now() < until and (place is None or page.has(place))
        return page if good else None

    def flush(self) -> None:
        """Have every stream take what this turn of the loop has brought for it."""
        self._turn.flush()

    def detach(self, channel: str, listener: Listener) -> None:
        """Let the listener hear the channel no more; the last one starts the time to linger."""
        topic = self._topics.get(channel)
        if topic is None:
            return
        topic.remove(listener)
        if not len(topic) and topic not in self._lingering:
            self._lingering[topic] = self._clock.call_later(self._linger, self._release, topic)

    async def wait_attempted(self, channels: Iterable[str]) -> Exception | None:
        """Wait until each channel was tried once, and return the first error, if any."""
        for topic in [self._topics[channel] for channel in channels if channel in self._topics]:
            await topic.wait_attempted()
            if topic.error is not None:
                return topic.error
        return None

    async def aclose(self) -> None:
        """Give every subscription back, when the tasks of the hub have ended."""
        async with anyio.create_task_group() as closing:
            for topic in self._topics.values():
                closing.start_soon(topic.close)

    def _make(self, channel: str) -> Topic:
        # Among the component's own channels only the command channel is read from its log.
        reserved = channel.startswith(RESERVED_PREFIX) and channel != COMMAND_CHANNEL
        if self._log is None or reserved:
            return Topic(channel, self._broker, self._turn, self._watch)
        topic = LoggedTopic(channel, self._log, self._turn, self._watch, self._spawn)
        topic.check_at = self._next_check()
        if not self._looking:
            self._looking = True
            self._clock.call_later(LOOK_INTERVAL, self._look)
        return topic

    def _next_check(self) -> float:
        # At a random moment, so that ten thousand quiet channels are not asked all at once.
        return self.now() + CHECK_INTERVAL * random.uniform(0.5, 1.0)

    def _look(self) -> None:
        now = self.now()
        for topic in list(self._topics.values()):
            if topic.check_at <= now:
                topic.check()
                topic.check_at = self._next_check()
        self._looking = bool(self._topics)
        if self._looking:
            self._clock.call_later(LOOK_INTERVAL, self._look)

    async def _keep(self, topic: Topic, scope: anyio.CancelScope) -> None:
        try:
            with scope:
                if topic.channel in self._closing:
                    await self._wait_closed(topic.channel)
                await topic.run()
        finally:
            # A scope is as large as a topic, and needed no more where the subscription forwards.
            self._scopes.pop(topic, None)
            # Cancelled in the middle of subscribing, the topic may have got a subscription all the same.
            if topic.closed:
                await self._close(topic)

    def _start(self, function: BackgroundFunction) -> None:
        # A broker may deliver from a plain callback of the event loop, where anyio starts no task.
        self._call_in_task(partial(self._tasks.start_soon, function))

    async def _wait_closed(self, channel: str) -> None:
        # A broker is promised that a channel is closed before it is subscribed again. One that does not
        # answer is not waited for: its subscription is lost anyway.
        with anyio.move_on_after(CLOSE_WAIT):
            await self._closing[channel].done.wait()

    def _release(self, topic: Topic) -> None:
        del self._lingering[topic]
        self._forget(topic)

    def _forget(self, topic: Topic) -> None:
        """Have a channel closed that nobody listens to. The next listener gets a new topic."""
        del self._topics[topic.channel]
        self._delivered_before += _delivered_by(topic)
        self._failing.discard(topic)
        topic.closed = True
        self._closing.setdefault(topic.channel, _Closing()).count += 1
        scope = self._scopes.get(topic)
        if scope is not None:
            scope.cancel()
        else:
            # The task that would notice has ended long ago where the subscription forwards.
            self._tasks.start_soon(self._close, topic)

    async def _close(self, topic: Topic) -> None:
        try:
            await topic.close()
        finally:
            closing = self._closing[topic.channel]
            closing.count -= 1
            if not closing.count:
                del self._closing[topic.channel]
                closing.done.set()

    def _note(self, topic: Topic) -> None:
        """Log one line when the first channel fails and one when the last has recovered."""
        if topic.error is None:
            if topic in self._failing:
                self._failing.discard(topic)
                if not self._failing:
                    logger.warning("the broker delivers again")
        elif self._topics.get(topic.channel) is topic:
            if not self._failing:
                logger.error("cannot subscribe at the broker, trying until it works: %s", topic.error)
            self._failing.add(topic)


def _delivered_by(topic: Topic) -> int:
    # A message between processes is no event of the application.
    return 0 if topic.channel.startswith(RESERVED_PREFIX) else topic.delivered
