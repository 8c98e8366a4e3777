"""What encoding the data of an event costs: `python -m benchmarks.micro.encode`.

The default encoder, orjson and msgspec, each if it is installed: alone, and as `encode` of a LivePush that
publishes to a MemoryBroker without a stream. Microseconds of processor time, the best of several rounds.
"""

import asyncio
import json
import time
from collections.abc import Callable
from importlib import import_module

from livepush_asgi import LivePush, MemoryBroker, public
from livepush_asgi.brokers.history import History
from livepush_asgi.wire.encode import to_json

ROUNDS, CALLS = 15, 2000
Encode = Callable[[object], str | bytes]


def payload(size: int) -> dict[str, object]:
    """Return a dictionary of about `size` bytes of JSON: numbers, short texts and a nested list."""
    data: dict[str, object] = {"id": 1234, "user": "ada", "ok": True, "rate": 1.5}
    rows: list[dict[str, object]] = []
    while len(json.dumps(data, separators=(",", ":"))) < size:
        rows.append({"n": len(rows), "text": "a short text", "value": 0.25 * len(rows)})
        data["rows"] = rows
    return data


def found() -> dict[str, Encode]:
    """Return the encoders that are installed, by name."""
    encoders: dict[str, Encode] = {"json (the default)": to_json}
    for name, function in (("orjson", "dumps"), ("msgspec.json", "encode")):
        try:
            encoders[name.partition(".")[0]] = getattr(import_module(name), function)
        except ModuleNotFoundError:
            print(f"{name}: not installed")
    return encoders


def alone(encode: Encode, data: object) -> float:
    costs = []
    for _ in range(ROUNDS):
        start = time.process_time()
        for _ in range(CALLS):
            encode(data)
        costs.append(time.process_time() - start)
    return 1e6 * min(costs) / CALLS


async def published(encode: Encode, data: object) -> float:
    own = None if encode is to_json else encode
    push = LivePush(MemoryBroker(History(events=100)), public("news"), encode=own)
    costs = []
    for _ in range(ROUNDS):
        start = time.process_time()
        for _ in range(CALLS):
            await push.publish("news", data)
        costs.append(time.process_time() - start)
    return 1e6 * min(costs) / CALLS


async def main() -> None:
    for size in (200, 5 * 1024):
        data = payload(size)
        print(f"a dictionary of {len(to_json(data))} bytes")
        for name, encode in found().items():
            cost, whole = alone(encode, data), await published(encode, data)
            print(f"  {name:20} encode {cost:6.2f} µs   publish {whole:6.2f} µs")


if __name__ == "__main__":
    asyncio.run(main())
