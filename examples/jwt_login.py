"""A login with a JWT in a cookie, which the page renews, and a logout in every worker.

It needs a Redis: `LIVEPUSH_REDIS=redis://localhost uvicorn --app-dir examples --workers 2 jwt_login:app`
"""

import os
import secrets
import time
from hashlib import sha256
from pathlib import Path

import jwt
from redis.asyncio import Redis
from starlette.applications import Starlette
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import Mount, Route

from livepush_asgi import Grant, LivePush, RedisStreamsBroker, Refusal, jwt_claims

SECRET = os.environ.get("JWT_SECRET", "only for this example, and long enough")
TOKEN_SECONDS = int(os.environ.get("TOKEN_SECONDS", "300"))
SESSION_SECONDS = 7 * 24 * 3600
redis = Redis.from_url(os.environ.get("LIVEPUSH_REDIS", "redis://localhost"))

# start: authorize
claims_of = jwt_claims(SECRET, ["HS256"], cookie="token")


async def authorize(request):
    claims = await claims_of(request)
    # The token is valid after a logout, too. The session is not.
    if not await redis.exists(claims["sid"]):
        return Refusal(401, "Log in.")
    user = claims["sub"]
    return Grant(channels=["news", f"user:{user}"], slot_key=user, expires_at=claims.expires_at)


push = LivePush(RedisStreamsBroker(redis), authorize)
# end: authorize


def key_of(session):
    # Neither the database nor the token shows what the cookie of the session holds.
    return f"session:{sha256(session.encode()).hexdigest()}"


def set_cookie(response, name, value, seconds):
    # With https: secure=True, and names that begin with "__Host-", which no other subdomain can set.
    response.set_cookie(name, value, max_age=seconds, httponly=True, samesite="lax")


async def log_in(request):
    user = (await request.body()).decode()  # Stands for a check of the password.
    session = secrets.token_urlsafe(32)
    await redis.set(key_of(session), user, ex=SESSION_SECONDS)
    response = Response(status_code=204)
    set_cookie(response, "session", session, SESSION_SECONDS)
    return response


# start: renew
async def renew(request):
    sid = key_of(request.cookies.get("session", ""))
    user = await redis.get(sid)
    if user is None:
        return Response(status_code=401)
    claims = {"sub": user.decode(), "sid": sid, "exp": int(time.time()) + TOKEN_SECONDS}
    response = Response(status_code=204)
    set_cookie(response, "token", jwt.encode(claims, SECRET, "HS256"), TOKEN_SECONDS)
    return response


async def log_out(request):
    # First the session, then the streams: an `authorize` that is called again then refuses.
    user = await redis.getdel(key_of(request.cookies.get("session", "")))
    if user is not None:
        await push.disconnect(slot_key=user.decode())
    response = Response(status_code=204)
    for name in ("session", "token"):
        response.delete_cookie(name)
    return response


# end: renew


async def publish(request):
    await push.publish("news", await request.body())
    return Response(status_code=204)


PAGE = """<!doctype html>
<link rel="icon" href="data:,">
<title>A login with a JWT</title>
<form><input id="name" placeholder="name"><button>Log in</button></form>
<button id="out">Log out</button>
<p>The stream is <b id="state">waiting</b>; it is number <b id="number">0</b>.</p>
<ol id="log"></ol>
<script type="module">
  import {renewingStream} from "/renewing_stream.js";

  const find = (selector) => document.querySelector(selector);
  const post = (path, body) => fetch(path, {method: "POST", body});
  const show = ({data}) => find("#log").appendChild(document.createElement("li")).append(data);
  const showState = (state) => {
    find("#state").textContent = state;
    if (state === "open") find("#number").textContent = 1 + Number(find("#number").textContent);
  };

  // Called before each stream: when the token has expired, the stream has ended.
  async function address() {
    const answer = await post("/token");
    if (answer.status === 401) return null;
    if (!answer.ok) throw new Error(`no token: ${answer.status}`);
    return "/events/";
  }

  let stop = renewingStream(address, ["message"], show, showState);
  find("form").onsubmit = async (event) => {
    event.preventDefault();
    await post("/login", find("#name").value);
    stop();
    stop = renewingStream(address, ["message"], show, showState);
  };
  // The stream is told: its last event is livepush.close with the reason "revoked".
  find("#out").onclick = () => post("/logout");
</script>"""

routes = [
    Route("/", lambda request: HTMLResponse(PAGE)),
    Route(
        "/renewing_stream.js", lambda request: FileResponse(Path(__file__).with_name("renewing_stream.js"))
    ),
    Route("/login", log_in, methods=["POST"]),
    Route("/token", renew, methods=["POST"]),
    Route("/logout", log_out, methods=["POST"]),
    Route("/news", publish, methods=["POST"]),
    Mount("/events", push),
]
app = Starlette(routes=routes, lifespan=push.lifespan)
