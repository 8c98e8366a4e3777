"""Open streams without a server, each on a channel of its own: `python -m benchmarks.subscribe URL COUNT`.

Prints the seconds until all are open, and until Valkey (or the Redis of the URL) has all their channels.
"""

import asyncio
import sys
import time

from redis.asyncio import Redis

from livepush_asgi import Grant, LivePush, RedisBroker, public


async def main(url: str, count: str) -> None:
    channels = [f"c{number}" for number in range(int(count))]
    async with Redis.from_url(url) as redis:
        push = LivePush(RedisBroker(redis), public("c"))
        async with push.lifespan():
            start = time.perf_counter()
            opened = [await push.open_stream(Grant(channels=channel)) for channel in channels]
            connected = time.perf_counter() - start
            _, run = opened[0]
            if (error := await run.hub.wait_attempted(channels)) is not None:
                raise error
            print(connected, time.perf_counter() - start)
            for stream, _ in opened:
                stream.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
