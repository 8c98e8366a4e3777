from app import push
from litestar import Litestar, Request, get

from livepush_asgi.contrib.litestar import EventStreamResponse, run_response


# start: follow
@get("/answers/{id:str}")
async def follow(request: Request) -> EventStreamResponse:
    return await run_response(push, request, push.run(request.path_params["id"]))


# end: follow

app = Litestar([follow])
