import hmac
import os

from livepush_asgi import Grant, LivePush, LivePushMiddleware, MemoryBroker, Refusal

SECRET = os.environ.get("STREAM_SECRET", "only for the documentation").encode()


def signature_of(user):
    return hmac.new(SECRET, user.encode(), "sha256").hexdigest()


def authorize(request):
    user, _, signature = request.cookies.get("user", "").partition(".")
    if not hmac.compare_digest(signature.encode(), signature_of(user).encode()):
        return Refusal(401, "Log in first.")
    return Grant(channels=["news", f"user:{user}"], slot_key=user)


push = LivePush(MemoryBroker(), authorize)


async def your_app(scope, receive, send):
    if scope["type"] != "http":
        raise ValueError("nothing but HTTP here")
    await push.publish("news", {"path": scope["path"]})
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


app = LivePushMiddleware(your_app, push, path="/events")
