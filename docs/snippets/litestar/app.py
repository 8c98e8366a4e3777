import os

from litestar import Litestar, Request, asgi, get, post
from litestar.exceptions import NotAuthorizedException
from litestar.middleware.session.client_side import CookieBackendConfig
from litestar.types import Receive, Scope, Send

from livepush_asgi import Grant, LivePush, MemoryBroker, MemorySlotCap, RefusalCause
from livepush_asgi.contrib.litestar import EventStreamResponse, sse_streaming_response

sessions = CookieBackendConfig(secret=os.environ.get("SESSION_SECRET", "sixteen letters.").encode())


def user_of(session: dict[str, str]) -> str:
    if user := session.get("user"):
        return user
    raise NotAuthorizedException("Log in first.")


def authorize(request):
    user = user_of(request.scope["session"])
    return Grant(channels=["news", f"user:{user}"], slot_key=user)


push = LivePush(MemoryBroker(), authorize, slots=MemorySlotCap(5), soft_refusals={RefusalCause.CAP})


@asgi("/events", is_mount=True, copy_scope=True)
async def events(scope: Scope, receive: Receive, send: Send) -> None:
    await push(scope, receive, send)


@get("/rooms/{room:str}/events")
async def room_events(request: Request) -> EventStreamResponse:
    user, room = user_of(request.session), request.path_params["room"]
    return await sse_streaming_response(push, request, channel=f"room:{room}", slot_key=user)


@post("/login/{user:str}")
async def login(request: Request) -> None:
    # Check a password here.
    request.set_session({"user": request.path_params["user"]})


app = Litestar([events, room_events, login], lifespan=[push.lifespan], middleware=[sessions.middleware])
