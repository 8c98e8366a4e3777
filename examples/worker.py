"""A worker that handles each event once, and goes on where it was: `python examples/worker.py place`

It serves nothing. It keeps the id of the last event in a file. At SIGTERM or Ctrl-C it handles what it has
received, and ends.
"""

import asyncio
import os
import sys
from pathlib import Path

from redis.asyncio import Redis

from livepush_asgi import DrainPolicy, Gap, LivePush, Received, RedisStreamsBroker, Refusal


async def handle(channel, event):
    print(channel, event.data, flush=True)


async def work(push, place):
    last_event_id = place.read_text() if place.exists() else None
    async with push.subscribe("orders", replay="all", last_event_id=last_event_id) as events:
        async for item in events:
            match item:
                case Received(channel, event):
                    await handle(channel, event)
                case Gap(channel, reason):
                    print(f"events of {channel} are missing: {reason}", file=sys.stderr)
            # Behind `handle`: an event whose handling is cut off comes again.
            place.write_text(item.id)
    print("ended:", events.end_reason, flush=True)


async def main():
    async with Redis.from_url(os.environ.get("LIVEPUSH_REDIS", "redis://localhost:6379/0")) as redis:
        # It serves no clients, and a signal waits until `work` has ended.
        push = LivePush(RedisStreamsBroker(redis), lambda request: Refusal(404), drain=DrainPolicy(hold=True))
        async with push.lifespan():
            await work(push, Path(sys.argv[1]))


if __name__ == "__main__":
    asyncio.run(main())
