"""200 runs at once on real processes: readers are cut, a producer is killed, the server is killed.

    python -m benchmarks.runs_storm [--server valkey|nats] [--runs 200] [--cancels 50]

Two processes have the readers (uvicorn), two produce. After a third of the time one of the two is killed
(SIGKILL); a third of its runs is taken over with `resume`, a third begins again with `restart`, a third is
left. In the middle the server is killed and started again: Valkey with an append-only file, nats-server with
its files. Then this asserts, and exits with 1 and the reasons otherwise:

- Every reader has the whole text, once and in order, and `done`; of a run that begins again it has the new
  text; and of a run whose producer was killed and that was left, `lost`. No other reader is told `lost`.
- No run has two producers: each attempt has noted its start and its items in a file.
- When `History.age` has passed, twice with JetStream, nothing of the output is left on the server. Valkey
  keeps a short key of each channel for ten minutes, which has a time to live.

Last it measures `cancel`, from this process that has neither producer nor readers: from the call until the
iterator's `finally` has run in its process. More than 100 ms is a reason too.
"""

import argparse
import asyncio
import math
import statistics
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

from redis.asyncio import Redis

from livepush_asgi import LivePush, Refusal
from tests.apps.run_worker import broker_of
from tests.nats_server import NatsProcess
from tests.run_storm import FULL, Outcome, Producer, Server, Size, environment_of, storm
from tests.valkey import ValkeyProcess

from .__main__ import open_files
from .report import machine

LIMIT = 0.1
BETWEEN_LOOKS = 0.25


async def left_over(server: Server, age: float) -> list[str]:
    """Wait until the output is too old, and return what is left of it on the server."""
    # JetStream keeps a stream for twice the age.
    deadline = time.monotonic() + 2.5 * age
    while True:
        found = await _stored(server)
        if not found or time.monotonic() > deadline:
            return found
        await asyncio.sleep(BETWEEN_LOOKS)


async def _stored(server: Server) -> list[str]:
    if isinstance(server, NatsProcess):
        streams = server.monitor("jsz?streams=1")
        return [f"{streams['messages']} messages"] if streams["messages"] else []
    async with Redis.from_url(server.url, decode_responses=True) as redis:
        keys = await redis.keys("*")
        heads = [key for key in keys if await redis.type(key) == "string" and await redis.pttl(key) > 0]
        return [str(key) for key in keys if key not in heads]


async def cancels(server: Server, folder: Path, count: int) -> list[float]:
    """Return how long so many cancels took, in seconds."""
    size = Size(runs=count, items=1, pace=3600, lease=60)
    took = []
    async with AsyncExitStack() as stack:
        producer = Producer(environment_of(server, size, folder), folder / "cancelled")
        stack.callback(producer.close)
        await producer.ready()
        push = LivePush(broker_of(server.url), lambda request: Refusal())
        # It is not started: it reads nothing and listens to nothing.
        for number in range(count):
            run = push.run(f"cancelled-{number}")
            producer.tell("start", [run.id])
            while await run.status() is None:  # noqa: ASYNC110  (another process starts it)
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            closed = asyncio.create_task(producer.closed(run.id))
            await asyncio.sleep(0)
            began = time.time()
            await run.cancel()
            took.append(await closed - began)
    return took


def report(outcome: Outcome, took: list[float]) -> str:
    tally = outcome.tally
    counted = {
        "items received": tally.received,
        "connections": tally.connections,
        "cut by the reader": tally.cuts,
        "answers without a stream": dict(tally.statuses),
        "gaps": dict(tally.gaps),
        "ends": dict(tally.ends),
        "runs whose producer was killed": outcome.killed,
        "until the last reader had ended, s": f"{outcome.seconds:.1f}",
    }
    if took:
        ordered = sorted(took)
        p95 = ordered[math.ceil(0.95 * len(ordered)) - 1]
        middle = statistics.median(ordered)
        counted[f"{len(took)} cancels, ms: median, 95 %, longest"] = ", ".join(
            f"{1000 * each:.1f}" for each in (middle, p95, ordered[-1])
        )
    width = max(map(len, counted))
    return "\n".join(f"{name:{width}}  {value}" for name, value in counted.items())


async def run(options: argparse.Namespace, folder: Path) -> list[str]:
    with _server(options.server, folder / "server") as server:
        size = replace(FULL, runs=options.runs)
        outcome = await storm(server, size, folder)
        reasons = outcome.reasons
        began = time.monotonic()
        reasons += [f"left on the server: {left}" for left in await left_over(server, size.age)]
        print(f"the output is gone {time.monotonic() - began:.0f} s later")
        took = await cancels(server, folder, options.cancels)
        print(report(outcome, took))
        return [*reasons, *(f"a cancel took {each:.3f} s" for each in took if each > LIMIT)]


def _server(kind: str, folder: Path) -> Server:
    return NatsProcess(folder, jetstream=True) if kind == "nats" else ValkeyProcess(folder, persistent=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.runs_storm",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--server", choices=("valkey", "nats"), default="valkey")
    parser.add_argument("--runs", type=int, default=FULL.runs)
    parser.add_argument("--cancels", type=int, default=50)
    options = parser.parse_args()
    open_files()
    print(f"{options.server}; {machine(())}")
    with tempfile.TemporaryDirectory() as folder:
        reasons = asyncio.run(run(options, Path(folder)))
    for reason in reasons[:50]:
        print(reason)
    return bool(reasons)


if __name__ == "__main__":
    sys.exit(main())
