"""The series, as text, in prometheus_client and in OpenTelemetry: each is what the statistics say."""

import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader, NumberDataPoint
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from prometheus_client import CollectorRegistry, Metric, exposition
from prometheus_client.openmetrics import exposition as open_exposition
from prometheus_client.openmetrics import parser as open_parser
from prometheus_client.parser import text_string_to_metric_families as classic

from livepush_asgi import (
    BrokerUnavailableError,
    DrainPolicy,
    EndReason,
    LivePush,
    MemoryBroker,
    MockBroker,
    SSEStreamService,
    Statistics,
    StreamRequest,
    public,
)
from livepush_asgi.contrib import opentelemetry, prometheus
from livepush_asgi.metrics import text
from livepush_asgi.metrics.series import SERIES
from livepush_asgi.runtime.histogram import HistogramData
from livepush_asgi.testing import Client

from .serving import REPOSITORY

# prometheus_client has types in part.
open_metrics: Callable[[str], Iterable[Metric]] = open_parser.text_string_to_metric_families
generate_latest: Callable[[CollectorRegistry], bytes] = exposition.generate_latest
generate_open_metrics: Callable[[CollectorRegistry], bytes] = open_exposition.generate_latest

NAMES = """
    livepush_info livepush_streams livepush_channels livepush_healthy livepush_draining livepush_outbox_bytes
    livepush_streams_opened_total livepush_streams_ended_total livepush_streams_refused_total
    livepush_stream_duration_seconds livepush_open_duration_seconds livepush_events_published_total
    livepush_publish_errors_total livepush_publish_duration_seconds livepush_events_delivered_total
    livepush_sent_bytes_total livepush_gaps_total livepush_replayed_events_total
    livepush_delivery_lag_seconds livepush_runs livepush_runs_ended_total livepush_broker_reconnects_total
"""

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def sampled(families: Iterable[Metric]) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def expected(numbers: Statistics) -> Samples:
    """Return the samples of these numbers, by hand."""
    found: Samples = {}

    def put(name: str, value: float | HistogramData, **labels: str) -> None:
        if not isinstance(value, dict):
            found[name, frozenset(labels.items())] = value
            return
        total = 0
        for bound, count in zip([*value["bounds"], float("inf")], value["counts"], strict=True):
            le = "+Inf" if bound == float("inf") else str(float(bound))
            total += count
            put(f"{name}_bucket", total, **labels, le=le)
        put(f"{name}_count", total, **labels)
        put(f"{name}_sum", value["sum"], **labels)

    put("livepush_info", 1, version=numbers["version"], broker=numbers["broker"])
    for name in ("streams", "channels", "healthy", "draining", "outbox_bytes", "runs"):
        put(f"livepush_{name}", int(numbers[name]))
    for name, key in (("published", "published"), ("delivered", "delivered")):
        put(f"livepush_events_{name}_total", numbers[key])  # type: ignore[literal-required]
    put("livepush_sent_bytes_total", numbers["sent_bytes"])
    put("livepush_replayed_events_total", numbers["replayed"])
    put("livepush_broker_reconnects_total", numbers["broker_reconnects"])
    for name in ("open_duration", "publish_duration", "delivery_lag"):
        put(f"livepush_{name}_seconds", numbers[f"{name}_seconds"])  # type: ignore[literal-required]
    for name, label, counts in (
        ("streams_opened_total", "resume", numbers["opened_by_resume"]),
        ("streams_ended_total", "reason", numbers["ended"]),
        ("runs_ended_total", "state", numbers["runs_ended"]),
        ("streams_refused_total", "cause", numbers["refused"]),
        ("publish_errors_total", "error", numbers["publish_errors"]),
        ("gaps_total", "reason", numbers["gaps"]),
        ("stream_duration_seconds", "reason", numbers["stream_duration_seconds"]),
    ):
        for key, count in counts.items():
            put(f"livepush_{name}", count, **{label: key})
    return found


def make_push(**options: Any) -> LivePush:
    return LivePush(MemoryBroker(), public("news"), drain=DrainPolicy(window=0.5, signals=False), **options)


@asynccontextmanager
async def used(push: LivePush) -> AsyncIterator[None]:
    """Use a LivePush a little, and yield while a stream is open."""
    async with push.lifespan(), Client(push) as client:
        async with client.open("/") as stream:
            first = await push.publish("news", 0)
            await stream.next_event()
        await push.publish("news", 1)
        async with client.open("/", last_event_id="unknown") as stream:
            await stream.next_event(control=True)
        async with client.open("/", last_event_id=first) as stream:
            await stream.next_event()
            yield


