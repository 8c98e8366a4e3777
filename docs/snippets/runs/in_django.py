from app import push

from livepush_asgi.contrib.django import run_response


# start: follow
async def follow(request, id):
    return await run_response(push, request, push.run(id))


# end: follow
