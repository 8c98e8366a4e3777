"""What opening and closing a stream costs, and what an idle one holds: `python -m benchmarks.micro.connect`.

With a `send` that does nothing. The slot key and the channel are each client's own in the second part.
"""

import asyncio
import time
from collections.abc import Callable
from statistics import median

from livepush_asgi import Grant, LivePush, MemoryBroker, MemorySlotCap, StreamRequest

from .fan_out import SCOPE, STREAMS, Sink, open_streams, stepped

ROUNDS = 15


def one_channel(request: StreamRequest) -> Grant:
    return Grant(channels="c")


def own_key() -> Callable[[StreamRequest], Grant]:
    number = 0

    def authorize(request: StreamRequest) -> Grant:
        nonlocal number
        number += 1
        return Grant(channels="c", slot_key=f"user:{number}")

    return authorize


def asynchronous(request: StreamRequest) -> object:
    async def decide() -> Grant:
        return Grant(channels="c")

    return decide()


async def round_of(push: LivePush) -> tuple[float, float]:
    """Return the microseconds of processor time for one connect, and for one disconnect."""
    sink = Sink()
    send = stepped(sink)
    start = time.process_time()
    tasks = [asyncio.create_task(push(SCOPE, sink.receive, send)) for _ in range(STREAMS)]
    await sink.wait(lambda: sink.opened == STREAMS)
    await asyncio.sleep(0)
    opened = time.process_time()
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    ended = time.process_time()
    return 1e6 * (opened - start) / STREAMS, 1e6 * (ended - opened) / STREAMS


async def measure(label: str, authorize: Callable[[StreamRequest], object]) -> None:
    push = LivePush(MemoryBroker(), authorize, slots=MemorySlotCap())  # type: ignore[arg-type]
    async with push.lifespan():
        rounds = [await round_of(push) for _ in range(ROUNDS)]
        sink = Sink()
        tasks, kib = await open_streams(push, sink, stepped(sink))
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    opening, closing = (min(costs) for costs in zip(*rounds, strict=True))
    middle = median(cost for cost, _ in rounds)
    print(
        f"{label:24} open {opening:6.1f} µs (median {middle:6.1f})  close {closing:6.1f} µs  {kib:5.2f} KiB"
    )


async def main() -> None:
    await measure("one channel", one_channel)
    await measure("a slot key for each", own_key())
    await measure("asynchronous authorize", asynchronous)


if __name__ == "__main__":
    asyncio.run(main())
