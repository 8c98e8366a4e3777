"""The floor: the least that somebody would write by hand. One send per event, and nothing else at all:
no heartbeat, no bound, no slots, no resuming, no drain.
"""

import asyncio
from collections import deque

from benchmarks.traffic import answer, answer_lifespan, query_of, start_publishing
from livepush_asgi.runtime.asgi import Message, Receive, Scope, Send

HEADERS = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
]


class Client:
    """What waits for one client."""

    __slots__ = ("blocks", "sleeper")

    def __init__(self) -> None:
        self.blocks: deque[bytes] = deque()
        self.sleeper: asyncio.Future[None] | None = None

    def put(self, block: bytes) -> None:
        self.blocks.append(block)
        if self.sleeper is not None and not self.sleeper.done():
            self.sleeper.set_result(None)

    async def next_block(self) -> bytes:
        while not self.blocks:
            self.sleeper = asyncio.get_running_loop().create_future()
            await self.sleeper
        return self.blocks.popleft()


clients: dict[str, set[Client]] = {}


async def publish(channel: str, data: str) -> None:
    block = f"data: {data}\n\n".encode()
    for client in clients.get(channel, ()):
        client.put(block)


def body(block: bytes) -> Message:
    return {"type": "http.response.body", "body": block, "more_body": True}


async def write(client: Client, send: Send) -> None:
    while True:
        await send(body(await client.next_block()))


async def serve(channel: str, receive: Receive, send: Send) -> None:
    client = Client()
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send(body(b":\n"))
    clients.setdefault(channel, set()).add(client)
    writer = asyncio.get_running_loop().create_task(write(client, send))
    try:
        while (await receive())["type"] != "http.disconnect":
            pass
    finally:
        clients[channel].discard(client)
        writer.cancel()


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await answer_lifespan(receive, send)
    elif scope["path"] == "/pub":
        start_publishing(publish, query_of(scope))
        await answer(send)
    else:
        await serve(query_of(scope).get("channel", "c"), receive, send)
