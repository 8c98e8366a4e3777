"""An application that is published to over HTTP. Settings come from the environment.

`POST /publish` takes signed requests, `POST /.well-known/mercure` those with a JWT, `GET /events` is a stream
of `news`, `GET /facts` tells the numbers and the memory of the process. A request with `x-kill: before` or
`x-kill: after` has the process killed, as by a power cut, when its event is published: before or after the
server has sent the answer. `/moved`, `/broken` and `/list` answer as something in between does.
"""

import json
import os
import signal
from pathlib import Path

from livepush_asgi import LivePush, MemoryBroker, hmac_publish, jwt_publish, public
from livepush_asgi.brokers import Broker
from livepush_asgi.runtime.asgi import Message, Receive, Scope, Send

SECRET = "the secret of the tests' publisher"
broker: Broker = MemoryBroker()
if url := os.environ.get("REDIS_URL"):
    from redis.asyncio import Redis

    from livepush_asgi import RedisStreamsBroker

    broker = RedisStreamsBroker(Redis.from_url(url))

push = LivePush(broker, public("news"))
BODY, TIMEOUT = int(os.environ.get("MAX_BODY", "65536")), float(os.environ.get("BODY_TIMEOUT", "10"))
signed = push.publisher(hmac_publish(SECRET), max_body=BODY, body_timeout=TIMEOUT)
mercure = push.publisher(jwt_publish(SECRET, ["HS256"]), max_body=BODY, body_timeout=TIMEOUT)


# A mount without a slash, and a proxy, answer so.
PLAIN = {
    "/moved": (307, b"location", b"https://user:pw@example.org/publish/?a", b""),
    "/broken": (502, b"content-type", b"text/html", b"<h1>Bad Gateway</h1>"),
    "/list": (500, b"content-type", b"application/json", b"[]"),
}


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    path = scope.get("path", "")
    if scope["type"] == "http" and path == "/facts":
        await tell_facts(send)
    elif scope["type"] == "http" and path in PLAIN:
        status, name, value, body = PLAIN[path]
        head = [(name, value), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": head})
        await send({"type": "http.response.body", "body": body})
    elif scope["type"] == "http" and path == "/publish":
        await signed(scope, receive, killing(scope, send))
    elif scope["type"] == "http" and path == "/.well-known/mercure":
        await mercure(scope, receive, send)
    else:
        await push(scope, receive, send)


def killing(scope: Scope, send: Send) -> Send:
    when = dict(scope["headers"]).get(b"x-kill")
    if when is None:
        return send

    async def send_and_die(message: Message) -> None:
        if when == b"after" or message["type"] != "http.response.start":
            await send(message)
        if when == b"before" or message["type"] == "http.response.body":
            os.kill(os.getpid(), signal.SIGKILL)

    return send_and_die


def peak() -> int:
    """Return the most memory that the process has had, in KiB."""
    status = Path("/proc/self/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return int(fields["VmHWM"].split()[0])


async def tell_facts(send: Send) -> None:
    numbers = {**push.statistics(), "kib": peak()}
    body = json.dumps(numbers).encode()
    head = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": body})
