import asyncio
import json
from contextlib import suppress
from signal import SIGTERM

from answers import URL, produce, producing
from redis.asyncio import Redis


async def work():
    # So that its runs are lost at once, and not after their lease.
    asyncio.get_running_loop().add_signal_handler(SIGTERM, asyncio.current_task().cancel)
    async with producing() as push, Redis.from_url(URL) as redis, asyncio.TaskGroup() as tasks:

        async def finish(job):
            await produce(push, **json.loads(job))
            await redis.lrem("answers:begun", 1, job)

        # Those of a worker that has ended. If theirs is alive, this one waits with it.
        for job in await redis.lrange("answers:begun", 0, -1):
            tasks.create_task(finish(job))
        while job := await redis.blmove("answers", "answers:begun", 0):
            tasks.create_task(finish(job))


with suppress(asyncio.CancelledError):
    asyncio.run(work())
