import hmac
import os

from livepush_asgi import LivePush, MemoryBroker, PublishGrant, PublishRequest, Refusal, public

push = LivePush(MemoryBroker(), public("news"))


# start: authorize
TOKENS = {"shop": os.environ["SHOP_TOKEN"], "billing": os.environ["BILLING_TOKEN"]}


async def authorize_publish(request: PublishRequest) -> PublishGrant:
    given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
    names = [name for name, token in TOKENS.items() if hmac.compare_digest(given, token.encode())]
    if not names:
        raise Refusal(401, headers={"WWW-Authenticate": "Bearer"})
    return PublishGrant(channels=lambda channel: channel.startswith(f"{names[0]}:"))


# end: authorize
publisher = push.publisher(authorize_publish)
served = push


# start: path
async def application(scope, receive, send):
    if scope["type"] == "http" and scope["path"] == "/publish":
        await publisher(scope, receive, send)
    else:
        await served(scope, receive, send)  # What was the application before.


# end: path
