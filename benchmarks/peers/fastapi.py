"""FastAPI's own server-sent events: https://fastapi.tiangolo.com/tutorial/server-sent-events/"""

from collections.abc import AsyncIterator

from fastapi import FastAPI, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent

from benchmarks.peers.queues import publish, published
from benchmarks.traffic import start_publishing

app = FastAPI()


@app.get("/events", response_class=EventSourceResponse)
async def events() -> AsyncIterator[ServerSentEvent]:
    async for data in published():
        yield ServerSentEvent(raw_data=data)


@app.get("/pub")
async def pub(request: Request) -> str:
    start_publishing(publish, request.query_params)
    return "ok"
