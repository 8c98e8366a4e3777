"""Starlette: a mounted stream and one inside a route. `uvicorn --app-dir examples starlette_app:app`"""

import os

from starlette.applications import Starlette
from starlette.responses import HTMLResponse, Response
from starlette.routing import Mount, Route

from livepush_asgi import Grant, LivePush, MemoryBroker, MemorySlotCap, RefusalCause
from livepush_asgi.contrib.starlette import sse_streaming_response

if url := os.environ.get("LIVEPUSH_REDIS"):
    from redis.asyncio import Redis

    from livepush_asgi import RedisStreamsBroker, SlotCap

    redis = Redis.from_url(url)
    broker, slots = RedisStreamsBroker(redis), SlotCap(redis, cap=20)
else:
    broker, slots = MemoryBroker(), MemorySlotCap(20)

PAGE = """<!doctype html><title>Starlette</title><pre id=log></pre>
<script>new EventSource("/events/").onmessage = e => log.textContent += e.data + "\\n"</script>"""


def authorize(request):
    return Grant(channels="news", slot_key=request.query.get("key", "visitors"))


# A browser that gets a 429 does not come back: a soft refusal tells it to try again.
push = LivePush(broker, authorize, slots=slots, soft_refusals={RefusalCause.CAP})


async def home(request):
    return HTMLResponse(PAGE)


async def publish(request):
    await push.publish("news", await request.body())
    return Response(status_code=204)


async def route(request):
    key = request.query_params.get("key", "visitors")
    return await sse_streaming_response(push, request, channel="news", slot_key=key)


routes = [
    Route("/", home),
    Route("/publish", publish, methods=["POST"]),
    Route("/route", route),
    Mount("/events", push),
]
app = Starlette(routes=routes, lifespan=push.lifespan)
