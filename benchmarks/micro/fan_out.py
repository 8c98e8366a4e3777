"""What an event costs for each stream, with a `send` that does nothing: `python -m benchmarks.micro.fan_out`.

Once with a `send` that may be stepped by hand, and once with one of which that is not known.
"""

import asyncio
import gc
import time
import tracemalloc
from collections.abc import Awaitable, Callable

from livepush_asgi import LivePush, MemoryBroker, public
from livepush_asgi.runtime.asgi import Message, Scope

STREAMS, TURNS = 1000, 40
SCOPE: Scope = {
    "type": "http",
    "asgi": {"version": "3.0"},
    "method": "GET",
    "path": "/",
    "query_string": b"",
    "headers": [],
}


class Sink:
    """Counts what is sent, for all streams."""

    def __init__(self) -> None:
        self.opened = self.blocks = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.opened += 1
        else:
            self.blocks += message["body"].count(b"data: x")

    async def receive(self) -> Message:
        await asyncio.get_running_loop().create_future()
        raise AssertionError("nobody disconnects")

    async def wait(self, condition: Callable[[], bool]) -> None:
        while not condition():  # noqa: ASYNC110  (every turn of the loop is what is measured)
            await asyncio.sleep(0)


async def open_streams(
    push: LivePush, sink: Sink, send: Callable[[Message], Awaitable[None]]
) -> tuple[list[asyncio.Task[None]], float]:
    """Open all streams, and return their tasks and the KiB that each holds."""
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    tasks = [asyncio.create_task(push(SCOPE, sink.receive, send)) for _ in range(STREAMS)]
    await sink.wait(lambda: sink.opened == STREAMS)
    await asyncio.sleep(0.1)
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return tasks, (after - before) / 1024 / STREAMS


async def measure(label: str, send_of: Callable[[Sink], Callable[[Message], Awaitable[None]]]) -> None:
    push, sink = LivePush(MemoryBroker(), public("c")), Sink()
    async with push.lifespan():
        tasks, kib = await open_streams(push, sink, send_of(sink))
        for together in (1, 50):
            expected = sink.blocks
            start = time.process_time()
            for _ in range(TURNS):
                for _ in range(together):
                    await push.publish("c", "x" * 200)
                expected += together * STREAMS
                await sink.wait(lambda: sink.blocks >= expected)  # noqa: B023  (waited for right here)
            cost = 1e6 * (time.process_time() - start) / (TURNS * together * STREAMS)
            print(f"{label:20} {together:3} events in a turn  {cost:7.3f} µs per event and stream")
        print(f"{label:20} {kib:.1f} KiB per stream")
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def stepped(sink: Sink) -> Callable[[Message], Awaitable[None]]:
    async def send(message: Message) -> None:
        await sink.send(message)

    send.livepush_inline = True  # type: ignore[attr-defined]
    return send


async def main() -> None:
    await measure("stepped by hand", stepped)
    await measure("from the task", lambda sink: sink.send)


if __name__ == "__main__":
    asyncio.run(main())
