"""What publishing an event costs that nobody hears, in memory with history.

python -m benchmarks.micro.publish
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from statistics import median

from livepush_asgi import Event, LivePush, MemoryBroker, public

EVENTS, ROUNDS = 20_000, 5
DATA = "x" * 200


async def cost(publish: Callable[[int], Awaitable[object]]) -> float:
    """Return the microseconds of processor time for one call, the median of the rounds."""
    rounds = []
    for _ in range(ROUNDS):
        start = time.process_time()
        for number in range(EVENTS):
            await publish(number)
        rounds.append(1e6 * (time.process_time() - start) / EVENTS)
    return median(rounds)


async def main() -> None:
    push = LivePush(MemoryBroker(), public("c"))
    event = Event(DATA)
    for label, publish in (
        ("text, one channel", lambda _: push.publish("c", DATA)),
        ("text, 1,000 channels", lambda number: push.publish(f"c{number % 1000}", DATA)),
        ("JSON, one channel", lambda number: push.publish("c", {"order": number})),
        ("a ready Event", lambda _: push.publish("c", event)),
    ):
        print(f"{label:40} {await cost(publish):6.2f} µs")


if __name__ == "__main__":
    asyncio.run(main())
