"""Publish from a process of its own: `python -m benchmarks.publish URL COUNT RATE SIZE`.

It publishes through the broker that `BROKER` names, as `benchmarks/app.py` does.
"""

import asyncio
import sys

from redis.asyncio import Redis

from benchmarks.broker import broker_over
from benchmarks.traffic import publish_all
from livepush_asgi import LivePush, public


async def main(url: str, count: str, rate: str, size: str) -> None:
    async with Redis.from_url(url) as redis:
        push = LivePush(broker_over(redis), public("c"))
        await publish_all(push.publish, int(count), float(rate), int(size))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