def test_the_page_has_each_series() -> None:
    page = (REPOSITORY / "docs/guides/watch.md").read_text()
    rows = re.findall(r"^\| `(livepush_\w+)` \| (\w+) \| ([^|]*)\|", page, re.MULTILINE)
    assert [(name, kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows] == [
        (series.full_name, series.kind, series.labels) for series in SERIES
    ]


def test_the_series_are_these_twenty() -> None:
    assert [series.full_name for series in SERIES] == NAMES.split()
    for series in SERIES:
        assert not {"channel", "user", "slot", "key"} & set(series.labels)
        assert re.fullmatch(r"[a-z_]+", series.name)


@pytest.mark.parametrize("parser", [open_metrics, classic], ids=["OpenMetrics", "classic"])
async def test_the_text(parser: Any) -> None:
    push = make_push()
    async with used(push):
        assert sampled(parser(text(push).decode())) == expected(push.statistics())


async def test_the_text_of_a_broker_with_an_odd_name() -> None:
    odd = type('A"b\\c\nd', (MemoryBroker,), {})
    push = LivePush(odd(), public("news"))
    for parser in (open_metrics, classic):
        assert sampled(parser(text(push).decode())) == expected(push.statistics())


def test_the_text_has_types_and_units() -> None:
    families = {family.name: family for family in open_metrics(text(make_push()).decode())}
    assert {name: family.type for name, family in families.items()} == {
        series.name: series.kind for series in SERIES
    }
    assert families["livepush_sent_bytes"].unit == "bytes"
    assert families["livepush_delivery_lag_seconds"].unit == "seconds"
    assert all(family.documentation for family in families.values())


async def test_a_collector() -> None:
    push, registry = make_push(), CollectorRegistry()
    registry.register(prometheus.collector(push))
    async with used(push):
        numbers = expected(push.statistics())
        assert sampled(classic(generate_latest(registry).decode())) == numbers
        shown = generate_open_metrics(registry).decode()
        assert sampled(open_metrics(shown)) == numbers
        ours, theirs = (
            {family.name: family.type for family in open_metrics(page)}
            for page in (text(push).decode(), shown)
        )
        assert ours == theirs
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        registry.register(prometheus.collector(make_push()))


async def test_instrument_without_workers_is_a_collector() -> None:
    push, registry = make_push(), CollectorRegistry()
    prometheus.instrument(push, registry=registry)
    async with used(push):
        assert sampled(registry.collect()) == expected(push.statistics())


MISTAKES = {
    "collector(push)": "call instrument",
    "instrument(push, 0)": "above 0",
    "os.rmdir(directory); instrument(push)": "make it first",
    "os.mkdir(directory); instrument(push); instrument(other)": "another LivePush",
}
TOO_LATE = {"instrument(push)": "environment of the server"}


@pytest.mark.real_time
@pytest.mark.parametrize(
    ("before", "calls"),
    [("", MISTAKES), ("del os.environ[name]; import prometheus_client", TOO_LATE)],
    ids=["in time", "too late"],
)
def test_a_mistake_with_several_workers_raises(before: str, calls: dict[str, str], tmp_path: Path) -> None:
    program = f"""
import os
name, directory = "PROMETHEUS_MULTIPROC_DIR", {str(tmp_path)!r}
os.environ[name] = directory
{before}
from livepush_asgi.contrib.prometheus import collector, instrument
os.environ[name] = directory
from livepush_asgi import LivePush, MemoryBroker, public
push, other = (LivePush(MemoryBroker(), public("news")) for _ in range(2))
for call in {list(calls)!r}:
    try:
        exec(call)
    except Exception as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY)
    errors = done.stdout.splitlines()
    assert len(errors) == len(calls), done.stderr
    for error, message in zip(errors, calls.values(), strict=True):
        assert message in error


FORKS = """
import asyncio, os
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector
from livepush_asgi import LivePush, MemoryBroker, public
from livepush_asgi.contrib.prometheus import instrument

push = LivePush(MemoryBroker(), public("news"))
instrument(push)

async def publish(times):
    async with push.lifespan():
        for number in range(times):
            await push.publish("news", number)

asyncio.run(publish(3))
if (child := os.fork()) == 0:
    asyncio.run(publish(5))
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
asyncio.run(publish(1))
registry = CollectorRegistry()
MultiProcessCollector(registry)
print(registry.get_sample_value("livepush_events_published_total"))
"""


@pytest.mark.real_time
def test_a_process_that_forks_is_not_counted_twice(tmp_path: Path) -> None:
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", FORKS], capture_output=True, text=True, cwd=REPOSITORY, env=environment
    )
    assert done.stdout == "9.0\n", done.stderr


# OpenTelemetry.


class Telemetry:
    """A LivePush that reports to the readers and exporters of OpenTelemetry's SDK in memory."""

    def __init__(self, push: LivePush) -> None:
        self.push = push
        self.reader, self.exporter = InMemoryMetricReader(), InMemorySpanExporter()
        meters, self.tracers = MeterProvider([self.reader]), TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self.exporter))
        opentelemetry.instrument(push, meters, self.tracers)

    def samples(self) -> Samples:
        """Return what the reader collects, by the names of Prometheus."""
        found: Samples = {}
        data = self.reader.get_metrics_data()
        assert data is not None
        (resource,) = data.resource_metrics
        for metric in resource.scope_metrics[0].metrics:
            unit = {"s": "_seconds"}.get(metric.unit or "", "")
            name = metric.name.replace(".", "_") + unit
            name += "_total" if getattr(metric.data, "is_monotonic", False) else ""
            for point in metric.data.data_points:
                labels = {key: str(value) for key, value in (point.attributes or {}).items()}
                if isinstance(point, HistogramDataPoint):
                    total: float = 0
                    for bound, count in zip(
                        [*point.explicit_bounds, "+Inf"], point.bucket_counts, strict=True
                    ):
                        total += count
                        found[f"{name}_bucket", frozenset({**labels, "le": str(bound)}.items())] = total
                    found[f"{name}_count", frozenset(labels.items())] = point.count
                    found[f"{name}_sum", frozenset(labels.items())] = point.sum
                elif isinstance(point, NumberDataPoint):
                    found[name, frozenset(labels.items())] = point.value
        return found

    def spans(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]


