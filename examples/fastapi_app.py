"""FastAPI: a mounted stream and one inside a route. `uvicorn --app-dir examples fastapi_app:app`"""

import os
from typing import Annotated

from fastapi import Body, Depends, FastAPI, Request, Response
from fastapi.responses import HTMLResponse

from livepush_asgi import Grant, LivePush, MemoryBroker, MemorySlotCap, RefusalCause
from livepush_asgi.contrib.fastapi import EventStreamResponse, sse_streaming_response

if url := os.environ.get("LIVEPUSH_REDIS"):
    from redis.asyncio import Redis

    from livepush_asgi import RedisStreamsBroker, SlotCap

    redis = Redis.from_url(url)
    broker, slots = RedisStreamsBroker(redis), SlotCap(redis, cap=20)
else:
    broker, slots = MemoryBroker(), MemorySlotCap(20)

PAGE = """<!doctype html><title>FastAPI</title><pre id=log></pre>
<script>new EventSource("/events/").onmessage = e => log.textContent += e.data + "\\n"</script>"""


def authorize(request):
    return Grant(channels="news", slot_key=request.query.get("key", "visitors"))


# A browser that gets a 429 does not come back: a soft refusal tells it to try again.
push = LivePush(broker, authorize, slots=slots, soft_refusals={RefusalCause.CAP})
app = FastAPI(lifespan=push.lifespan)
app.mount("/events", push)


def current_user(key: str = "visitors"):
    # A dependency is closed before the stream begins, not when the stream ends.
    yield key


@app.get("/", response_class=HTMLResponse)
async def home():
    return PAGE


@app.post("/publish", status_code=204, response_class=Response)
async def publish(data: Annotated[bytes, Body(media_type="text/plain")]):
    await push.publish("news", data)


@app.get("/route", response_class=EventStreamResponse)
async def route(request: Request, user: Annotated[str, Depends(current_user)]):
    return await sse_streaming_response(push, request, channel="news", slot_key=user)
