import asyncio
import json
from contextlib import suppress
from signal import SIGTERM

from answers import URL, produce, producing
from redis.asyncio import Redis
from redis.exceptions import RedisError

from livepush_asgi import BrokerUnavailableError


async def work():
    # So that its runs are lost at once, and not after their lease.
    asyncio.get_running_loop().add_signal_handler(SIGTERM, asyncio.current_task().cancel)
    async with producing() as push, Redis.from_url(URL) as redis, asyncio.TaskGroup() as tasks:
        begun = {}

        async def finish(job):
            with suppress(RedisError, BrokerUnavailableError):
                await produce(push, **json.loads(job))
                await redis.lrem("answers:begun", 1, job)
            del begun[job]

        while True:
            try:
                await redis.blmove("answers", "answers:begun", 2)
                # Also those of other workers: this one waits with them, and goes on if they are killed.
                for job in await redis.lrange("answers:begun", 0, -1):
                    if job not in begun:
                        begun[job] = tasks.create_task(finish(job))
            except RedisError:
                await asyncio.sleep(1)


with suppress(asyncio.CancelledError):
    asyncio.run(work())
