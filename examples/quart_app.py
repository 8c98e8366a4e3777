"""Quart: streams in front of it and inside a route. `uvicorn --app-dir examples quart_app:app`"""

import os

from quart import Quart, request

from livepush_asgi import Grant, LivePush, LivePushMiddleware, MemoryBroker, MemorySlotCap, RefusalCause
from livepush_asgi.contrib.quart import sse_streaming_response

if url := os.environ.get("LIVEPUSH_REDIS"):
    from redis.asyncio import Redis

    from livepush_asgi import RedisStreamsBroker, SlotCap

    redis = Redis.from_url(url)
    broker, slots = RedisStreamsBroker(redis), SlotCap(redis, cap=20)
else:
    broker, slots = MemoryBroker(), MemorySlotCap(20)

PAGE = """<!doctype html><title>Quart</title><pre id=log></pre>
<script>new EventSource("/events").onmessage = e => log.textContent += e.data + "\\n"</script>"""


def authorize(stream_request):
    return Grant(channels="news", slot_key=stream_request.query.get("key", "visitors"))


# A browser that gets a 429 does not come back: a soft refusal tells it to try again.
push = LivePush(broker, authorize, slots=slots, soft_refusals={RefusalCause.CAP})
app = Quart(__name__)
app.asgi_app = LivePushMiddleware(app.asgi_app, push, path="/events")


@app.get("/")
async def home():
    return PAGE


@app.post("/publish")
async def publish():
    await push.publish("news", await request.get_data())
    return "", 204


@app.get("/route")
async def route():
    key = request.args.get("key", "visitors")
    return await sse_streaming_response(push, request, channel="news", slot_key=key)
