"""Publish from another process: `LIVEPUSH_REDIS=redis://localhost python examples/publisher.py news hello`"""

import os
import sys
from contextlib import asynccontextmanager

from redis.asyncio import Redis

from livepush_asgi import Publisher, RedisStreamsBroker


@asynccontextmanager
async def make_broker():
    async with Redis.from_url(os.environ.get("LIVEPUSH_REDIS", "redis://localhost:6379/0")) as redis:
        # For an application with RedisBroker as well: it takes the event and does not use the log.
        yield RedisStreamsBroker(redis)


if __name__ == "__main__":
    channel, data = sys.argv[1:3]
    # No event loop of one's own, so it may be a Celery task or a Django view; those keep one publisher.
    with Publisher(make_broker) as publisher:
        publisher.publish(channel, data)
