"""The broker over Valkey that the environment names: `BROKER=RedisStreamsBroker`, or RedisBroker."""

import os

from redis.asyncio import Redis

from livepush_asgi import RedisBroker, RedisStreamsBroker


def broker_over(redis: Redis) -> RedisBroker | RedisStreamsBroker:
    kind = os.environ.get("BROKER", "RedisBroker")
    return RedisStreamsBroker(redis) if kind == "RedisStreamsBroker" else RedisBroker(redis)
