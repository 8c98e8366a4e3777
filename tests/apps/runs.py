"""An application for runs under a prefix, in Starlette and in FastAPI."""

import asyncio
from collections.abc import AsyncIterator

from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from livepush_asgi import LivePush, MemoryBroker, Refusal, RunAccess
from livepush_asgi.dialects import ai_sdk

push = LivePush(MemoryBroker(), lambda request: Refusal(404))
dialect = ai_sdk()


async def pieces() -> AsyncIterator[str]:
    yield "Hel"
    await asyncio.Event().wait()


async def start(request: Request) -> JSONResponse:
    run = push.run(request.path_params["id"], dialect=dialect)
    return JSONResponse({"started": await run.start(dialect.text(pieces()))})


runs = push.runs(lambda request, run: RunAccess(), dialect=dialect)
routes = [Mount("/answers", runs), Route("/start/{id}", start, methods=["POST"])]
fastapi = FastAPI()
fastapi.mount("/api/answers", runs)
fastapi.add_route("/api/start/{id}", start, methods=["POST"])
app = Starlette(
    routes=[Mount("/starlette/api", routes=routes), Mount("/fastapi", fastapi)], lifespan=push.lifespan
)
