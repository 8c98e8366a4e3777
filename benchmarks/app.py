"""The application that the benchmarks load: everything on that a user would have on.

`GET /events` is the stream, `GET /pub?n=&rate=&size=` publishes n payloads, at a rate or in a burst.
With `REDIS_URL` set it runs over a real server.
"""

import asyncio
import os
import time
from urllib.parse import parse_qs

from livepush_asgi import Grant, LivePush, LivePushMiddleware, MemoryBroker, MemorySlotCap, StreamRequest
from livepush_asgi.broker import Broker
from livepush_asgi.slots import Slots
from livepush_asgi.types import Receive, Scope, Send

broker: Broker
slots: Slots
if url := os.environ.get("REDIS_URL"):
    from redis.asyncio import Redis

    from livepush_asgi import RedisBroker, SlotCap

    redis = Redis.from_url(url)
    broker, slots = RedisBroker(redis), SlotCap(redis, cap=10**6)
else:
    broker, slots = MemoryBroker(), MemorySlotCap(10**6)


def authorize(request: StreamRequest) -> Grant:
    return Grant(channels=request.query.get("channel", "c"), slot_key="k")


push = LivePush(broker, authorize, slots=slots)
running: set[asyncio.Task[None]] = set()


def payload(number: int, size: int) -> str:
    text = f'{{"t":{time.monotonic_ns()},"seq":{number},"p":"'
    return text + "x" * max(0, size - len(text) - 2) + '"}'


async def publish_all(count: int, rate: float, size: int) -> None:
    start = time.perf_counter()
    for number in range(count):
        await push.publish("c", payload(number, size))
        if rate:
            await asyncio.sleep(max(0.0, start + (number + 1) / rate - time.perf_counter()))
        elif number % 50 == 49:
            await asyncio.sleep(0)


async def plain(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        raise ValueError("no lifespan of its own")
    query = {name: values[0] for name, values in parse_qs(scope["query_string"].decode()).items()}
    if scope["path"] == "/pub":
        task = asyncio.ensure_future(
            publish_all(int(query["n"]), float(query.get("rate", 0)), int(query.get("size", 200)))
        )
        running.add(task)
        task.add_done_callback(running.discard)
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"ok"})


app = LivePushMiddleware(plain, push)
