import asyncio
import json

from answers import URL, produce, producing
from redis.asyncio import Redis


async def work():
    async with producing() as push, Redis.from_url(URL) as redis, asyncio.TaskGroup() as tasks:

        async def finish(job):
            await produce(push, **json.loads(job))
            await redis.lrem("answers:begun", 1, job)

        # Those of a worker that was killed. If theirs is alive, this one waits with it.
        for job in await redis.lrange("answers:begun", 0, -1):
            tasks.create_task(finish(job))
        while job := await redis.blmove("answers", "answers:begun", 0):
            tasks.create_task(finish(job))


asyncio.run(work())
