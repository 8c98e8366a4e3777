"""`examples/resumable_job.py` with jobs that take minutes or fail, and their logs in Redis.

uvicorn has `--app-dir examples`.
"""

import os
from importlib import import_module
from typing import Any

from redis.asyncio import Redis
from starlette.applications import Starlette
from starlette.routing import Mount

from livepush_asgi import History, LivePush, RedisStreamsBroker

# Any: mypy does not know the folder of the examples.
resumable_job: Any = import_module("resumable_job")
# Without a text a job fails.
resumable_job.TEXT = None if "FAIL" in os.environ else "word " * 1000
redis = Redis.from_url(os.environ["LIVEPUSH_REDIS"])
history = History(events=int(os.environ.get("HISTORY", "1000")))
push = LivePush(RedisStreamsBroker(redis, history=history), resumable_job.authorize)
resumable_job.push = push
app = Starlette(routes=[*resumable_job.routes[:-1], Mount("/events", push)], lifespan=resumable_job.lifespan)
