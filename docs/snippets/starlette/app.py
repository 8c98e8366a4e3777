import os

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from livepush_asgi import Grant, LivePush, MemoryBroker, MemorySlotCap, RefusalCause
from livepush_asgi.contrib.starlette import sse_streaming_response


def user_of(session):
    if user := session.get("user"):
        return user
    raise HTTPException(401, "Log in first.")


def authorize(request):
    user = user_of(HTTPConnection(request.scope).session)
    return Grant(channels=["news", f"user:{user}"], slot_key=user)


push = LivePush(MemoryBroker(), authorize, slots=MemorySlotCap(5), soft_refusals={RefusalCause.CAP})


async def login(request):
    # Check a password here.
    request.session["user"] = request.path_params["user"]
    return JSONResponse({})


async def room_events(request):
    user = user_of(request.session)
    room = request.path_params["room"]
    return await sse_streaming_response(push, request, channel=f"room:{room}", slot_key=user)


routes = [
    Route("/login/{user}", login, methods=["POST"]),
    Route("/rooms/{room}/events", room_events),
    Mount("/events", push),
]
middleware = [Middleware(SessionMiddleware, secret_key=os.environ.get("SESSION_SECRET", "only here"))]
app = Starlette(routes=routes, middleware=middleware, lifespan=push.lifespan)
