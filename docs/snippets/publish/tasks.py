import os
from contextlib import asynccontextmanager

from redis.asyncio import Redis

from livepush_asgi import Publisher, RedisStreamsBroker


@asynccontextmanager
async def make_broker():
    async with Redis.from_url(os.environ["LIVEPUSH_REDIS"]) as redis:
        yield RedisStreamsBroker(redis)  # The same class as in the application.


# One for the life of the process. A worker that forks gets a connection of its own.
publisher = Publisher(make_broker)


# Celery: put @shared_task above it.
def report_ready(user_id, url):
    publisher.publish(
        f"user:{user_id}",
        {"url": url},
        event="report-ready",
        idempotency_key=f"report:{url}",  # A task that is repeated publishes no second event.
        retry_for=30,  # Seconds for which an absent Redis is waited for.
    )
