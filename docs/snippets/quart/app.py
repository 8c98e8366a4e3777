import os

from itsdangerous import BadSignature
from quart import Quart, abort, request, session
from quart.sessions import SecureCookieSessionInterface

from livepush_asgi import Grant, LivePush, LivePushMiddleware, MemoryBroker, MemorySlotCap, RefusalCause
from livepush_asgi.contrib.quart import sse_streaming_response

app = Quart(__name__)
app.secret_key = os.environ.get("SESSION_SECRET", "only for the documentation")


def user_of(values):
    return values.get("user") or abort(401, "Log in first.")


def authorize(stream_request):
    # Quart's session cookie, read without a request of Quart.
    serializer = SecureCookieSessionInterface().get_signing_serializer(app)
    cookie = stream_request.cookies.get(app.config["SESSION_COOKIE_NAME"], "")
    try:
        values = serializer.loads(cookie, max_age=app.permanent_session_lifetime.total_seconds())
    except BadSignature:
        values = {}
    user = user_of(values)
    return Grant(channels=["news", f"user:{user}"], slot_key=user)


push = LivePush(MemoryBroker(), authorize, slots=MemorySlotCap(5), soft_refusals={RefusalCause.CAP})
app.asgi_app = LivePushMiddleware(app.asgi_app, push, path="/events")


@app.post("/login/<user>")
async def login(user):
    # Check a password here.
    session["user"] = user
    return {}


@app.get("/rooms/<room>/events")
async def room_events(room):
    user = user_of(session)
    return await sse_streaming_response(push, request, channel=f"room:{room}", slot_key=user)
