"""An application whose `authorize` hangs, in a thread too, as one does whose database answers no more."""

import asyncio
import time

from livepush_asgi import Grant, LivePush, MemoryBroker, StreamRequest


async def authorize(request: StreamRequest) -> Grant:
    if request.path == "/thread":
        await asyncio.to_thread(time.sleep, 5)
    elif request.path == "/hangs":
        while True:
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                # Code that swallows its cancellation.
                await asyncio.sleep(3)
                raise
    return Grant(channels="news")


app = LivePush(MemoryBroker(), authorize)
