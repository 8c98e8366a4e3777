import asyncio

from answers import URL
from redis.asyncio import Redis
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route
from tasks import answer_question

from livepush_asgi import LivePush, RedisStreamsBroker, Refusal
from livepush_asgi.contrib.starlette import sse_streaming_response

push = LivePush(RedisStreamsBroker(Redis.from_url(URL)), lambda request: Refusal(404))


async def ask(request):
    id, question = request.path_params["id"], request.query_params["question"]
    await asyncio.to_thread(answer_question.delay, id, question)
    # For worker.py: await redis.rpush("answers", json.dumps({"id": id, "question": question}))
    # A page that reads before a worker has begun would get a 204, and stop.
    while await push.run(id).status() is None:
        await asyncio.sleep(0.05)
    return Response(status_code=202)


async def follow(request):
    run = push.run(request.path_params["id"])
    return await sse_streaming_response(push, request, authorize=run.grant)


async def stop(request):
    await push.run(request.path_params["id"]).cancel()
    return Response(status_code=204)


routes = [
    Route("/answers/{id}", ask, methods=["POST"]),
    Route("/answers/{id}", follow),
    Route("/answers/{id}", stop, methods=["DELETE"]),
]
app = Starlette(routes=routes, lifespan=push.lifespan)
