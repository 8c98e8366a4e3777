"""What every application under load has in common: the payloads, how they are published, plain answers."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import parse_qs

from livepush_asgi.runtime.asgi import Receive, Scope, Send

# A burst lets the loop turn after so many, as a publisher that reads from somewhere does.
BETWEEN_TURNS = 50

Publish = Callable[[str, str], Awaitable[object]]

running: set[asyncio.Task[None]] = set()


def payload(number: int, size: int) -> str:
    """Return `size` characters of JSON with the time of now and a number, which the load reads."""
    text = f'{{"t":{time.monotonic_ns()},"seq":{number},"p":"'
    return text + "x" * max(0, size - len(text) - 2) + '"}'


async def publish_all(publish: Publish, count: int, rate: float, size: int, channels: int = 0) -> None:
    """Publish `count` payloads, `rate` a second or in a burst, to `c` or to each of so many channels."""
    start, done = time.perf_counter(), 0
    for number in range(count):
        for channel in [f"c{index}" for index in range(channels)] or ["c"]:
            await publish(channel, payload(number, size))
            done += 1
            if done % BETWEEN_TURNS == 0 and (channels or not rate):
                await asyncio.sleep(0)
        if rate:
            await asyncio.sleep(max(0.0, start + (number + 1) / rate - time.perf_counter()))


def start_publishing(publish: Publish, query: Mapping[str, str]) -> None:
    """Begin what `GET /pub?n=&rate=&size=&channels=` asks for."""
    task = asyncio.ensure_future(
        publish_all(
            publish,
            int(query["n"]),
            float(query.get("rate", 0)),
            int(query.get("size", 200)),
            int(query.get("channels", 0)),
        )
    )
    running.add(task)
    task.add_done_callback(running.discard)


def query_of(scope: Scope) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(scope["query_string"].decode()).items()}


async def answer(send: Send) -> None:
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"ok"})


async def answer_lifespan(receive: Receive, send: Send) -> None:
    while (await receive())["type"] != "lifespan.shutdown":
        await send({"type": "lifespan.startup.complete"})
    await send({"type": "lifespan.shutdown.complete"})
