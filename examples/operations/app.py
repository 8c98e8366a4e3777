"""Streams over Redis by several workers behind a balancer. The other files of this folder run it.

pip install 'livepush_asgi[redis,starlette]' 'uvicorn[standard]'
LIVEPUSH_REDIS=redis://localhost uvicorn app:app --port 8001 --timeout-graceful-shutdown 30
"""

import math
import os

from redis.asyncio import Redis
from starlette.applications import Starlette
from starlette.routing import Mount

from livepush_asgi import DrainPolicy, Grant, LivePush, RedisStreamsBroker, Refusal

CHANNELS = {"news", "prices", "orders", "scores"}


def authorize(request):
    """Let everybody hear these channels: `/events?channel=news&channel=prices`."""
    wanted = request.query_all("channel")
    return Grant(channels=wanted) if wanted and CHANNELS.issuperset(wanted) else Refusal(404)


push = LivePush(
    RedisStreamsBroker(Redis.from_url(os.environ["LIVEPUSH_REDIS"])),
    authorize,
    drain=DrainPolicy(
        delay=float(os.environ.get("DRAIN_DELAY", "0")), window=float(os.environ.get("DRAIN_WINDOW", "10"))
    ),
)

# All workers have one Redis. While it is away each of them serves as well as the others: streams open, wait,
# and get everything afterwards. So it takes no worker out: `/health/ready` fails before the start and in a
# drain.
health = push.health(unready_after=math.inf, dead_after=math.inf)

app = Starlette(routes=[Mount("/health", health), Mount("/events", push)], lifespan=push.lifespan)
