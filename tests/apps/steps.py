"""Answers whether the `send` of the server may be stepped outside of a task."""

from livepush_asgi.runtime.asgi import Receive, Scope, Send
from livepush_asgi.runtime.inline_send import can_step


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        raise ValueError("no lifespan")
    body = b"yes" if can_step(send) else b"no"
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
