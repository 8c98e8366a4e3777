"""No framework: LivePush in front of a raw ASGI application. `uvicorn --app-dir examples plain_asgi:app`"""

import os

from livepush_asgi import (
    Grant,
    LivePush,
    LivePushMiddleware,
    MemoryBroker,
    MemorySlotCap,
    Refusal,
    RefusalCause,
)

if url := os.environ.get("LIVEPUSH_REDIS"):
    from redis.asyncio import Redis

    from livepush_asgi import RedisStreamsBroker, SlotCap

    redis = Redis.from_url(url)
    broker, slots = RedisStreamsBroker(redis), SlotCap(redis, cap=20)
else:
    broker, slots = MemoryBroker(), MemorySlotCap(20)

PAGE = b"""<!doctype html><title>plain ASGI</title><pre id=log></pre>
<script>
const source = new EventSource("/events?token=let-me-in")
source.onmessage = event => log.textContent += event.data + "\\n"
</script>"""


async def authorize(request):
    if request.query.get("token") != "let-me-in":
        return Refusal(401, "Which token?")
    return Grant(channels="news", slot_key=request.query.get("key", "visitors"))


async def rest(scope, receive, send):
    if scope["type"] != "http":
        raise ValueError("nothing but HTTP here")
    if scope["method"] == "POST":
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message.get("more_body", False)
        await push.publish("news", body)
    headers = [(b"content-type", b"text/html"), (b"content-length", str(len(PAGE)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": PAGE})


# A browser that gets a 429 does not come back: a soft refusal tells it to try again.
push = LivePush(broker, authorize, slots=slots, soft_refusals={RefusalCause.CAP})
app = LivePushMiddleware(rest, push, path="/events")
