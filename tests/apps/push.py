"""The application of the tests with real servers: settings come from the environment and the query.

`GET /events?channel=c&key=k` is a stream, `POST /publish?channel=c&event=e` publishes its body,
`GET /statistics` tells the numbers, and the memory of the process. `POST /disconnect?key=k` revokes, and
tells the result or the error.
"""

import json
import os
from pathlib import Path
from urllib.parse import parse_qsl

from livepush_asgi import (
    BrokerUnavailableError,
    DrainPolicy,
    Grant,
    Limits,
    LivePush,
    LivePushMiddleware,
    MemoryBroker,
    MemorySlotCap,
    StreamRequest,
    Timing,
)
from livepush_asgi.brokers import Broker
from livepush_asgi.runtime.asgi import Receive, Scope, Send
from livepush_asgi.slots import Slots

setting = os.environ.get
broker: Broker = MemoryBroker()
slots: Slots = MemorySlotCap(int(setting("CAP", "20")))
if url := setting("REDIS_URL"):
    from redis.asyncio import Redis

    from livepush_asgi import History, RedisBroker, RedisStreamsBroker, SlotCap

    redis = Redis.from_url(url)
    history = History(
        events=int(setting("HISTORY_EVENTS", "1000")), size=int(setting("HISTORY_SIZE", str(1024 * 1024)))
    )
    broker = RedisStreamsBroker(redis, history=history) if setting("HISTORY") else RedisBroker(redis)
    slots = SlotCap(redis, cap=int(setting("CAP", "20")), ttl=float(setting("TTL", "60")))
elif url := setting("NATS_URL"):
    from livepush_asgi import JetStreamBroker, NatsBroker

    broker = NatsBroker(url) if setting("WITHOUT_HISTORY") else JetStreamBroker(url)
elif url := setting("POSTGRES_URL"):
    from livepush_asgi import PostgresBroker

    broker = PostgresBroker(url)


def authorize(request: StreamRequest) -> Grant:
    channels = request.query_all("channel") or ["c"]
    return Grant(channels=channels, slot_key=request.query.get("key", "k"))


push = LivePush(
    broker,
    authorize,
    slots=slots,
    timing=Timing(
        heartbeat_interval=float(setting("HEARTBEAT", "15")),
        send_timeout=float(setting("SEND_TIMEOUT", "30")),
        max_lifetime=float(setting("LIFETIME", "3600")),
    ),
    limits=Limits(outbox_events=int(setting("OUTBOX", "1000"))),
    drain=DrainPolicy(window=float(setting("WINDOW", "3")), hold=bool(setting("HOLD"))),
)


async def rest(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        raise ValueError("this application knows nothing but HTTP")
    answer = ""
    if scope["path"] == "/publish":
        query = dict(parse_qsl(scope["query_string"].decode()))
        body = (await whole_body(receive)).decode()
        for _ in range(int(query.get("times", "1"))):
            await push.publish(query.get("channel", "c"), body, event=query.get("event"))
    elif scope["path"] == "/statistics":
        answer = json.dumps(numbers())
    elif scope["path"] == "/disconnect":
        query = dict(parse_qsl(scope["query_string"].decode()))
        try:
            answer = json.dumps(await disconnect(**query))
        except BrokerUnavailableError as error:
            answer = json.dumps({"error": str(error)})
    data = answer.encode()
    headers = [(b"content-length", str(len(data)).encode()), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": data})


async def disconnect(key: str, retry_for: str = "0") -> dict[str, object]:
    return (await push.disconnect(slot_key=key, retry_for=float(retry_for)))._asdict()


async def whole_body(receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message["body"], message.get("more_body", False)
    return body


def numbers() -> dict[str, object]:
    found: dict[str, object] = {**push.statistics()}
    status = Path("/proc/self/status").read_text()
    found["pid"] = os.getpid()
    found["resident_kib"] = int(status.split("VmRSS:")[1].split()[0])
    return found


app = LivePushMiddleware(rest, push, path="/events")
