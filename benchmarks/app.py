"""The application that the benchmarks load: everything on that a user would have on.

`GET /events` is the stream, `GET /pub?n=&rate=&size=` publishes n payloads, at a rate or in a burst.
With `REDIS_URL` set it runs over a real server, on the broker that `BROKER` names; with `LOG_URL` only its
logs are there, with `SLOTS_URL` only its slots.
"""

import os

from benchmarks.traffic import answer, query_of, start_publishing
from livepush_asgi import Grant, LivePush, LivePushMiddleware, MemoryBroker, MemorySlotCap, StreamRequest
from livepush_asgi.brokers import Broker
from livepush_asgi.runtime.asgi import Receive, Scope, Send
from livepush_asgi.slots import Slots

broker: Broker = MemoryBroker()
slots: Slots = MemorySlotCap(10**6)
if url := os.environ.get("LOG_URL"):
    from redis.asyncio import Redis

    from livepush_asgi import RedisStreamsBroker

    broker = RedisStreamsBroker(Redis.from_url(url))
elif url := os.environ.get("REDIS_URL") or os.environ.get("SLOTS_URL"):
    from redis.asyncio import Redis

    from benchmarks.broker import broker_over
    from livepush_asgi import SlotCap

    redis = Redis.from_url(url)
    slots = SlotCap(redis, cap=10**6)
    if "REDIS_URL" in os.environ:
        broker = broker_over(redis)


def authorize(request: StreamRequest) -> Grant:
    return Grant(channels=request.query.get("channel", "c"), slot_key="k")


push = LivePush(broker, authorize, slots=slots)


async def plain(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        raise ValueError("no lifespan of its own")
    if scope["path"] == "/pub":
        start_publishing(push.publish, query_of(scope))
    await answer(send)


app = LivePushMiddleware(plain, push)
