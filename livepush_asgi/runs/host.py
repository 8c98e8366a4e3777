"""RunHost: the producers of one process, and its watches over the runs that it has readers of."""

import logging
from collections.abc import AsyncIterator, Callable
from functools import partial

import anyio

from ..brokers import HistoryBroker
from ..hub.delivery import Batch
from ..process.commands import decode_message, send
from ..process.process import Process
from ..process.statistics import Counters
from ..runtime.event_loop import now
from ..runtime.failure_log import fields
from ..runtime.scheduler import Timer
from ..wire.cursor import Position
from ..wire.event import COMMAND_CHANNEL
from ..wire.reasons import GapReason
from .collector import Collector
from .log import LogState, RunLog
from .producer import Producer
from .watch import Watch

logger = logging.getLogger("livepush_asgi")

_CANCEL = "cancel-run"


async def send_cancelled(broker: HistoryBroker, channel: str) -> None:
    """Tell the processes to look at the log of a run. Raises BrokerUnavailableError."""
    await send(broker, {"command": _CANCEL, "channel": channel})


class _Readers:
    """The readers of one attempt in this process, and the watch that they share."""

    def __init__(self, timer: Timer) -> None:
        self.count = 0
        self._timer = timer
        #: The scope of the task of the watch, which most runs end before.
        self.scope: anyio.CancelScope | None = None

    def end_watch(self) -> None:
        """End the watch, or do not begin it. Harmless the second time."""
        self._timer.cancel()
        if self.scope is not None:
            self.scope.cancel()


class RunHost:
    """The runs of one process. It is a listener of the hub, for the commands of other processes."""

    multi_channel = True

    def __init__(self, process: Process, counters: Counters) -> None:
        self.process = process
        self._collector = Collector(process)
        self._counters = counters
        self._producers: dict[str, Producer] = {}
        self._readers: dict[tuple[str, str], _Readers] = {}
        self._is_listening = False

    def start(
        self, log: RunLog, start: LogState, items: AsyncIterator[object], retry_for: float, ahead: int
    ) -> None:
        """Start the producer of an attempt, whose start record was appended."""
        producer = Producer(
            log, start, items, self.process, self._collector, self._counters, retry_for, ahead
        )
        if not self._is_listening:
            self._is_listening = True
            # The revoker has to be attached before the channel is subscribed, or it would not be told.
            self.process.revoker.start_listening()
            self.process.hub.attach(COMMAND_CHANNEL, self)
            self.process.on_stopping.append(self._stop)
        # An earlier attempt of this process, which was found lost, may not know yet.
        if (earlier := self._producers.get(log.channel)) is not None:
            earlier.look()
        self._producers[log.channel] = producer
        self._counters.runs += 1
        self.process.start_task(partial(self._produce, log.channel, producer))

    async def _produce(self, channel: str, producer: Producer) -> None:
        try:
            await producer.run()
        finally:
            self._counters.runs -= 1
            self._counters.runs_ended[producer.state] += 1
            if self._producers.get(channel) is producer:
                del self._producers[channel]

    async def _stop(self) -> None:
        """Let the producers end by themselves for `DrainPolicy.runs` seconds, and stop the others."""
        producers, began_at = list(self._producers.values()), now()
        with anyio.move_on_after(self.process.drain_policy.runs):
            for producer in producers:
                await producer.closed.wait()
        late = [producer for producer in producers if not producer.closed.is_set()]
        for producer in self._producers.values():
            producer.stop()
        if producers:
            logger.info(
                "of %d runs of this process, %d have ended within %.1f s, and %d were stopped and are lost",
                len(producers),
                len(producers) - len(late),
                now() - began_at,
                len(late),
                extra=fields("runs_stopped", runs=len(producers), lost=len(late)),
            )

    def follow(self, run: LogState, log: RunLog) -> Callable[[], None]:
        """Watch a run as long as it has readers here. Returns the function that a reader calls at its end."""
        key = (log.channel, run.attempt)
        readers = self._readers.get(key)
        if readers is None:
            watch = Watch(log, run, partial(self.process.hub.end_of, log.channel))
            timer = self.process.scheduler.call_later(watch.pause, partial(self._start_watch, key, watch))
            readers = self._readers[key] = _Readers(timer)
        readers.count += 1

        def leave() -> None:
            readers.count -= 1
            if not readers.count:
                readers.end_watch()
                if self._readers.get(key) is readers:
                    del self._readers[key]

        return leave

    def _start_watch(self, key: tuple[str, str], watch: Watch) -> None:
        readers = self._readers[key]
        readers.scope = anyio.CancelScope()
        self.process.start_task(partial(self._watch, key, readers, readers.scope, watch))

    async def _watch(
        self, key: tuple[str, str], readers: _Readers, scope: anyio.CancelScope, watch: Watch
    ) -> None:
        channel = key[0]
        try:
            with scope:
                await watch.run()
        except Exception as error:
            self.process.context.failures.log(
                logging.WARNING,
                "the run on %r is not watched any more, so its readers here do not learn if it is lost: %s",
                channel,
                error,
                about=channel,
                extra=fields("run_unwatched", channel=channel, error=str(error)),
            )
        finally:
            if self._readers.get(key) is readers:
                del self._readers[key]

    # The hub calls these methods, possibly outside of any task.

    def receive(self, batch: Batch, /) -> None:
        """Let the producers that were cancelled look at their logs."""
        for delivery in batch.deliveries:
            try:
                message = decode_message(delivery.bare or delivery.block)
            except ValueError:
                # The revoker logs it.
                continue
            producer = self._producers.get(str(message.get("channel")))
            if producer is not None and message.get("command") == _CANCEL:
                producer.look()

    def gap(self, channel: str, reason: GapReason, position: Position | None = None, /) -> None:
        """Called when commands may have been lost."""
        for producer in self._producers.values():
            producer.look()

    def reads_log(self, channel: str, /) -> bool:
        """Return False: it takes what it receives."""
        return False

    def subscribed(self, channel: str, /) -> None:
        """Called when the command channel is subscribed: commands before may have been lost."""
        self.gap(channel, GapReason.BROKER)
