"""OpenTelemetry: the numbers of a LivePush as instruments, and short spans. Needs `opentelemetry-api` alone.

`pip install 'livepush_asgi[opentelemetry]'`. Without an SDK in the application every call does nothing.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from time import time_ns

from opentelemetry import metrics, trace
from opentelemetry.metrics import CallbackOptions, Histogram, MeterProvider, Observation
from opentelemetry.trace import Link, SpanKind, Status, StatusCode, TracerProvider

from .. import __version__
from ..app.livepush import LivePush
from ..metrics.series import SERIES, Series
from ..process.observer import Observer
from ..process.statistics import Statistics
from ..stream.stream import Stream
from ..wire.reasons import EndReason

_SCOPE = "livepush_asgi"


def instrument(
    push: LivePush,
    meter_provider: MeterProvider | None = None,
    tracer_provider: TracerProvider | None = None,
) -> None:
    """Report the series and the spans of `push`. Call it where `push` is made, before it starts.

    The instruments are named as the series of Prometheus are, with dots: `livepush.streams.opened` with the
    attribute `resume`. Gauges and counters are observed when a reader collects; histograms get each value.

    There are three spans, each as short as what it is named for; none lives as long as a stream:
    `livepush publish` around a publish with its retries, with the channel in `messaging.destination.name`;
    `livepush open` from the request to the start of the response, below the span of the request; and
    `livepush end` at the end of a stream, with a link to its `livepush open`.

    Without the arguments it takes the providers of the application. Raises RuntimeError if `push` has
    started.
    """
    tracer = trace.get_tracer(_SCOPE, __version__, tracer_provider)
    meter = metrics.get_meter(_SCOPE, __version__, meter_provider)
    observer = _Observer(tracer)
    push._observe(observer)
    readings = _Readings(push)
    for series in SERIES:
        name = _name_of(series)
        if series.kind == "histogram":
            # The bounds of `statistics()`, unless the application has a view of its own.
            data = next(iter(series.read(push.statistics()).values()))
            assert isinstance(data, dict)
            observer.histograms[series.name.removeprefix("livepush_")] = meter.create_histogram(
                name, series.unit, series.help, explicit_bucket_boundaries_advisory=data["bounds"]
            )
        elif series.kind == "counter":
            meter.create_observable_counter(name, [readings.of(series)], series.unit, series.help)
        else:
            meter.create_observable_gauge(name, [readings.of(series)], series.unit, series.help)


def _name_of(series: Series) -> str:
    if series.kind == "info":
        return "livepush.info"
    name = series.name.removesuffix("_seconds") if series.unit == "s" else series.name
    return name.replace("_", ".")


class _Readings:
    """Reads the statistics once for all instruments of a collection: that sums up over all streams."""

    def __init__(self, push: LivePush) -> None:
        self._push = push
        self._statistics: Statistics
        # The names of the series that were not read from these statistics yet.
        self._unread: set[str] = set()

    def of(self, series: Series) -> Callable[[CallbackOptions], Iterator[Observation]]:
        """Return the callback of an instrument."""

        def read(options: CallbackOptions) -> Iterator[Observation]:
            for labels, value in series.read(self._current(series.name)).items():
                assert not isinstance(value, dict)
                yield Observation(value, dict(zip(series.labels, labels, strict=True)))

        return read

    def _current(self, name: str) -> Statistics:
        if name not in self._unread:
            # Another collection has begun.
            self._statistics = self._push.statistics()
            self._unread = {series.name for series in SERIES}
        self._unread.discard(name)
        return self._statistics


class _Observer(Observer):
    records = True

    def __init__(self, tracer: trace.Tracer) -> None:
        #: By the name of the histogram in Statistics.
        self.histograms: dict[str, Histogram] = {}
        self._tracer = tracer
        # The context of the span `livepush open` of each open stream, if it is recorded.
        self._opened: dict[Stream, trace.SpanContext] = {}

    def recorded(self, name: str, reason: EndReason | None, value: float) -> None:
        histogram = self.histograms.get(name)
        if histogram is not None:
            histogram.record(value, None if reason is None else {"reason": reason.value})

    def publishing(self, channel: str) -> AbstractContextManager[object]:
        return self._publishing(channel)

    @contextmanager
    def _publishing(self, channel: str) -> Iterator[None]:
        attributes = {
            "messaging.system": "livepush",
            "messaging.operation.name": "publish",
            "messaging.operation.type": "send",
            "messaging.destination.name": channel,
        }
        with self._tracer.start_as_current_span(
            "livepush publish", kind=SpanKind.PRODUCER, attributes=attributes
        ):
            yield

    def opened(self, stream: Stream, seconds: float) -> None:
        # Its parent is the span of the request: this is called in the task of the request.
        now = time_ns()
        span = self._tracer.start_span(
            "livepush open",
            start_time=now - round(seconds * 1e9),
            attributes={
                "livepush.resume": str(stream.outcome),
                "livepush.channels": len(stream.grant.channel_names),
            },
        )
        span.end(now)
        if span.get_span_context().is_valid:
            self._opened[stream] = span.get_span_context()

    def ended(self, stream: Stream, reason: EndReason, seconds: float) -> None:
        context = self._opened.pop(stream, None)
        # A root of its own: as a child of the request's span it would make that trace as long as the stream.
        span = self._tracer.start_span(
            "livepush end",
            context=trace.set_span_in_context(trace.INVALID_SPAN),
            links=[] if context is None else [Link(context)],
            attributes={"livepush.end.reason": reason.value, "livepush.stream.duration": seconds},
        )
        if reason is EndReason.ERROR:
            span.set_status(Status(StatusCode.ERROR))
        span.end()
