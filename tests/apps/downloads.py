"""The application of a test: streams that soon end, and a large download for the same connection."""

import os

from livepush_asgi import LivePush, LivePushMiddleware, MemoryBroker, Timing, public
from livepush_asgi.runtime.asgi import ASGIApp, Message, Receive, Scope, Send

SIZE = 32 * 1024 * 1024
PART = 256 * 1024

push = LivePush(
    MemoryBroker(),
    public("c"),
    timing=Timing(send_timeout=1, heartbeat_interval=0.2, max_lifetime=1),
)


async def download(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % SIZE)]})
    for _ in range(SIZE // PART):
        await send({"type": "http.response.body", "body": bytes(PART), "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def hidden(app: ASGIApp) -> ASGIApp:
    """Hide the server's `receive`, so that only the address leads to the connection."""

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        async def receive_here() -> Message:
            return await receive()

        await app(scope, receive_here, send)

    return middleware


served = LivePushMiddleware(download, push, path="/events")
app: ASGIApp = hidden(served) if os.environ.get("HIDDEN") else served
