"""An application as others write it, for clients that behave as badly as they can.

`GET /events?channel=c&key=k` is a stream; `fail=` has `authorize` raise in one of several ways. `/publish`
takes signed events, and `/health` answers checks.
"""

import json
import logging

from livepush_asgi import (
    Cors,
    Grant,
    Limits,
    LivePush,
    LivePushMiddleware,
    MemoryBroker,
    MemorySlotCap,
    Refusal,
    StreamRequest,
    hmac_publish,
)
from livepush_asgi.runtime.asgi import Receive, Scope, Send

logging.basicConfig(format="OURS %(name)s %(levelname)s %(message)s", level=logging.WARNING)


def authorize(request: StreamRequest) -> Grant | Refusal:
    match request.query.get("fail"):
        case "key":
            raise KeyError(request.cookies["session"])
        case "json":
            json.loads(request.query["value"])
        case "number":
            int(request.query["value"])
        case "none":
            return None  # type: ignore[return-value]
        case "refused":
            return Refusal(403)
    return Grant(channels=request.query["channel"], slot_key=request.query.get("key"))


def probe(request: StreamRequest) -> bool:
    return bool(json.loads(request.headers["x-probe"]))


def hook(slot_key: str) -> None:
    raise RuntimeError("the hook fails")


push = LivePush(
    MemoryBroker(),
    authorize,
    slots=MemorySlotCap(2, on_acquire=hook),
    limits=Limits(streams=40),
    cors=Cors(["https://example.org"]),
    probe=probe,
)
publisher = push.publisher(hmac_publish("the secret of nobody else"), max_body=4096, body_timeout=1)
health = push.health()


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    path = scope.get("path", "")
    if scope["type"] == "http" and path == "/publish":
        await publisher(scope, receive, send)
    elif scope["type"] == "http" and path.startswith("/health"):
        await health(scope, receive, send)
    else:
        await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})


app = LivePushMiddleware(application, push)
