from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Request

from livepush_asgi import AuthorizationUnavailableError, Refusal, StreamRequest, jwt_claims

SECRET = "only for the documentation, and long enough"
claims_of = jwt_claims(SECRET, ["HS256"], cookie="token")
app = FastAPI()


# start: view
async def current_user(request: Request):
    try:
        claims = await claims_of(StreamRequest(request.scope))
    except Refusal as refusal:
        raise HTTPException(refusal.status, refusal.detail, dict(refusal.headers)) from None
    except AuthorizationUnavailableError as error:
        raise HTTPException(503, headers={"Retry-After": str(error.retry_after or 5)}) from error
    return claims["sub"]


@app.get("/me")
async def me(user: Annotated[str, Depends(current_user)]):
    return {"user": user}


# end: view
