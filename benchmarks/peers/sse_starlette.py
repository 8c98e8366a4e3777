"""sse-starlette: https://github.com/sysid/sse-starlette"""

from collections.abc import AsyncIterator

from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from benchmarks.peers.queues import publish, published
from benchmarks.traffic import start_publishing


async def messages() -> AsyncIterator[dict[str, str]]:
    async for data in published():
        yield {"data": data}


async def events(request: Request) -> EventSourceResponse:
    return EventSourceResponse(messages())


async def pub(request: Request) -> PlainTextResponse:
    start_publishing(publish, request.query_params)
    return PlainTextResponse("ok")


app = Starlette(routes=[Route("/events", events), Route("/pub", pub)])
