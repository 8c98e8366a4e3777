"""News over Redis, to be run by several processes behind a balancer: the files beside this one run it.

python -m pip install 'livepush_asgi[starlette,redis]' uvicorn
LIVEPUSH_REDIS=redis://localhost uvicorn app:app --port 8001 --timeout-graceful-shutdown 30
"""

import os

from redis.asyncio import Redis
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from livepush_asgi import DrainPolicy, Grant, LivePush, RedisStreamsBroker, Refusal

CHANNELS = {"news", "prices", "orders", "scores"}


def authorize(request):
    """Let everybody hear these channels: `/events?channel=news&channel=prices`."""
    wanted = request.query_all("channel")
    return Grant(channels=wanted) if wanted and CHANNELS.issuperset(wanted) else Refusal(404)


push = LivePush(
    RedisStreamsBroker(Redis.from_url(os.environ["LIVEPUSH_REDIS"])),
    authorize,
    drain=DrainPolicy(delay=float(os.environ.get("DRAIN_DELAY", "0")), window=float(os.environ.get("DRAIN_WINDOW", "10"))),
)


async def ready(request):
    """Answer 503 while the process drains or hears nothing of the broker: for a load balancer."""
    now = push.statistics()
    return JSONResponse(now, status_code=200 if now["healthy"] and not now["draining"] else 503)


app = Starlette(routes=[Route("/health/ready", ready), Mount("/events", push)], lifespan=push.lifespan)