async def test_the_instruments_of_opentelemetry() -> None:
    telemetry = Telemetry(make_push())
    async with used(telemetry.push):
        found, wanted = telemetry.samples(), expected(telemetry.push.statistics())
        # A histogram without a value does not exist there.
        absent = {key[0] for key in wanted if key not in found}
        assert absent <= {
            f"livepush_{name}_seconds_{part}"
            for name in ("publish_duration", "delivery_lag", "stream_duration")
            for part in ("bucket", "count", "sum")
        }
        for key, value in found.items():
            assert value == pytest.approx(wanted[key])
        assert found["livepush_streams", frozenset()] == 1
        # The next collection reads again.
        await telemetry.push.publish("news", 2)
        again = telemetry.samples()
        published = "livepush_events_published_total", frozenset[tuple[str, str]]()
        assert again[published] == found[published] + 1


def lasted(span: ReadableSpan) -> float:
    assert span.end_time is not None
    assert span.start_time is not None
    return (span.end_time - span.start_time) / 1e9


async def test_the_spans() -> None:
    async def authorize(request: StreamRequest) -> Any:
        return public("news")(request)

    push = LivePush(MemoryBroker(), authorize, drain=DrainPolicy(window=0.5, signals=False))
    telemetry = Telemetry(push)
    tracer = telemetry.tracers.get_tracer("test")
    async with push.lifespan(), Client(push) as client:
        with tracer.start_as_current_span("GET /events") as request:
            async with client.open("/") as stream:
                with tracer.start_as_current_span("POST /messages") as caller:
                    await push.publish("news", "hello")
                await stream.next_event()
    (opened,), (published,), (ended,) = (
        telemetry.spans(f"livepush {name}") for name in ("open", "publish", "end")
    )
    assert opened.parent is not None
    assert opened.parent.span_id == request.get_span_context().span_id
    assert opened.attributes == {"livepush.resume": "fresh", "livepush.channels": 1}
    assert published.parent is not None
    assert published.parent.span_id == caller.get_span_context().span_id
    assert published.kind is SpanKind.PRODUCER
    assert (published.attributes or {})["messaging.destination.name"] == "news"
    assert [link.context.span_id for link in ended.links] == [opened.context.span_id]
    assert ended.parent is None
    assert (ended.attributes or {})["livepush.end.reason"] == EndReason.DISCONNECT
    assert not [span for span in telemetry.exporter.get_finished_spans() if "send" in span.name]
    for span in (opened, published, ended):
        assert 0 <= lasted(span) < 5


async def test_a_publish_that_fails_is_an_error_of_its_span() -> None:
    broker = MockBroker()
    broker.fail_publish(BrokerUnavailableError("away"))
    telemetry = Telemetry(LivePush(broker, public("news")))
    with pytest.raises(BrokerUnavailableError):
        await telemetry.push.publish("news", "x", retry_for=5)
    (span,) = telemetry.spans("livepush publish")
    assert span.status.status_code is StatusCode.ERROR
    assert telemetry.push.statistics()["publish_errors"]["unavailable"] == 1


async def test_a_stream_of_a_route_opens_in_the_span_of_its_request() -> None:
    push = make_push()
    telemetry = Telemetry(push)
    service = SSEStreamService.of(push)
    async with push.lifespan():
        with telemetry.tracers.get_tracer("test").start_as_current_span("GET") as request:
            stream = await service.open_stream(channel="news")
            await anext(stream.body)
        await stream.body.aclose()
    (opened,), (ended,) = telemetry.spans("livepush open"), telemetry.spans("livepush end")
    assert opened.parent is not None
    assert opened.parent.span_id == request.get_span_context().span_id
    assert len(ended.links) == 1


async def test_without_an_sdk_nothing_is_reported() -> None:
    push = make_push()
    opentelemetry.instrument(push, tracer_provider=trace.NoOpTracerProvider())
    async with used(push):
        assert push.statistics()["streams"] == 1


async def test_it_is_instrumented_before_it_starts() -> None:
    push = make_push()
    async with push.lifespan():
        with pytest.raises(RuntimeError, match="before it starts"):
            opentelemetry.instrument(push)
