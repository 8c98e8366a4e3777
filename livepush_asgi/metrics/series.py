"""The list of all series. No label holds a channel, a slot key or a user: each has a few fixed values."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from ..process.statistics import Statistics
from ..runtime.histogram import HistogramData

#: A value of a series.
Value = int | float | HistogramData
#: The values of a series by the values of its labels.
Values = dict[tuple[str, ...], Value]


@dataclass(frozen=True, slots=True)
class Series:
    """One series. `name` has no `_total` or `_info` at its end; `full_name` has."""

    name: str
    kind: Literal["gauge", "counter", "histogram", "info"]
    help: str
    #: The unit as OpenTelemetry writes it. Seconds and bytes are at the end of the name too.
    unit: str
    #: Returns the values by the values of the labels.
    read: Callable[[Statistics], Values]
    labels: tuple[str, ...] = ()

    @property
    def full_name(self) -> str:
        """The name in a query of Prometheus. Those of a histogram end with `_bucket`, `_sum` and `_count`."""
        return self.name + {"counter": "_total", "info": "_info"}.get(self.kind, "")


def _one(value: Value) -> Values:
    return {(): value}


def _each(values: Mapping[str, Value]) -> Values:
    return {(name,): value for name, value in values.items()}


SERIES = (
    Series(
        "livepush",
        "info",
        "The version of livepush_asgi and the class of the broker.",
        "1",
        lambda now: {(now["version"], now["broker"]): 1},
        ("version", "broker"),
    ),
    Series("livepush_streams", "gauge", "Open streams.", "{stream}", lambda now: _one(now["streams"])),
    Series(
        "livepush_channels",
        "gauge",
        "Channels that the process is subscribed to.",
        "{channel}",
        lambda now: _one(now["channels"]),
    ),
    Series(
        "livepush_healthy",
        "gauge",
        "1 if every channel is subscribed and the broker is connected, else 0.",
        "1",
        lambda now: _one(int(now["healthy"])),
    ),
    Series(
        "livepush_draining",
        "gauge",
        "1 while the process drains, else 0.",
        "1",
        lambda now: _one(int(now["draining"])),
    ),
    Series(
        "livepush_outbox_bytes",
        "gauge",
        "Bytes that wait in the outboxes of streams for their clients.",
        "By",
        lambda now: _one(now["outbox_bytes"]),
    ),
    Series(
        "livepush_streams_opened",
        "counter",
        "Streams that opened, by whether the client resumed. Those that ended before are unopened.",
        "{stream}",
        lambda now: _each(now["opened_by_resume"]),
        ("resume",),
    ),
    Series(
        "livepush_streams_ended",
        "counter",
        "Streams that have ended.",
        "{stream}",
        lambda now: _each(now["ended"]),
        ("reason",),
    ),
    Series(
        "livepush_streams_refused",
        "counter",
        "Requests that were refused a stream.",
        "{request}",
        lambda now: _each(now["refused"]),
        ("cause",),
    ),
    Series(
        "livepush_stream_duration_seconds",
        "histogram",
        "How long the streams that have ended were open.",
        "s",
        lambda now: _each(now["stream_duration_seconds"]),
        ("reason",),
    ),
    Series(
        "livepush_open_duration_seconds",
        "histogram",
        "Time from a request to the start of its response: authorization, slot, subscribing.",
        "s",
        lambda now: _one(now["open_duration_seconds"]),
    ),
    Series(
        "livepush_events_published",
        "counter",
        "Events that the process published.",
        "{event}",
        lambda now: _one(now["published"]),
    ),
    Series(
        "livepush_publish_errors",
        "counter",
        "Publishes that raised an error.",
        "{event}",
        lambda now: _each(now["publish_errors"]),
        ("error",),
    ),
    Series(
        "livepush_publish_duration_seconds",
        "histogram",
        "How long publishing an event took, over a broker with a server.",
        "s",
        lambda now: _one(now["publish_duration_seconds"]),
    ),
    Series(
        "livepush_events_delivered",
        "counter",
        "Events delivered to streams: an event counts once for each stream.",
        "{event}",
        lambda now: _one(now["delivered"]),
    ),
    Series(
        "livepush_sent_bytes",
        "counter",
        "Bytes of streams that were given to the server to send.",
        "By",
        lambda now: _one(now["sent_bytes"]),
    ),
    Series(
        "livepush_gaps",
        "counter",
        "Gaps that clients were told of: they have missed events.",
        "{gap}",
        lambda now: _each(now["gaps"]),
        ("reason",),
    ),
    Series(
        "livepush_replayed_events",
        "counter",
        "Events that streams were sent from history.",
        "{event}",
        lambda now: _one(now["replayed"]),
    ),
    Series(
        "livepush_delivery_lag_seconds",
        "histogram",
        "Time from the broker's log to the streams, of one event a second.",
        "s",
        lambda now: _one(now["delivery_lag_seconds"]),
    ),
    Series(
        "livepush_runs",
        "gauge",
        "Runs whose output the process produces.",
        "{run}",
        lambda now: _one(now["runs"]),
    ),
    Series(
        "livepush_runs_ended",
        "counter",
        "Runs that the process has produced and that have ended.",
        "{run}",
        lambda now: _each(now["runs_ended"]),
        ("state",),
    ),
    Series(
        "livepush_broker_reconnects",
        "counter",
        "Lost connections to the broker that are up again.",
        "{connection}",
        lambda now: _one(now["broker_reconnects"]),
    ),
)
