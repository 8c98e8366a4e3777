import os

from jwt import PyJWKClient

from livepush_asgi import Grant, jwt_claims

claims_of = jwt_claims(
    PyJWKClient(os.environ["JWKS_URL"], timeout=4).fetch_data,
    ["RS256", "ES256"],
    issuer=os.environ["ISSUER"],
    audience="push",
    leeway=10,
    cookie="token",
)


async def authorize(request):
    claims = await claims_of(request)
    teams = [f"team:{team}" for team in claims.get("teams", ())]
    return Grant(channels=["news", *teams], slot_key=claims["sub"], expires_at=claims.expires_at)
