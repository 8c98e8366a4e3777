"""Hub: the channels of this process and their listeners."""

import logging
import random
from collections.abc import Awaitable, Callable, Iterable
from functools import partial

import anyio
from anyio.abc import TaskGroup

from ..brokers import Broker, HistoryBroker
from ..brokers.faults import Failing, Fault, grouped
from ..runtime.event_loop import BackgroundFunction, Caller, soon_caller
from ..runtime.failure_log import StateLog, fields
from ..runtime.scheduler import Scheduler
from ..wire.cursor import Position
from ..wire.event import COMMAND_CHANNEL, RESERVED_PREFIX
from .channel import CLOSE_TIMEOUT, Channel, Coalescer
from .counts import HubCounts
from .delivery import Listener
from .logged_channel import LoggedChannel
from .shared_reads import SharedReads

logger = logging.getLogger("livepush_asgi")

# How long a channel may receive nothing before its log is read, in seconds.
CHECK_INTERVAL = 40.0
# How often channels are checked for that, in seconds: one timer serves all channels.
SCAN_INTERVAL = 1.0
# How long a new channel waits until an earlier subscription of the same name has closed, in seconds. A broker
# is promised one subscription per channel; a subscription whose broker does not answer is lost anyway.
CLOSE_WAIT = CLOSE_TIMEOUT + 1.0

#: `event_age` of a broker.
EventAge = Callable[[str, Position], Awaitable[float | None]]


