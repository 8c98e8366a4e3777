"""Hub: the only place that knows who listens to what in this process."""

import logging
import random
from collections.abc import Callable, Iterable

import anyio
from anyio.abc import TaskGroup

from .broker import Broker, HistoryBroker, Page
from .clock import Clock
from .cursor import Position
from .event import RESERVED_PREFIX
from .logged_topic import LoggedTopic
from .loop import soon_caller
from .topic import Listener, Topic
from .turn import Turn

logger = logging.getLogger("livepush_asgi")

# How long a channel may look quiet before its log is asked, in seconds.
CHECK_INTERVAL = 40.0


class Hub:
    """Joins local listeners to the broker: one subscription per channel, counted, released after `linger`."""

    def __init__(self, broker: Broker, clock: Clock, tasks: TaskGroup, linger: float) -> None:
        self._broker = broker
        self._clock = clock
        self._tasks = tasks
        self._linger = linger
        self._turn = Turn(soon_caller(), clock.now)
        self._topics: dict[str, Topic] = {}
        self._scopes: dict[Topic, anyio.CancelScope] = {}
        self._failing: set[Topic] = set()
        self._delivered_before = 0

    @property
    def channels(self) -> int:
        """How many of the application's channels this process is subscribed to."""
        return sum(1 for channel in self._topics if not channel.startswith(RESERVED_PREFIX))

    @property
    def delivered(self) -> int:
        """How many events were put into outboxes since the start."""
        return self._delivered_before + sum(topic.delivered for topic in self._topics.values())

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
        assert isinstance(self._broker, HistoryBroker)
        return await self._broker.read(channel, after, limit)

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
                self._forget(topic).cancel()
                closing.start_soon(topic.close)

    def _make(self, channel: str) -> Topic:
        if not isinstance(self._broker, HistoryBroker) or channel.startswith(RESERVED_PREFIX):
            return Topic(channel, self._broker, self._turn, self._note)
        topic = LoggedTopic(channel, self._broker, self._turn, self._note, self._tasks.start_soon)
        self._check_later(topic)
        return topic

    def _check_later(self, topic: LoggedTopic) -> None:
        def check() -> None:
            if self._topics.get(topic.channel) is topic:
                topic.check()
                self._check_later(topic)

        # At a random moment, so that ten thousand quiet channels are not looked at all at once.
        self._clock.call_later(CHECK_INTERVAL * random.uniform(0.5, 1.0), check)

    @staticmethod
    async def _keep(topic: Topic, scope: anyio.CancelScope) -> None:
        with scope:
            await topic.run()
        # Cancelled in the middle of subscribing, it may have got a subscription all the same.
        if scope.cancelled_caught:
            await topic.close()

    def _releaser(self, topic: Topic) -> Callable[[], None]:
        def release() -> None:
            if not len(topic) and self._topics.get(topic.channel) is topic:
                self._forget(topic).cancel()
                # The task that would notice has ended long ago where the subscription forwards.
                self._tasks.start_soon(topic.close)

        return release

    def _forget(self, topic: Topic) -> anyio.CancelScope:
        del self._topics[topic.channel]
        self._delivered_before += topic.delivered
        self._failing.discard(topic)
        return self._scopes.pop(topic)

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
