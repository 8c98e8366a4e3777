"""Open streams without a server, each on a channel of its own: `python -m benchmarks.subscribe URL COUNT`.

Prints the seconds until all are open, and until Valkey (or the Redis of the URL) has all their channels.
"""

import asyncio
import sys
import time

from redis.asyncio import Redis

from livepush_asgi import Grant, LivePush, RedisBroker, SSEStreamService, public


async def main(url: str, count: str) -> None:
    channels = [f"c{number}" for number in range(int(count))]
    async with Redis.from_url(url) as redis:
        push = LivePush(RedisBroker(redis), public("c"))
        service = SSEStreamService.of(push)
        async with push.lifespan():
            start = time.perf_counter()
            opening = [
                asyncio.create_task(service.open_granted(Grant(channels=channel))) for channel in channels
            ]
            await asyncio.sleep(0)
            connected = time.perf_counter() - start
            streams = await asyncio.gather(*opening)
            print(connected, time.perf_counter() - start)
            for stream in streams:
                await stream.body.aclose()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
