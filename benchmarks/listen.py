"""Listen as so many processes do: `python -m benchmarks.listen URL COUNT`, until standard input ends.

Each listener is a broker with a connection of its own, subscribed to the channel `c`. Prints a line when all
are subscribed.
"""

import asyncio
import sys
from contextlib import AsyncExitStack

import anyio
from redis.asyncio import Redis

from livepush_asgi import History, RedisStreamsBroker


async def main(url: str, count: str) -> None:
    async with AsyncExitStack() as listening:
        for _ in range(int(count)):
            redis = await listening.enter_async_context(Redis.from_url(url))
            subscription = await RedisStreamsBroker(redis, history=History()).subscribe("c")
            listening.push_async_callback(subscription.close)
        print("listening", flush=True)
        await anyio.to_thread.run_sync(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
