import os
from typing import Annotated

import jwt  # pip install pyjwt
from fastapi import Depends, HTTPException, Request

from livepush_asgi import Grant, LivePush, MemoryBroker, MemorySlotCap, RefusalCause

SECRET = os.environ.get("JWT_SECRET", "only for the documentation, and long enough")


def claims_of(token):
    try:
        return jwt.decode(token or "", SECRET, algorithms=["HS256"], options={"require": ["sub", "exp"]})
    except jwt.InvalidTokenError:
        raise HTTPException(401, "Log in first.") from None


def current_user(request: Request):
    return claims_of(request.cookies.get("token"))["sub"]


User = Annotated[str, Depends(current_user)]


def authorize(request):
    claims = claims_of(request.cookies.get("token"))
    user = claims["sub"]
    return Grant(channels=["news", f"user:{user}"], slot_key=user, expires_at=claims["exp"])


push = LivePush(
    MemoryBroker(),  # RedisStreamsBroker(Redis.from_url(...)) with several processes
    authorize,
    slots=MemorySlotCap(5),  # SlotCap(redis, cap=5)
    soft_refusals={RefusalCause.CAP},
)
