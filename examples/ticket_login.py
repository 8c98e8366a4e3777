"""A page whose streams are at another site, where its cookies do not go: tickets and signed channels.

It needs a Redis: `LIVEPUSH_REDIS=redis://localhost uvicorn --app-dir examples --workers 2 ticket_login:app`
"""

import json
import os
import secrets
import time
from hashlib import sha256

from redis.asyncio import Redis
from starlette.applications import Starlette
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route

from livepush_asgi import (
    ChannelSigner,
    Cors,
    Grant,
    LivePush,
    RedisStreamsBroker,
    RedisTickets,
    Refusal,
)

SECRET = os.environ.get("CHANNEL_SECRET", "only for this example, and long enough")
SESSION_SECONDS = 1800
# After this time a page needs another ticket, so its session is looked at, and prolonged.
STREAM_SECONDS = float(os.environ.get("STREAM_SECONDS", "300"))
# The host of the streams, such as push.example.net; without it, that of the page.
STREAMS_HOST = os.environ.get("STREAMS_HOST")
redis = Redis.from_url(os.environ.get("LIVEPUSH_REDIS", "redis://localhost"))

# start: authorize
tickets = RedisTickets(redis)  # MemoryTickets() with one worker
signer = ChannelSigner(SECRET)  # [new, old] while the secret is changed


async def authorize(request):
    session = await tickets.redeem(request)
    user = await user_of(session)
    if user is None:  # Logged out since the ticket was issued.
        return Refusal(401, "Log in.")
    granted = signer.verify(request.query.get("channels"), user=user)
    expires_at = min(time.time() + STREAM_SECONDS, granted.expires_at)
    return Grant(channels=granted.channels, slot_key=user, expires_at=expires_at)


# No cookie is needed, so pages of every origin may read what they have a ticket for.
push = LivePush(RedisStreamsBroker(redis), authorize, cors=Cors(["*"]))
# end: authorize


def key_of(request):
    return f"session:{sha256(request.cookies.get('session', '').encode()).hexdigest()}"


async def user_of(session):
    user = await redis.get(session)
    return user and user.decode()


# start: ticket
async def ticket(request):
    key = key_of(request)
    # A page that is open keeps its session alive, as its other requests do.
    if not await redis.expire(key, SESSION_SECONDS):
        return Response(status_code=401)
    return PlainTextResponse(await tickets.issue(key), headers={"cache-control": "no-store"})


# end: ticket


async def log_in(request):
    session = secrets.token_urlsafe(32)
    user = request.path_params["user"]  # Stands for a check of the password.
    await redis.set(f"session:{sha256(session.encode()).hexdigest()}", user, ex=SESSION_SECONDS)
    response = RedirectResponse(f"/orders/{user}", 303)
    response.set_cookie("session", session, httponly=True, samesite="lax")
    return response


async def log_out(request):
    # First the session, then the streams: an `authorize` that is called again then refuses.
    user = await redis.getdel(key_of(request))
    if user is not None:
        await push.disconnect(slot_key=user.decode())
    return Response(status_code=204)


async def pay(request):
    await push.publish(f"orders:{request.path_params['user']}", await request.body())
    return Response(status_code=204)


async def orders(request):
    user = await user_of(key_of(request))
    if user is None or user != request.path_params["user"]:
        return Response(status_code=403)
    host = f"//{STREAMS_HOST}:{request.url.port}" if STREAMS_HOST else ""
    page = PAGE.replace("STREAMS", json.dumps(f"{host}/events/"))
    return HTMLResponse(page.replace("CHANNELS", signer.sign(f"orders:{user}", user=user)))


PAGE = """<!doctype html>
<link rel="icon" href="data:,">
<title>Orders</title>
<button id="out">Log out</button>
<p>The stream is <b id="state">waiting</b>; it is number <b id="number">0</b>.</p>
<ol id="log" data-channels="CHANNELS"></ol>
<script type="module">
  const find = (selector) => document.querySelector(selector);
  const showState = (state) => { find("#state").textContent = state; };
  find("#out").onclick = () => fetch("/logout", {method: "POST"});

  const log = find("#log");
  let lastEventId = "";

  async function open() {
    let answer = null;
    try {
      answer = await fetch("/ticket", {method: "POST"});
    } catch { }  // The server is away.
    if (answer?.status === 401) return showState("closed");  // Log in again.
    if (!answer?.ok) return again();
    const query = new URLSearchParams({ticket: await answer.text(), channels: log.dataset.channels});
    if (lastEventId) query.set("last_event_id", lastEventId);
    const source = new EventSource(`${STREAMS}?${query}`);
    source.addEventListener("livepush.open", (event) => {
      ({lastEventId} = event);
      showState("open");
      find("#number").textContent = 1 + Number(find("#number").textContent);
    });
    source.onmessage = (event) => {
      ({lastEventId} = event);
      log.appendChild(document.createElement("li")).append(event.data);
    };
    // EventSource would come back with the ticket that it has used.
    source.onerror = () => {
      source.close();
      again();
    };
  }

  function again() {
    showState("waiting");
    setTimeout(open, 1000 + 2000 * Math.random());  // Not all pages at once.
  }

  open();
</script>"""

routes = [
    Route("/login/{user}", log_in),
    Route("/logout", log_out, methods=["POST"]),
    Route("/ticket", ticket, methods=["POST"]),
    Route("/orders/{user}", orders),
    Route("/orders/{user}", pay, methods=["POST"]),
    Mount("/events", push),
]
app = Starlette(routes=routes, lifespan=push.lifespan)
