import asyncio

from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from livepush_asgi import LivePush, MemoryBroker, Refusal
from livepush_asgi.contrib.starlette import run_response

push = LivePush(MemoryBroker(), lambda request: Refusal(404))


# start: job
async def answer(question, given=0):
    for word in f"You have asked: {question}".split()[given:]:
        await asyncio.sleep(0.1)  # A language model thinks here.
        yield {"word": word}


async def start(request):
    run = push.run(request.path_params["id"])
    started = await run.start(answer(request.query_params["question"]))
    return JSONResponse({"started": started})


# end: job


# start: readers
async def follow(request):
    # Check here whether this user may read it.
    return await run_response(push, request, push.run(request.path_params["id"]))


async def cancel(request):
    status = await push.run(request.path_params["id"]).cancel()
    return JSONResponse({"state": status and status.state})


# end: readers

routes = [
    Route("/answers/{id}", start, methods=["PUT"]),
    Route("/answers/{id}", follow, methods=["GET"]),
    Route("/answers/{id}", cancel, methods=["DELETE"]),
]
app = Starlette(routes=routes, lifespan=push.lifespan)
