from app import push
from fastapi import FastAPI, Request

from livepush_asgi.contrib.fastapi import run_response

app = FastAPI(lifespan=push.lifespan)


# start: follow
@app.get("/answers/{id}")
async def follow(request: Request, id: str):
    return await run_response(push, request, push.run(id))


# end: follow
