"""Litestar: a mounted stream and one inside a route. `uvicorn --app-dir examples litestar_app:app`"""

import os

from litestar import Litestar, MediaType, Request, asgi, get, post
from litestar.types import Receive, Scope, Send

from livepush_asgi import Grant, LivePush, MemoryBroker, MemorySlotCap, RefusalCause
from livepush_asgi.contrib.litestar import EventStreamResponse, sse_streaming_response

if url := os.environ.get("LIVEPUSH_REDIS"):
    from redis.asyncio import Redis

    from livepush_asgi import RedisStreamsBroker, SlotCap

    redis = Redis.from_url(url)
    broker, slots = RedisStreamsBroker(redis), SlotCap(redis, cap=20)
else:
    broker, slots = MemoryBroker(), MemorySlotCap(20)

PAGE = """<!doctype html><title>Litestar</title><pre id=log></pre>
<script>new EventSource("/events").onmessage = e => log.textContent += e.data + "\\n"</script>"""


def authorize(request):
    return Grant(channels="news", slot_key=request.query.get("key", "visitors"))


# A browser that gets a 429 does not come back: a soft refusal tells it to try again.
push = LivePush(broker, authorize, slots=slots, soft_refusals={RefusalCause.CAP})


@asgi("/events", is_mount=True, copy_scope=True)
async def events(scope: Scope, receive: Receive, send: Send) -> None:
    await push(scope, receive, send)


@get("/", media_type=MediaType.HTML, sync_to_thread=False)
def home() -> str:
    return PAGE


@post("/publish", status_code=204)
async def publish(request: Request) -> None:
    await push.publish("news", await request.body())


@get("/route", media_type="text/event-stream")
async def route(request: Request, key: str = "visitors") -> EventStreamResponse:
    return await sse_streaming_response(push, request, channel="news", slot_key=key)


app = Litestar([events, home, publish, route], lifespan=[push.lifespan])
