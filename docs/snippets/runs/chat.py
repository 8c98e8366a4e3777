import asyncio

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Mount, Route

from livepush_asgi import LivePush, MemoryBroker, Refusal, RunAccess
from livepush_asgi.contrib.starlette import run_response
from livepush_asgi.dialects import ai_sdk

OWNERS = {}  # Stands for a table: whose chat it is.
push = LivePush(MemoryBroker(), lambda request: Refusal(404))


def user_of(request):
    # A session or a token, as in `authorize`.
    return request.cookies.get("user") or "nobody"


# start: chat
dialect = ai_sdk()


async def answer(messages):
    for piece in ["You ", "have ", "asked."]:
        await asyncio.sleep(0.1)  # A language model thinks here.
        yield piece


async def chat(request):
    body = await request.json()
    user = user_of(request)
    if OWNERS.setdefault(body["id"], user) != user:
        raise HTTPException(403)
    # A run for each answer: its id is that of the message, and useChat replaces a message with the same id.
    run = push.run(f"{body['id']}-{len(body['messages'])}", dialect=dialect)
    await run.start(dialect.text(answer(body["messages"])), restart=True)
    return await run_response(push, request, run, slot_key=user)


async def authorize_run(request, run):
    user = user_of(request)
    chat_id, _, _ = run.id.rpartition("-")
    if OWNERS.get(chat_id) != user:
        return Refusal(204)  # As for a chat in which nothing runs: the SDK shows an error after a 404.
    return RunAccess(slot_key=user)


routes = [
    Route("/api/chat", chat, methods=["POST"]),
    Mount("/api/answers", push.runs(authorize_run, dialect=dialect)),
]
# end: chat
app = Starlette(routes=routes, lifespan=push.lifespan)
