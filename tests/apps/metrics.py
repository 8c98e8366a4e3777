"""The application of the tests, with its numbers at `/metrics`, as a server with several workers has them."""

import os
import signal

from prometheus_client import CollectorRegistry, make_asgi_app
from prometheus_client.multiprocess import MultiProcessCollector

from livepush_asgi.contrib.prometheus import instrument
from livepush_asgi.metrics import CONTENT_TYPE, text
from livepush_asgi.runtime.asgi import Receive, Scope, Send

from .push import app as push_app
from .push import push

instrument(push, float(os.environ["INTERVAL"]))
registry = CollectorRegistry()
MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
metrics_app = make_asgi_app(registry)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    match scope.get("path"):
        case "/metrics":
            await metrics_app(scope, receive, send)
        case "/text":
            headers = [(b"content-type", CONTENT_TYPE.encode()), (b"connection", b"close")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": text(push)})
        case "/die":
            os.kill(os.getpid(), signal.SIGKILL)
        case _:
            await push_app(scope, receive, send)
