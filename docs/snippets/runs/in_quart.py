from app import push
from quart import Quart, request

from livepush_asgi.contrib.quart import run_response

app = Quart(__name__)


# start: follow
@app.get("/answers/<id>")
async def follow(id):
    return await run_response(push, request, push.run(id))


# end: follow
