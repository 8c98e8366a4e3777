"""Append events to a log and print what it took: `python -m benchmarks.append WAY URL COUNT SIZE`.

The ways named `xadd` are redis-py alone, with a log that is bounded in the same way.
"""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import count as count_up

from redis.asyncio import Redis

from livepush_asgi import History, LivePush, Publisher, RedisStreamsBroker, public

HISTORY = History()
# Each of redis-py's commands takes a connection for itself, and a pool has 100.
CONNECTIONS, TOGETHER = 100, 1000
WARM_UP = 200

Append = Callable[[Redis, int, str], Awaitable[None]]


async def xadd(redis: Redis, count: int, data: str) -> None:
    for _ in range(count):
        await redis.xadd("log", {"data": data}, maxlen=HISTORY.events)


async def xadd_in_tasks(redis: Redis, count: int, data: str) -> None:
    await in_tasks(lambda: redis.xadd("log", {"data": data}, maxlen=HISTORY.events), count, CONNECTIONS)


async def xadd_in_pipelines(redis: Redis, count: int, data: str) -> None:
    for start in range(0, count, TOGETHER):
        async with redis.pipeline(transaction=False) as pipeline:
            for _ in range(min(TOGETHER, count - start)):
                pipeline.xadd("log", {"data": data}, maxlen=HISTORY.events)
            await pipeline.execute()


async def broker(redis: Redis, count: int, data: str) -> None:
    publish = RedisStreamsBroker(redis, history=HISTORY).publish
    for _ in range(count):
        await publish("c", data)


async def broker_in_tasks(redis: Redis, count: int, data: str) -> None:
    publish = RedisStreamsBroker(redis, history=HISTORY).publish
    await in_tasks(lambda: publish("c", data), count, TOGETHER)


async def broker_on_channels(redis: Redis, count: int, data: str) -> None:
    publish, numbers = RedisStreamsBroker(redis, history=HISTORY).publish, count_up()
    await in_tasks(lambda: publish(f"c{next(numbers) % TOGETHER}", data), count, TOGETHER)


async def push_in_tasks(redis: Redis, count: int, data: str) -> None:
    push = LivePush(RedisStreamsBroker(redis, history=HISTORY), public("c"))
    await in_tasks(lambda: push.publish("c", data), count, TOGETHER)


async def publisher(redis: Redis, count: int, data: str) -> None:
    settings = redis.connection_pool.connection_kwargs

    @asynccontextmanager
    async def make_broker() -> AsyncIterator[RedisStreamsBroker]:
        async with Redis(host=settings["host"], port=settings["port"]) as own:
            yield RedisStreamsBroker(own, history=HISTORY)

    def publish_all() -> None:
        with Publisher(make_broker) as publisher:
            for _ in range(count):
                publisher.publish("c", data)

    await asyncio.to_thread(publish_all)


async def in_tasks(append: Callable[[], Awaitable[object]], count: int, together: int) -> None:
    """Append from so many tasks at once, each of which appends one event and ends."""

    async def one() -> None:
        await append()

    for start in range(0, count, together):
        await asyncio.gather(*[one() for _ in range(min(together, count - start))])


WAYS: dict[str, Append] = {
    way.__name__: way
    for way in (
        xadd,
        xadd_in_tasks,
        xadd_in_pipelines,
        broker,
        broker_in_tasks,
        broker_on_channels,
        push_in_tasks,
        publisher,
    )
}


async def main(way: str, url: str, count: str, size: str) -> None:
    append, number, data = WAYS[way], int(count), "x" * int(size)
    async with Redis.from_url(url) as redis:
        await append(redis, WARM_UP, data)
        used, start = time.process_time(), time.perf_counter()
        await append(redis, number, data)
        used, took = time.process_time() - used, time.perf_counter() - start
    print(json.dumps({"events_per_s": number / took, "us_per_event": 1e6 * used / number}))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
