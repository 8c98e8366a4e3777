"""Publish from another process: `REDIS_URL=redis://localhost python examples/publisher.py news "hello"`"""

import asyncio
import os
import sys

from redis.asyncio import Redis

from livepush_asgi import LivePush, RedisBroker, Refusal


def nobody(request):
    return Refusal(404)


async def main(channel, data):
    async with Redis.from_url(os.environ.get("REDIS_URL", "redis://localhost:6379/0")) as redis:
        # Publishing needs no server and no start: this object serves nobody.
        await LivePush(RedisBroker(redis), nobody).publish(channel, data, event="note")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:3]))
