"""Measure what an attacker with a valid login can cost: the figures of SECURITY.md.

    python -m benchmarks.attacks

In memory and without a server: the figures are the component's own. The clients are ASGI calls by hand.
"""

import asyncio
import gc
import time
import tracemalloc
from collections.abc import Sequence
from contextlib import AsyncExitStack

from livepush_asgi import (
    Broker,
    DrainPolicy,
    Grant,
    History,
    LivePush,
    MemoryBroker,
    Refusal,
    StreamRequest,
)
from livepush_asgi.runtime.asgi import Message, Scope
from livepush_asgi.testing.exchange import http_scope

Row = tuple[str, str]
KIB = 1024
ROUNDS = 5
CONNECTS = 300
# The longest text that is read as a last event id: an entry of 42 characters for each of 128 channels.
LONGEST_ID = ",".join(f"{number:04d}~{'e' * 16}.{2**63 - 1}" for number in range(128))


class Attacker:
    """One connection. It takes what is sent, or nothing after the first message with a body."""

    def __init__(self, push: LivePush, scope: Scope, *, reads: bool = True) -> None:
        self._push = push
        self._scope = scope
        self._reads = reads
        self._opened = asyncio.Event()
        self._left = asyncio.Event()
        self._enough = asyncio.Event()
        self._wanted = 0
        self.received = 0

    async def __aenter__(self) -> "Attacker":
        self._task = asyncio.create_task(self._push(self._scope, self._receive, self._send))
        await self._opened.wait()
        return self

    async def __aexit__(self, *raised: object) -> None:
        self._left.set()
        self._reads = True
        await self._task

    async def read(self, size: int) -> None:
        """Wait until so many bytes have come."""
        self._wanted = size
        while self.received < size:
            self._enough.clear()
            await self._enough.wait()

    async def _receive(self) -> Message:
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if message["type"] != "http.response.body":
            return
        self.received += len(message.get("body", b""))
        self._enough.set()
        if not self._reads and self._opened.is_set():
            await self._left.wait()
        self._opened.set()


def grant(request: StreamRequest) -> Grant | Refusal:
    """Grant the channel that is asked for, or so many."""
    if request.path == "/refused":
        return Refusal(403)
    count = int(request.query.get("channels", "1"))
    name = request.query.get("channel", "news")
    return Grant(channels=[name, *(f"{name} {number}" for number in range(1, count))])


async def running(stack: AsyncExitStack, broker: Broker | None = None) -> LivePush:
    push = LivePush(broker or MemoryBroker(), grant, drain=DrainPolicy(window=0, signals=False))
    await stack.enter_async_context(push.lifespan())
    return push


async def cost_of_connects(push: LivePush, scope: Scope) -> float:
    """Return the CPU time of a connect and its end, in microseconds; the best of some rounds."""
    best = float("inf")
    for _ in range(ROUNDS):
        begun = time.process_time()
        for _ in range(CONNECTS):
            async with Attacker(push, dict(scope)):
                pass
        best = min(best, (time.process_time() - begun) / CONNECTS * 1e6)
    return best


async def connects() -> list[Row]:
    async with AsyncExitStack() as stack:
        push = await running(stack)
        position = await push.publish("news", "x")
        cases: Sequence[tuple[str, Scope]] = [
            ("a new client", http_scope()),
            ("refused by authorize", http_scope("GET", "/refused")),
            ("a client that comes back", http_scope(last_event_id=position)),
            ("a last event id of 5 KiB in the right form", http_scope(last_event_id=LONGEST_ID)),
            ("a last event id of 60 KiB", http_scope(last_event_id="A" * 60 * KIB)),
            ("a query of 60 KiB in 12,000 parameters", http_scope(query="a=b&c" * 12 * KIB)),
            ("128 channels", http_scope(query="channels=128")),
            (
                "128 channels and the last event id of 5 KiB",
                http_scope(query="channels=128", last_event_id=LONGEST_ID),
            ),
        ]
        return [(name, f"{await cost_of_connects(push, scope):,.0f} µs") for name, scope in cases]


async def memory() -> list[Row]:
    """Return what streams hold on the heap: idle ones, and those whose clients read nothing."""
    full, more = 1000, 2000
    return [
        ("an idle stream", await held(1, 500, events=0)),
        ("an idle stream of 128 channels", await held(128, 50, events=0)),
        ("a client that reads nothing, its outbox full", await held(1, 20, events=full)),
        ("the same after it overflowed", await held(1, 20, events=more)),
    ]


async def held(channels: int, count: int, *, events: int) -> str:
    """Return what one of `count` streams holds beside the logs, each with channels of its own."""
    broker = MemoryBroker(History(events=1))
    async with AsyncExitStack() as stack:
        push = await running(stack, broker)
        await stack.enter_async_context(Attacker(push, http_scope(query=f"channel=warm&channels={channels}")))
        before = heap()
        for number in range(count):
            scope = http_scope(query=f"channel={number}&channels={channels}")
            await stack.enter_async_context(Attacker(push, scope, reads=False))
        for number in range(count):
            for event in range(events):
                await push.publish(str(number), f"{event:04d}".ljust(KIB, "x"))
        open_streams = push.statistics()["streams"] - 1
        size = (heap() - before) / count / KIB
        return (
            f"{size:,.1f} KiB" if open_streams == count else f"{size:,.1f} KiB ({open_streams}/{count} open)"
        )


def heap() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


async def replays() -> list[Row]:
    """Return what one request for all of a history costs: the processor, and the bytes that are sent."""
    async with AsyncExitStack() as stack:
        push = await running(stack, MemoryBroker(History(size=16 * KIB * KIB, events=20_000)))
        first = await push.publish("news", "x" * 900)
        for _ in range(KIB):
            await push.publish("news", "x" * 900)
        size = KIB * 900
        best = float("inf")
        for _ in range(ROUNDS):
            begun = time.process_time()
            for _ in range(20):
                async with Attacker(push, http_scope(last_event_id=first)) as attacker:
                    await attacker.read(size)
            best = min(best, (time.process_time() - begun) / 20 * 1e3)
        return [
            (
                "one request that reads 1,024 events of 900 bytes",
                f"{best:.1f} ms, {attacker.received:,} bytes",
            )
        ]


async def invented_channels() -> list[Row]:
    """Return what channels cost that clients make up, where a grant takes their names."""
    broker = MemoryBroker()
    async with AsyncExitStack() as stack:
        push = await running(stack, broker)
        before = heap()
        for number in range(5_000):
            async with Attacker(push, http_scope(query=f"channel=made-up-{number}")):
                pass
        size = (heap() - before) / KIB
    return [("a channel that a client made up, after it has left", f"{size / 5_000:.1f} KiB")]


async def main() -> None:
    tracemalloc.start()
    held_rows = [*await memory(), *await invented_channels()]
    tracemalloc.stop()
    for name, figure in [*await connects(), *await replays(), *held_rows]:
        print(f"| {name} | {figure} |")


if __name__ == "__main__":
    asyncio.run(main())
