"""Responses from generators, without a broker. `uvicorn --app-dir examples generator:app`"""

import asyncio

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse

from livepush_asgi import Event, LivePush, MemoryBroker, MemorySlotCap, RefusalCause, public
from livepush_asgi.contrib.fastapi import event_stream_response

# Without `push=push` streams of generators have a LivePush of their own, and no cap.
push = LivePush(MemoryBroker(), public("news"), slots=MemorySlotCap(2), soft_refusals={RefusalCause.CAP})
app = FastAPI(lifespan=push.lifespan)
thinking = []
PAGE = """<!doctype html><title>Answer</title><p id=text></p><script>
const stream = new EventSource("/users/1/answer?question=" + encodeURIComponent("What is it?"));
stream.onopen = () => { text.textContent = ""; };  // a reconnection begins anew
// The user has two answers in other tabs already. The page comes back by itself.
stream.addEventListener("livepush.refused", () => { text.textContent = "Waiting for a free place ..."; });
stream.addEventListener("word", ({data}) => { text.textContent += data + " "; });
stream.addEventListener("end", () => stream.close());  // or EventSource asks again
</script>"""


async def answer(question):
    thinking.append(question)
    try:
        for word in ["You", "asked:", *question.split()]:
            yield Event(word, event="word")
            await asyncio.sleep(0.1)
        yield Event({"words": len(question.split())}, event="end")
    finally:
        # It runs as soon as the client has gone: close what the answer comes from.
        thinking.remove(question)


@app.get("/answer")
async def stream_answer(request: Request, question: str):
    return await event_stream_response(request, answer(question))


@app.get("/users/{user}/answer")
async def stream_to_user(request: Request, user: str, question: str):
    return await event_stream_response(request, answer(question), push=push, slot_key=user)


@app.get("/thinking")
async def list_thinking():
    return thinking


@app.get("/", response_class=HTMLResponse)
async def home():
    return PAGE
