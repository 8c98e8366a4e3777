import json
import os
from contextlib import asynccontextmanager

import anyio
from aiokafka import AIOKafkaConsumer
from fastapi import FastAPI
from redis.asyncio import Redis

from livepush_asgi import Event, LivePush, RedisStreamsBroker, public
from livepush_asgi.contrib.kafka import bridge

redis = Redis.from_url(os.environ.get("LIVEPUSH_REDIS", "redis://localhost:6379/0"))
push = LivePush(RedisStreamsBroker(redis), public("orders"))


def route(record):
    try:
        order = json.loads(record.value)
        return f"user:{order['user']}", Event(order, "order")
    except (ValueError, KeyError, TypeError):
        return None  # Not one of ours. An error would stop the bridge, and come again at each start.


@asynccontextmanager
async def lifespan(app):
    consumer = AIOKafkaConsumer(
        "orders", bootstrap_servers=os.environ["KAFKA"], group_id="live-pages", enable_auto_commit=False
    )
    async with push.lifespan(), consumer, anyio.create_task_group() as tasks:
        tasks.start_soon(bridge, push, consumer, route)
        yield
        tasks.cancel_scope.cancel()


app = FastAPI(lifespan=lifespan)
app.mount("/events", push)
