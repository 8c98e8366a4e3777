"""Statistics and Counters: the numbers of a LivePush in this process."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from enum import StrEnum
from typing import TypedDict, TypeVar

from ..errors import BrokerUnavailableError, PositionConflictError
from ..hub.counts import HubCounts
from ..runtime.histogram import Histogram, HistogramData
from ..stream.counts import StreamCounts
from ..stream.stream import Stream
from ..wire.reasons import EndReason, GapReason, OpenOutcome, PublishFailure, RefusalCause, RunState

Name = TypeVar("Name", bound=StrEnum)

RUN_ENDS = tuple(state for state in RunState if state.ended)


class Statistics(TypedDict):
    """The numbers of a LivePush in this process: its current state, and counts since it was made.

    JSON can encode this dictionary; a health or metrics route may return it unchanged. Every dictionary in it
    has every key. A HistogramData has `bounds`, `counts` and `sum`.
    """

    #: The version of livepush_asgi.
    version: str
    #: The name of the broker's class.
    broker: str
    #: Streams that are open now.
    streams: int
    #: Channels of the application that this process is subscribed to now.
    channels: int
    #: Whether every channel is subscribed and the broker's connection is up.
    healthy: bool
    #: Whether the process is draining: it refuses new streams, or will after `DrainPolicy.delay`.
    draining: bool
    #: Bytes that wait in the outboxes of streams now, because their clients are slower than their channels.
    outbox_bytes: int
    #: Streams that were opened: they have had a slot.
    opened: int
    #: The same streams by how they opened: `fresh`, `resumed`, `gap`, or `unopened` for one that ended before
    #: it opened. A stream that is still opening is not in it.
    opened_by_resume: dict[str, int]
    #: Streams that have ended, by `EndReason`. It has every reason.
    ended: dict[str, int]
    #: How long streams were open, by `EndReason`.
    stream_duration_seconds: dict[str, HistogramData]
    #: How long it took from a request to the start of its stream's response: authorization, the slot, and
    #: subscribing.
    open_duration_seconds: HistogramData
    #: Requests that were refused a stream, by `RefusalCause`. It has every cause.
    refused: dict[str, int]
    #: Events that this process published.
    published: int
    #: Publishes that raised: `unavailable`, `conflict`, `invalid` or `error`.
    publish_errors: dict[str, int]
    #: How long publishing an event took, with its retries, over a broker with a server. Publishes that raised
    #: are not in it.
    publish_duration_seconds: HistogramData
    #: Events delivered to streams: an event counts once for each stream.
    delivered: int
    #: Events that streams were sent from history. An event that was delivered while its stream was behind
    #: counts here and in `delivered`.
    replayed: int
    #: Gap events that streams were sent, by `GapReason`.
    gaps: dict[str, int]
    #: Runs whose output this process produces now.
    runs: int
    #: Runs that this process has produced and that have ended, by `RunState`. A process that is killed counts
    #: none.
    runs_ended: dict[str, int]
    #: Bytes of streams that were given to the server to send.
    sent_bytes: int
    #: How long events took from the broker's log to the streams of this process, for one event a second.
    #: Brokers with a server and history measure it.
    delivery_lag_seconds: HistogramData
    #: How often a connection to the broker was up again after it had been lost.
    broker_reconnects: int


class Counters:
    """The counts of a LivePush, from its first start on."""

    __slots__ = (
        "_most_sent_bytes",
        "ended",
        "hub",
        "opened",
        "publish_duration",
        "publish_errors",
        "published",
        "refused",
        "runs",
        "runs_ended",
        "stream_durations",
        "streams",
        "subscribers",
    )

    def __init__(self) -> None:
        self.hub = HubCounts()
        #: What the streams of clients count.
        self.streams = StreamCounts()
        #: The same of subscribers in Python. No statistics show it.
        self.subscribers = StreamCounts()
        self.opened = 0
        self.ended: Counter[EndReason] = Counter()
        self.stream_durations = {
            reason: Histogram(0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 900, 3600) for reason in EndReason
        }
        self.refused: Counter[RefusalCause] = Counter()
        self.runs = 0
        self.runs_ended: Counter[RunState] = Counter()
        self._most_sent_bytes = 0
        self.published = 0
        self.publish_errors: Counter[PublishFailure] = Counter()
        self.publish_duration = Histogram(
            0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10
        )

    def stream_ended(self, stream: Stream, reason: EndReason, seconds: float) -> None:
        """Count the end of a stream that was open for so many seconds."""
        self.ended[reason] += 1
        self.stream_durations[reason].add(seconds)
        self.streams.sent_bytes += stream.sent_bytes
        if stream.outcome is None:
            self.streams.unopened += 1

    def sent_bytes(self, streams: Collection[Stream]) -> int:
        """Return how many bytes all streams have sent: those that are open, and those that have closed."""
        # Another thread may ask, and miss a stream that closes between these two. A counter never decreases.
        closed = self.streams.sent_bytes
        sent = closed + sum([stream.sent_bytes for stream in list(streams)])
        self._most_sent_bytes = max(sent, self._most_sent_bytes)
        return self._most_sent_bytes

    def publish_failed(self, error: Exception) -> None:
        """Count a publish that has raised."""
        if isinstance(error, BrokerUnavailableError):
            failure = PublishFailure.UNAVAILABLE
        elif isinstance(error, PositionConflictError):
            failure = PublishFailure.CONFLICT
        elif isinstance(error, (TypeError, ValueError)):
            failure = PublishFailure.INVALID
        else:
            failure = PublishFailure.ERROR
        self.publish_errors[failure] += 1

    def histograms(self) -> Iterator[tuple[str, EndReason | None, Histogram]]:
        """Yield each histogram with its name in Statistics, and the reason if there is one for each."""
        yield "publish_duration_seconds", None, self.publish_duration
        yield "open_duration_seconds", None, self.streams.open_duration
        yield "delivery_lag_seconds", None, self.hub.lag
        for reason, histogram in self.stream_durations.items():
            yield "stream_duration_seconds", reason, histogram

    def statistics(
        self,
        *,
        version: str,
        broker: str,
        streams: int,
        channels: int,
        healthy: bool,
        draining: bool,
        outbox_bytes: int,
        sent_bytes: int,
        broker_reconnects: int,
    ) -> Statistics:
        """Return the counts together with these numbers of the moment."""
        return Statistics(
            version=version,
            broker=broker,
            streams=streams,
            channels=channels,
            healthy=healthy,
            draining=draining,
            outbox_bytes=outbox_bytes,
            opened=self.opened,
            opened_by_resume={outcome.value: getattr(self.streams, outcome.value) for outcome in OpenOutcome},
            ended=_by_name(EndReason, self.ended),
            stream_duration_seconds={
                reason.value: histogram.data() for reason, histogram in self.stream_durations.items()
            },
            open_duration_seconds=self.streams.open_duration.data(),
            refused=_by_name(RefusalCause, self.refused),
            published=self.published,
            publish_errors=_by_name(PublishFailure, self.publish_errors),
            publish_duration_seconds=self.publish_duration.data(),
            delivered=self.hub.delivered,
            replayed=self.streams.replayed,
            gaps=_by_name(GapReason, self.streams.gaps),
            runs=self.runs,
            runs_ended=_by_name(RUN_ENDS, self.runs_ended),
            sent_bytes=sent_bytes,
            delivery_lag_seconds=self.hub.lag.data(),
            broker_reconnects=broker_reconnects,
        )


def _by_name(names: Iterable[Name], counts: Mapping[Name, int]) -> dict[str, int]:
    return {name.value: counts.get(name, 0) for name in names}