class Hub:
    """Attaches listeners to channels. A channel without listeners closes after `linger` seconds."""

    def __init__(
        self,
        broker: Broker,
        scheduler: Scheduler,
        tasks: TaskGroup,
        linger: float,
        call_in_task: Caller,
        counts: HubCounts,
    ) -> None:
        self._broker = broker
        # `isinstance` of a protocol costs as much as subscribing a channel in memory.
        self._log = broker if isinstance(broker, HistoryBroker) else None
        self._history = None if self._log is None else SharedReads(self._log, scheduler, self.end_of)
        self._scheduler = scheduler
        #: The event loop's monotonic clock, in seconds.
        self.now = scheduler.now
        self._tasks = tasks
        self._call_in_task = call_in_task
        self._linger = linger
        self._counts = counts
        self._event_age: EventAge | None = getattr(broker, "event_age", None)
        sample = None if self._event_age is None else self._sample_lag
        self._coalescer = Coalescer(soon_caller(), scheduler.now, counts, sample)
        self._channels: dict[str, Channel] = {}
        # The closing channels of a name, each with an event that is set when it has closed.
        self._closing: dict[str, dict[Channel, anyio.Event]] = {}
        # Since when each channel cannot be subscribed or read.
        self._failing: dict[Channel, float] = {}
        self._unavailable, self._refused = StateLog(), StateLog()
        # Since when the broker has been seen to be unhealthy, if it does not tell by itself.
        self._unhealthy_since: float | None = None
        self._check_scheduled = False
        # One bound method for all channels.
        self._on_attempt = self._log_health
        self._spawn = self._start_task

    @property
    def channels(self) -> int:
        """How many of the application's channels this process is subscribed to."""
        # A copy: another thread may ask for it.
        return sum([channel.counted for channel in list(self._channels.values())])

    @property
    def healthy(self) -> bool:
        """Whether every channel is subscribed and the broker is healthy."""
        return self._broker_is_healthy() and not self._failing

    @property
    def faults(self) -> tuple[Fault, ...]:
        """Why events may be missing in this process; empty while it is healthy."""
        found: Iterable[Fault] | None = getattr(self._broker, "faults", None)
        return (*(self._broker_faults() if found is None else found), *self._channel_faults())

    @property
    def keeps_history(self) -> bool:
        """Whether the broker keeps history."""
        return self._log is not None

    @property
    def history(self) -> SharedReads:
        """The logs of a broker with history."""
        assert self._history is not None
        return self._history

    def attach(self, name: str, listener: Listener) -> Channel:
        """Attach the listener to a channel, and return the channel.

        If the channel is not `ready`, `listener.subscribed` is called when it is. The listener receives every
        event that is published from then on.
        """
        channel = self._channels.get(name)
        if channel is None:
            channel = self._channels[name] = self._make_channel(name)
            channel.scope = anyio.CancelScope()
            self._tasks.start_soon(self._run_channel, channel, channel.scope, name=f"livepush channel {name}")
        elif channel.linger_timer is not None:
            channel.linger_timer.cancel()
            channel.linger_timer = None
        channel.add(listener)
        return channel

    def detach(self, name: str, listener: Listener) -> None:
        """Detach the listener. Without listeners the channel closes after the linger time."""
        channel = self._channels.get(name)
        if channel is not None and not channel.remove(listener) and channel.linger_timer is None:
            channel.linger_timer = self._scheduler.call_later(self._linger, self._release, channel)

    def listeners(self, name: str) -> tuple[Listener, ...]:
        """Return the listeners of a channel."""
        channel = self._channels.get(name)
        return () if channel is None else channel.listeners

    def end_of(self, name: str) -> Position | None:
        """Return the position up to which this process has delivered the channel's log, or None.

        Deliveries of this turn may be pending; `catch_up` delivers them first.
        """
        channel = self._channels.get(name)
        return None if channel is None else channel.position

    def is_doubtful(self, name: str) -> bool:
        """Return whether acknowledged events may be missing where an earlier epoch of the log has ended."""
        channel = self._channels.get(name)
        return channel is not None and channel.doubtful

    @property
    def turn(self) -> int:
        """A number that grows after turns of the event loop, and never within one."""
        return self._coalescer.turn

    def note_turn(self) -> None:
        """Let `turn` grow. For callbacks of the event loop: whoever sees it grow has let others run."""
        self._coalescer.turn += 1

    def flush(self) -> None:
        """Deliver the pending deliveries of this turn to every listener now."""
        self._coalescer.flush()

    def catch_up(self, names: Iterable[str]) -> dict[str, Position | None]:
        """Flush, and return the position up to which each channel's log is delivered, or None without a log.

        The result leaves out channels that were never subscribed.
        """
        if self._coalescer.pending:
            self._coalescer.flush()
        ends = {}
        for name in names:
            channel = self._channels.get(name)
            if channel is not None and channel.ready:
                ends[name] = channel.position
        return ends

    def refresh(self, name: str, epoch: str) -> None:
        """Read a channel's log if it has an epoch that this process does not know."""
        end = self.end_of(name)
        if end is not None and end.epoch != epoch:
            self._channels[name].lost()

    async def wait_attempted(self, names: Iterable[str]) -> Exception | None:
        """Wait for the first attempt to subscribe each channel, and return the first error, if any."""
        for channel in [self._channels[name] for name in names if name in self._channels]:
            await channel.wait_attempted()
            if channel.error is not None:
                return channel.error
        return None

    async def wait_read(self, names: Iterable[str], timeout: float) -> None:
        """Wait until the logs that are being read are delivered, at most `timeout` seconds."""
        with anyio.move_on_after(timeout):
            for channel in [self._channels[name] for name in names if name in self._channels]:
                await channel.wait_read()

    async def aclose(self) -> None:
        """Close every subscription. Call it after the tasks of the hub have ended."""
        async with anyio.create_task_group() as closing:
            for channel in self._channels.values():
                closing.start_soon(channel.close)
        if self._history is not None:
            self._history.clear()

    def _broker_faults(self) -> Iterable[Fault]:
        """Return the fault of a broker that has `healthy` alone. It lasts since it was seen first."""
        since = None if self._broker_is_healthy() else self._unhealthy_since
        if since is None:
            return ()
        return (Fault(cause="the broker is not healthy", seconds=self.now() - since),)

    def _broker_is_healthy(self) -> bool:
        if getattr(self._broker, "healthy", True):
            self._unhealthy_since = None
            return True
        if self._unhealthy_since is None:
            self._unhealthy_since = self.now()
        return False

    def _channel_faults(self) -> tuple[Fault, ...]:
        # A copy: another thread may ask for it.
        failing = [
            Failing(
                since,
                channel.name,
                where="",
                cause=str(channel.error) or type(channel.error).__name__,
                # Without the commands of the other processes this one is of no use.
                refused=getattr(channel.error, "refused", False) and channel.counted,
            )
            for channel, since in list(self._failing.items())
        ]
        return grouped(failing, self.now())

    def _make_channel(self, name: str) -> Channel:
        # Among the component's own channels only the command channel is read from its log.
        reserved = name.startswith(RESERVED_PREFIX) and name != COMMAND_CHANNEL
        if self._log is None or reserved:
            return Channel(name, self._broker, self._coalescer, self._on_attempt)
        channel = LoggedChannel(name, self._log, self._coalescer, self._on_attempt, self._spawn)
        channel.check_at = self._next_check()
        if not self._check_scheduled:
            self._check_scheduled = True
            self._scheduler.call_later(SCAN_INTERVAL, self._check_channels)
        return channel

    def _next_check(self) -> float:
        # At a random moment, so that the logs of many quiet channels are not all read at once.
        return self.now() + CHECK_INTERVAL * random.uniform(0.5, 1.0)

    def _check_channels(self) -> None:
        now = self.now()
        for channel in list(self._channels.values()):
            if channel.check_at <= now:
                channel.check()
                channel.check_at = self._next_check()
        self._check_scheduled = bool(self._channels)
        if self._check_scheduled:
            self._scheduler.call_later(SCAN_INTERVAL, self._check_channels)

    def _start_task(self, function: BackgroundFunction) -> None:
        # A broker may deliver from a plain callback of the event loop, where anyio starts no task.
        self._call_in_task(partial(self._tasks.start_soon, function))

    def _sample_lag(self, name: str, position: Position, delivered_at: float) -> None:
        assert self._event_age is not None
        self._start_task(partial(self._measure_lag, self._event_age, name, position, delivered_at))

    async def _measure_lag(
        self, event_age: EventAge, name: str, position: Position, delivered_at: float
    ) -> None:
        """Measure how long an event took to its delivery.

        The broker's clock says how old the event is now, and the clock of this process how long ago it was
        delivered. So a difference between the clocks does not matter.
        """
        asked_at = self.now()
        try:
            age = await event_age(name, position)
        except Exception as error:
            # The next sample comes soon, and the broker logs its own failures.
            logger.debug("the age of an event cannot be read: %s", error)
            return
        if age is not None:
            answered_at = (asked_at + self.now()) / 2
            self._counts.lag.add(max(0.0, age - (answered_at - delivered_at)))

    async def _run_channel(self, channel: Channel, scope: anyio.CancelScope) -> None:
        try:
            with scope:
                if channel.name in self._closing:
                    with anyio.move_on_after(CLOSE_WAIT):
                        for closed in list(self._closing[channel.name].values()):
                            await closed.wait()
                await channel.run()
        finally:
            channel.scope = None
            # A task that was cancelled while it subscribed may have got a subscription all the same.
            if channel.closed:
                await self._close(channel)

    def _release(self, channel: Channel) -> None:
        """Close a channel without listeners. The next listener gets a new channel."""
        del self._channels[channel.name]
        if self._failing.pop(channel, None) is not None and not self._failing:
            # Whether it would work now is not known.
            self._unavailable.ends()
            self._refused.ends()
        channel.closed = True
        self._closing.setdefault(channel.name, {})[channel] = anyio.Event()
        if channel.scope is not None:
            channel.scope.cancel()
        else:
            # Its subscription forwards, so its task has ended.
            self._tasks.start_soon(self._close, channel)

    async def _close(self, channel: Channel) -> None:
        try:
            await channel.close()
        finally:
            closing = self._closing[channel.name]
            closing.pop(channel).set()
            if not closing:
                del self._closing[channel.name]

    def _log_health(self, channel: Channel) -> None:
        """Log one line when the first channel fails, and one when the last has recovered."""
        if channel.error is None:
            if channel in self._failing:
                del self._failing[channel]
                if not self._failing:
                    self._counts.recoveries += 1
                    # Both: it may have begun with the one and gone on with the other.
                    if self._unavailable.ends() | self._refused.ends():
                        logger.warning("the broker delivers again", extra=fields("channels_back"))
        elif not channel.closed:
            self._failing.setdefault(channel, self.now())
            # A client may choose a channel that is refused. Its line must not hide that of an outage.
            refused = getattr(channel.error, "refused", False)
            if (self._refused if refused else self._unavailable).begins():
                logger.error(
                    "cannot subscribe at the broker, trying until it works: %s",
                    channel.error,
                    extra=fields("channels_failing", error=str(channel.error), channel=channel.name),
                )
