"""Ask, stream, load again, follow in a second tab, stop. `uvicorn --app-dir examples run_page:app`"""

import asyncio
import os
from pathlib import Path

from starlette.applications import Starlette
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route

from livepush_asgi import Event, LivePush, MemoryBroker, Refusal, RunAccess

broker = MemoryBroker()
if url := os.environ.get("LIVEPUSH_REDIS"):  # Several workers need it.
    from redis.asyncio import Redis

    from livepush_asgi import RedisStreamsBroker

    broker = RedisStreamsBroker(Redis.from_url(url))
push = LivePush(broker, lambda request: Refusal(404))
LEASE = 5.0  # A worker that was killed is noticed after so many seconds.
TEXT = "Short waves are scattered more than long ones, so the light from all sides is the blue part of it."


async def answer(question, given):
    """Yield what a language model answers, after the events that were given before."""
    events = [Event(question, event="question"), *[Event(word, event="word") for word in TEXT.split()]]
    for event in events[given:]:
        yield event
        await asyncio.sleep(0.1)


async def ask(request):
    question = (await request.json())["question"]
    # A run that was stopped, or whose worker was killed, goes on. One that runs, or is done, stays as it is.
    run = push.run(request.path_params["id"])
    await run.start(lambda given: answer(question, given), resume=True, lease=LEASE)
    return Response(status_code=202)


async def authorize_run(request, run):
    # Check here, and in `ask`, whether this user may read it, and stop it.
    return RunAccess()


routes = [
    Route("/", lambda request: FileResponse(Path(__file__).with_name("run_page.html"))),
    Route("/answers/{id}", ask, methods=["POST"]),
    Mount("/answers", push.runs(authorize_run)),  # GET follows an answer, and DELETE stops it.
]
app = Starlette(routes=routes, lifespan=push.lifespan)
