"""The workers of a storm of runs: `app` serves readers under /ID, and the module itself produces.

As a program it reads lines `start ID`, `resume ID` and `restart ID`, and writes into the file NOTES what each
attempt does: `start ID ATTEMPT`, `item ID ATTEMPT NUMBER`, `close ID ATTEMPT`. On its output it says `ready`,
and `closed ID TIME` in the `finally` of each iterator.
"""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from typing import TextIO

from redis.asyncio import Redis

from livepush_asgi import (
    BrokerUnavailableError,
    Grant,
    History,
    HistoryBroker,
    JetStreamBroker,
    Limits,
    LivePush,
    PostgresBroker,
    RedisStreamsBroker,
    Refusal,
    RunState,
    StreamRequest,
)

ITEMS = int(os.environ.get("ITEMS", "40"))
PACE = float(os.environ.get("PACE", "0.1"))
# Bytes of each item beside its number.
PADDING = " " + "x" * int(os.environ.get("PADDING", "0"))
LEASE = float(os.environ.get("LEASE", "2"))


def broker_of(url: str, age: float = 3600.0) -> HistoryBroker:
    """Return the broker of a server."""
    history = History(events=20_000, size=128 * 1024 * 1024, age=age)
    if url.startswith("nats"):
        return JetStreamBroker(url, history=history)
    if url.startswith("redis"):
        return RedisStreamsBroker(Redis.from_url(url), history=history)
    return PostgresBroker(url, history=history)


def broker_from_environment() -> HistoryBroker:
    """Return the broker of the server in `SERVER`, with the `AGE` of its history."""
    return broker_of(os.environ.get("SERVER", "redis://127.0.0.1:1/0"), float(os.environ.get("AGE", "3600")))


async def authorize(request: StreamRequest) -> Grant | Refusal:
    return await app.run(request.path[1:]).grant(request)


app = LivePush(broker_from_environment(), authorize, limits=Limits(outbox_events=50))


class Producing:
    """The runs of this process."""

    def __init__(self, notes: TextIO) -> None:
        self._notes = notes
        self._attempts = 0

    def _note(self, *words: object) -> None:
        # One short write to a file that is appended to: the notes of several processes do not mix.
        self._notes.write(" ".join(map(str, words)) + "\n")
        self._notes.flush()

    async def _items(self, id: str, first: int) -> AsyncIterator[object]:
        self._attempts += 1
        attempt = f"{os.getpid()}-{self._attempts}"
        self._note("start", id, attempt)
        try:
            for number in range(first, ITEMS + 1):
                await asyncio.sleep(PACE)
                self._note("item", id, attempt, number)
                yield f"{number}{PADDING}"
        finally:
            print("closed", id, time.time(), flush=True)
            self._note("close", id, attempt)

    async def start(self, mode: str, id: str) -> None:
        """Start a run, or take it over when it is lost."""
        run = app.run(id)
        while True:
            try:
                if mode != "start" and (await run.wait()).state is not RunState.LOST:
                    return
                await run.start(
                    lambda count: self._items(id, count + 1),
                    lease=LEASE,
                    resume=mode == "resume",
                    restart=mode == "restart",
                    retry_for=60,
                )
                return
            except BrokerUnavailableError:
                await asyncio.sleep(0.2)

    async def serve(self, lines: asyncio.StreamReader) -> None:
        """Do what the lines say."""
        async with app.lifespan(), asyncio.TaskGroup() as tasks:
            print("ready", flush=True)
            while line := await lines.readline():
                mode, id = line.decode().split()
                tasks.create_task(self.start(mode, id))


async def main() -> None:
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    with open(os.environ["NOTES"], "a") as notes:  # noqa: ASYNC230  (it is a local file)
        await Producing(notes).serve(lines)


if __name__ == "__main__":
    asyncio.run(main())
