"""The application of `benchmarks.runs`: a job's output, as a plain `StreamingResponse`, or as a run.

`GET /events?id=&n=&pace=` starts the job and follows it. `RUNS_OVER` names what keeps its output: nothing,
`memory`, or the URL of a Valkey, a NATS or a PostgreSQL.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from livepush_asgi import History, HistoryBroker, LivePush, MemoryBroker, Refusal
from livepush_asgi.contrib.starlette import sse_streaming_response

# Enough for the longest output, so that no reader meets a gap.
HISTORY = History(events=200_000, size=64 * 1024**2, total_size=512 * 1024**2)


async def tokens(count: int, pace: float) -> AsyncIterator[str]:
    """Yield tokens without waiting (a pace below 0), in a turn of the loop each (0), or so many a second."""
    for number in range(count):
        if pace >= 0:
            await asyncio.sleep(1 / pace if pace else 0)
        yield f'{{"seq":{number},"t":{time.monotonic_ns()}}}'


def output(request: Request) -> AsyncIterator[str]:
    return tokens(int(request.query_params["n"]), float(request.query_params["pace"]))


async def blocks(items: AsyncIterator[str]) -> AsyncIterator[str]:
    async for item in items:
        yield f"data: {item}\n\n"


async def plain(request: Request) -> Response:
    return StreamingResponse(blocks(output(request)), media_type="text/event-stream")


async def resumable(request: Request) -> Response:
    run = push.run(request.query_params["id"])
    await run.start(output(request))
    return await sse_streaming_response(push, request, authorize=run.grant)


async def ok(request: Request) -> Response:
    return PlainTextResponse("ok")


def broker_over(url: str) -> HistoryBroker:
    if url.startswith("redis:"):
        from redis.asyncio import Redis

        from livepush_asgi import RedisStreamsBroker

        return RedisStreamsBroker(Redis.from_url(url), history=HISTORY)
    if url.startswith("nats:"):
        from livepush_asgi import JetStreamBroker

        return JetStreamBroker(url, history=HISTORY)
    if url.startswith("postgresql:"):
        from livepush_asgi import PostgresBroker

        return PostgresBroker(url, history=HISTORY)
    return MemoryBroker(HISTORY)


over = os.environ.get("RUNS_OVER", "")
push = LivePush(broker_over(over), lambda request: Refusal(404))
app = Starlette(
    routes=[Route("/pub", ok), Route("/events", resumable if over else plain)], lifespan=push.lifespan
)
