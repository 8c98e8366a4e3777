import asyncio

from answers import URL
from redis.asyncio import Redis
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Mount, Route
from tasks import answer_question

from livepush_asgi import LivePush, RedisStreamsBroker, Refusal, RunAccess

push = LivePush(RedisStreamsBroker(Redis.from_url(URL)), lambda request: Refusal(404))


async def ask(request):
    id, question = request.path_params["id"], request.query_params["question"]
    # From now on a page waits for it, and may cancel it.
    if await push.run(id).queue():
        await asyncio.to_thread(answer_question.delay, id, question)
        # For worker.py: await redis.rpush("answers", json.dumps({"id": id, "question": question}))
    return Response(status_code=202)


async def authorize_run(request, run):
    return RunAccess()


routes = [
    Route("/answers/{id}", ask, methods=["POST"]),
    Mount("/answers", push.runs(authorize_run)),
]
app = Starlette(routes=routes, lifespan=push.lifespan)
