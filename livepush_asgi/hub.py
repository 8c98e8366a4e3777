"""Hub: the only place that knows who listens to what in this process."""

import logging
import random
from collections.abc import Callable, Iterable

import anyio
from anyio.abc import TaskGroup

from .broker import Broker, HistoryBroker, Page
from .clock import Clock
from .commands import COMMAND_CHANNEL
from .cursor import Position
from .event import RESERVED_PREFIX
from .logged_topic import LoggedTopic
from .loop import soon_caller
from .topic import Listener, Topic
from .turn import Turn

logger = logging.getLogger("livepush_asgi")

# How long a channel may look quiet before its log is asked, in seconds.
CHECK_INTERVAL = 40.0
# How often it is seen which channels have to be asked, in seconds: one timer for ten thousand of them.
LOOK_INTERVAL = 1.0


class Hub:
    """Joins local listeners to the broker: one subscription per channel, counted, released after `linger`."""

    def __init__(self, broker: Broker, clock: Clock, tasks: TaskGroup, linger: float) -> None:
        self._broker = broker
        # Asked once: it costs as much as subscribing a channel in memory.
        self._log = broker if isinstance(broker, HistoryBroker) else None
        self._clock = clock
        self._tasks = tasks
        self._linger = linger
        self._turn = Turn(soon_caller(), clock.now)
        self._topics: dict[str, Topic] = {}
        self._scopes: dict[Topic, anyio.CancelScope] = {}
        self._failing: set[Topic] = set()
        self._delivered_before = 0
        self._looking = False
        # Made once, and not for each of ten thousand channels.
        self._watch = self._note
        self._spawn = tasks.start_soon

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
        """Have the channel's log looked into: somebody knows more of it than this process has heard."""
        topic = self._topics.get(channel)
        if isinstance(topic, LoggedTopic):
            topic.lost()

    async def read(self, channel: str, after: int, limit: int) -> Page:
        """Read the log of a channel. Raises what the broker raises."""
        assert self._log is not None
        return await self._log.read(channel, after, limit)

    def flush(self) -> None:
        """Have every stream take what this turn of the loop has brought for it."""
        self._turn.flush()

    def detach(self, channel: str, listener: Listener) -> None:
        """Let the listener hear the channel no more; the last one starts the time to linger."""
        topic = self._topics.get(channel)
        if topic is None:
            return
        topic.remove(listener)
        if not len(topic):
            self._clock.call_later(self._linger, self._releaser(topic))

    async def wait_attempted(self, channels: Iterable[str]) -> Exception | None:
        """Wait until each channel was tried once, and return the first error, if any."""
        for topic in [self._topics[channel] for channel in channels if channel in self._topics]:
            await topic.wait_attempted()
            if topic.error is not None:
                return topic.error
        return None

    async def aclose(self) -> None:
        """Give every subscription back."""
        async with anyio.create_task_group() as closing:
            for topic in list(self._topics.values()):
                self._forget(topic)
                closing.start_soon(topic.close)

    def _make(self, channel: str) -> Topic:
        # Commands are read from their log where there is one; nobody reads the others of the component's own.
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
        return self._clock.now() + CHECK_INTERVAL * random.uniform(0.5, 1.0)

    def _look(self) -> None:
        now = self._clock.now()
        for topic in list(self._topics.values()):
            if topic.check_at <= now:
                topic.check()
                topic.check_at = self._next_check()
        self._looking = bool(self._topics)
        if self._looking:
            self._clock.call_later(LOOK_INTERVAL, self._look)

    async def _keep(self, topic: Topic, scope: anyio.CancelScope) -> None:
        with scope:
            await topic.run()
        # A scope is as large as a topic, and needed no more where the subscription forwards.
        self._scopes.pop(topic, None)
        # Cancelled in the middle of subscribing, it may have got a subscription all the same.
        if scope.cancelled_caught:
            await topic.close()

    def _releaser(self, topic: Topic) -> Callable[[], None]:
        def release() -> None:
            if not len(topic) and self._topics.get(topic.channel) is topic:
                self._forget(topic)
                # The task that would notice has ended long ago where the subscription forwards.
                self._tasks.start_soon(topic.close)

        return release

    def _forget(self, topic: Topic) -> None:
        del self._topics[topic.channel]
        self._delivered_before += _delivered_by(topic)
        self._failing.discard(topic)
        scope = self._scopes.pop(topic, None)
        if scope is not None:
            scope.cancel()

    def _note(self, topic: Topic) -> None:
        """Log one line when the first channel fails and one when the last has recovered."""
        if topic.error is None:
            if topic in self._failing:
                self._failing.discard(topic)
                if not self._failing:
                    logger.warning("the broker delivers again")
        elif topic.channel in self._topics:
            if not self._failing:
                logger.error("cannot subscribe at the broker, trying until it works: %s", topic.error)
            self._failing.add(topic)


def _delivered_by(topic: Topic) -> int:
    # What processes tell each other is no event.
    return 0 if topic.channel.startswith(RESERVED_PREFIX) else topic.delivered
