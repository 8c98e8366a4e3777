"""The application of the tests with browsers and with other people's clients, and its pages.

`/events` is a stream whose terms are in the query, `/slow` one with a longer reconnection time, `/bare` one
without control events, `/short` one whose streams end after a moment, `/replacing` one where a new stream
replaces the oldest one of its key. Over Redis with REDIS_URL. ORIGIN is
let in from elsewhere, with its cookies. HEARTBEAT is in seconds.

`/token` makes a token for a stream, which lasts for some seconds, and with `once` in the stream's query is
good for one stream. `/forget` makes all tokens invalid, and with `log_out` there are no more.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from secrets import token_hex
from urllib.parse import parse_qsl

from livepush_asgi import (
    Cors,
    Grant,
    LivePush,
    LivePushMiddleware,
    MemoryBroker,
    MemorySlotCap,
    Refusal,
    RefusalCause,
    StreamRequest,
    Timing,
)
from livepush_asgi.brokers import Broker
from livepush_asgi.runtime.asgi import ASGIApp, Receive, Scope, Send
from livepush_asgi.slots import OnFull

setting = os.environ.get
TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript"}
HERE = Path(__file__).parent
FOLDERS = (HERE / "pages", HERE.parent.parent / "examples")
PAGES = {f"/{path.name}": path for folder in FOLDERS for path in folder.iterdir() if path.suffix in TYPES}

broker: Broker = MemoryBroker()
if url := setting("REDIS_URL"):
    from redis.asyncio import Redis

    from livepush_asgi import RedisStreamsBroker

    broker = RedisStreamsBroker(Redis.from_url(url))

#: How often a client that says its name has come.
asked: Counter[str] = Counter()
#: When each token ends, in seconds since the epoch.
tokens: dict[str, float] = {}


def authorize(request: StreamRequest) -> Grant | Refusal:
    query = request.query
    name = query.get("name", "")
    asked[name] += 1
    if "refuse" in query and asked[name] > int(query.get("after", "0")):
        return Refusal(int(query["refuse"]))
    if "soft" in query and asked[name] == 1:
        return Refusal(503, soft=True)
    if "mine" in query:
        # A stream of the one who is logged in.
        user = request.cookies.get("user")
        asked[f"{name} as {user}"] += 1
        return Refusal(401) if user is None else Grant(channels=f"of:{user}")
    expires_at = None
    if "token" in query:
        expires_at = tokens.get(query["token"], 0.0)
        if expires_at < time.time():
            return Refusal(401, soft="softly" in query)
        if "once" in query:
            del tokens[query["token"]]
    return Grant(
        channels=request.query_all("channel"),
        expires_at=expires_at,
        slot_key=query.get("key"),
        replay="all" if "all" in query else "new",
    )


def make_push(
    retry: float, *, control_events: bool = True, lifetime: float | None = None, on_full: OnFull = "refuse"
) -> LivePush:
    return LivePush(
        broker,
        authorize,
        slots=MemorySlotCap(1, on_full=on_full),
        timing=Timing(
            retry=retry, heartbeat_interval=float(setting("HEARTBEAT", "15")), max_lifetime=lifetime
        ),
        cors=Cors([setting("ORIGIN", "https://elsewhere.example")], credentials=True),
        control_events=control_events,
        soft_refusals={RefusalCause.CAP},
    )


push, slow, bare = make_push(0.2), make_push(3.0), make_push(0.2, control_events=False)
short, replacing = make_push(0.2, lifetime=0.3), make_push(0.2, on_full="replace_oldest")


async def publish(query: Mapping[str, str], body: str) -> str:
    return await push.publish(query["channel"], body, event=query.get("event")) or ""


async def disconnect(query: Mapping[str, str], body: str) -> str:
    for each in (push, slow, bare, short, replacing):
        await each.disconnect(channel=query["channel"])
    return ""


async def make_token(query: Mapping[str, str], body: str) -> str:
    if "none" in tokens:
        return ""
    token = token_hex(8)
    tokens[token] = time.time() + float(query.get("lasts", "60"))
    asked["tokens"] += 1
    return token


async def forget(query: Mapping[str, str], body: str) -> str:
    tokens.clear()
    if "log_out" in query:
        tokens["none"] = 0.0
    return ""


async def tell_asked(query: Mapping[str, str], body: str) -> str:
    return json.dumps(asked)


ROUTES: Mapping[str, Callable[[Mapping[str, str], str], Coroutine[object, object, str]]] = {
    "/publish": publish,
    "/disconnect": disconnect,
    "/asked": tell_asked,
    "/token": make_token,
    "/forget": forget,
}


async def rest(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        raise ValueError("this application knows nothing but HTTP")
    path, status, kind = scope["path"], 200, "application/json"
    if path in PAGES:
        kind, answer = TYPES[PAGES[path].suffix], PAGES[path].read_text()
    elif path in ROUTES:
        query = dict(parse_qsl(scope["query_string"].decode()))
        answer = await ROUTES[path](query, await whole_body(receive))
    else:
        status, answer = 404, ""
    data = answer.encode()
    headers = [(b"content-type", kind.encode()), (b"content-length", str(len(data)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})


async def whole_body(receive: Receive) -> str:
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message["body"], message.get("more_body", False)
    return body.decode()


app: ASGIApp = rest
for each, path in (
    (bare, "/bare"),
    (short, "/short"),
    (replacing, "/replacing"),
    (slow, "/slow"),
    (push, "/events"),
):
    app = LivePushMiddleware(app, each, path=path)
