import asyncio
import os
from contextlib import asynccontextmanager

from redis.asyncio import Redis

from livepush_asgi import DrainPolicy, LivePush, RedisStreamsBroker, Refusal

URL = os.environ.get("LIVEPUSH_REDIS", "redis://localhost:6379/0")
LEASE = float(os.environ.get("LEASE", "5"))


@asynccontextmanager
async def producing():
    async with Redis.from_url(URL) as redis:
        # The program around it handles the signals. When it stops, another one goes on with its runs at once.
        drain = DrainPolicy(signals=False, runs=0)
        push = LivePush(RedisStreamsBroker(redis), lambda request: Refusal(404), drain=drain)
        async with push.lifespan():
            yield push


# start: produce
async def answer(question, given):
    for word in f"You have asked: {question}".split()[given:]:
        yield word
        await asyncio.sleep(0.1)  # A language model thinks here.


async def produce(push, id, question):
    return await push.run(id).finish(lambda given: answer(question, given), lease=LEASE)


# end: produce
