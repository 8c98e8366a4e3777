"""FastAPI: a room for its members, until they are removed. `uvicorn --app-dir examples fastapi_rooms:app`"""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Body, Depends, FastAPI, HTTPException, Request, Response

from livepush_asgi import Grant, LivePush, MemoryBroker, Refusal
from livepush_asgi.contrib.fastapi import sse_streaming_response


@dataclass
class User:
    id: int


# Stands for a table of a database.
members = {"kitchen": {1, 2}, "garden": {2}}


async def is_member(user_id, room):
    return user_id in members.get(room, ())


def current_user(user: int):
    # Stands for the application's login.
    return User(user)


# Streams are opened by the route alone.
push = LivePush(MemoryBroker(), lambda request: Refusal(404))
app = FastAPI(lifespan=push.lifespan)


# start: route
@app.get("/rooms/{room}/events")
async def events(request: Request, room: str, user: Annotated[User, Depends(current_user)]):
    async def authorize(stream_request):
        if not await is_member(user.id, room):
            raise HTTPException(403)
        return Grant(channels=f"room:{room}", slot_key=str(user.id))

    return await sse_streaming_response(push, request, authorize=authorize)


# end: route


@app.post("/rooms/{room}", status_code=204, response_class=Response)
async def publish(room: str, data: Annotated[bytes, Body(media_type="text/plain")]):
    await push.publish(f"room:{room}", data)


@app.delete("/rooms/{room}/members/{user_id}")
async def remove(room: str, user_id: int):
    # First the permission, then the streams: an `authorize` that is called again then refuses.
    members[room].discard(user_id)
    done = await push.disconnect(channel=f"room:{room}", slot_key=str(user_id))
    return done._asdict()
