"""The application of the tests, with its numbers at `/metrics`, as a server with several workers has them.

`/telemetry` has those of one worker, as a reader of OpenTelemetry collects them.
"""

import json
import os
import signal

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry, make_asgi_app
from prometheus_client.multiprocess import MultiProcessCollector

from livepush_asgi.contrib import opentelemetry
from livepush_asgi.contrib.prometheus import instrument
from livepush_asgi.metrics import CONTENT_TYPE, text
from livepush_asgi.runtime.asgi import Receive, Scope, Send

from .push import app as push_app
from .push import push

instrument(push, float(os.environ["INTERVAL"]))
reader = InMemoryMetricReader()
opentelemetry.instrument(push, MeterProvider([reader]))
registry = CollectorRegistry()
MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
metrics_app = make_asgi_app(registry)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    match scope.get("path"):
        case "/metrics":
            await metrics_app(scope, receive, send)
        case "/text":
            await answer(send, text(push), CONTENT_TYPE)
        case "/telemetry":
            data = reader.get_metrics_data()
            assert data is not None
            numbers = {"pid": os.getpid(), **json.loads(data.to_json())}
            await answer(send, json.dumps(numbers).encode(), "application/json")
        case "/die":
            os.kill(os.getpid(), signal.SIGKILL)
        case _:
            await push_app(scope, receive, send)


async def answer(send: Send, body: bytes, media_type: str) -> None:
    headers = [(b"content-type", media_type.encode()), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
