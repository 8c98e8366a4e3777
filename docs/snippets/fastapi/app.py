from fastapi import APIRouter, FastAPI, HTTPException, Request
from live import User, push

from livepush_asgi import Grant
from livepush_asgi.contrib.fastapi import EventStreamResponse, sse_streaming_response

MEMBERS = {"kitchen": {"ada"}}  # Stands for a table.
router = APIRouter()


@router.get("/rooms/{room}/events", response_class=EventStreamResponse)
async def room_events(request: Request, room: str, user: User):
    async def authorize(stream_request):
        if user not in MEMBERS.get(room, ()):
            raise HTTPException(403, "You are no member of this room.")
        return Grant(channels=f"room:{room}", slot_key=user)

    return await sse_streaming_response(push, request, authorize=authorize)


@router.post("/rooms/{room}/messages", status_code=201)
async def write(room: str, text: str, user: User):
    return {"id": await push.publish(f"room:{room}", {"user": user, "text": text})}


app = FastAPI(lifespan=push.lifespan)
app.include_router(router)
app.mount("/events", push)
