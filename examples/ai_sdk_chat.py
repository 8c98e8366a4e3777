"""The AI SDK's useChat, of ai_sdk_chat.jsx. `uvicorn --app-dir examples ai_sdk_chat:app`"""

import asyncio
import json
import os

from fastapi import FastAPI, Request
from fastapi.staticfiles import StaticFiles
from redis.asyncio import Redis

from livepush_asgi import LivePush, RedisStreamsBroker, Refusal
from livepush_asgi.contrib.fastapi import run_response
from livepush_asgi.dialects import ai_sdk

redis = Redis.from_url(os.environ.get("LIVEPUSH_REDIS", "redis://localhost:6379/0"))
push = LivePush(RedisStreamsBroker(redis), lambda request: Refusal(404))
app = FastAPI(lifespan=push.lifespan)
TEXT = "Short waves are scattered more than long ones, so the light from all sides is the blue part of it."


def run_of(messages):
    # The run of an answer has the id of its message, so a page that reads it twice shows it once.
    asked = [message["id"] for message in messages if message["role"] == "user"] or ["nothing"]
    return push.run(f"answer-{asked[-1]}", dialect=ai_sdk(replays_ended=True))


async def answer(chat, message_id):
    part = {"type": "text", "text": ""}
    try:
        for word in TEXT.split():
            await asyncio.sleep(0.1)  # A language model thinks here.
            part["text"] += f"{word} "
            yield f"{word} "
    finally:  # Also when it is stopped.
        messages = [*chat["messages"], {"id": message_id, "role": "assistant", "parts": [part]}]
        await redis.set(f"chat:{chat['id']}", json.dumps(messages))


@app.get("/api/chat/{id}")
async def messages_of(id: str):
    return json.loads(await redis.get(f"chat:{id}") or "[]")


@app.post("/api/chat")
async def ask(chat: dict, request: Request):
    await redis.set(f"chat:{chat['id']}", json.dumps(chat["messages"]))
    run = run_of(chat["messages"])
    await run.start(run.dialect.text(answer(chat, run.id)), restart=True)  # If it runs, this joins it.
    return await run_response(push, request, run)


@app.api_route("/api/chat/{id}/stream", methods=["GET", "DELETE"])
async def resume_or_stop(id: str, request: Request):
    run = run_of(await messages_of(id))
    if request.method == "DELETE":
        return await run.cancel()
    return await run_response(push, request, run)


app.mount("/", StaticFiles(directory=os.environ.get("PAGE", "page")))
