from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import OAuth2PasswordBearer

from livepush_asgi import Grant, LivePush, MemoryBroker
from livepush_asgi.contrib.fastapi import depends

USERS = {"secret": "ada"}  # Stands for a table of tokens.


def current_user(token: Annotated[str, Depends(OAuth2PasswordBearer("login"))]):
    if user := USERS.get(token):
        return user
    raise HTTPException(401, "Log in first.", {"WWW-Authenticate": "Bearer"})


def room_stream(room: str, user: Annotated[str, Depends(current_user)]):
    return Grant(channels=f"room:{room}", slot_key=user)


push = LivePush(MemoryBroker(), depends(room_stream))
app = FastAPI(lifespan=push.lifespan)
app.mount("/rooms/{room}/events", push)
