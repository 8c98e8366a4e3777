import pytest
from opentelemetry import metrics, trace
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from livepush_asgi import LivePush, MemoryBroker, public
from livepush_asgi.contrib.opentelemetry import instrument
from livepush_asgi.testing import Client

push = LivePush(MemoryBroker(), public("news"))

# start: telemetry
instrument(push)  # Where push is made. Providers of your own: meter_provider=..., tracer_provider=...
# end: telemetry

app = push

# start: exclude
app = OpenTelemetryMiddleware(app, exclude_spans=["receive", "send"], excluded_urls="/events")
# end: exclude


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.mark.anyio
async def test_there_is_no_span_for_each_message():
    reader, exporter, tracers = InMemoryMetricReader(), InMemorySpanExporter(), TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(tracers)
    metrics.set_meter_provider(MeterProvider([reader]))
    async with Client(app, lifespan=True) as client:
        for path in ("/events", "/other"):
            async with client.open(path) as stream:
                for number in range(20):
                    await push.publish("news", number)
                await stream.events(20)
    names = [span.name for span in exporter.get_finished_spans()]
    assert names.count("livepush publish") == 40
    assert names.count("livepush open") == names.count("livepush end") == 2
    # The span of the request to the other path, which is not excluded.
    assert len(names) == 45
    collected = reader.get_metrics_data().resource_metrics[0].scope_metrics
    assert "livepush.streams.opened" in [metric.name for scope in collected for metric in scope.metrics]
