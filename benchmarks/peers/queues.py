"""A queue for each client, as the documentation of most has it."""

import asyncio
from collections.abc import AsyncIterator

queues: set[asyncio.Queue[str]] = set()


async def publish(channel: str, data: str) -> None:
    for queue in queues:
        queue.put_nowait(data)


async def published() -> AsyncIterator[str]:
    """Yield what is published from now on."""
    queue: asyncio.Queue[str] = asyncio.Queue()
    queues.add(queue)
    try:
        while True:
            yield await queue.get()
    finally:
        queues.discard(queue)
