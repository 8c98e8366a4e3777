"""Run for minutes under churn, and see that nothing is left: `python -m tests.soak MINUTES`.

One uvicorn in this process serves three applications: one in memory, and two that share a real Valkey
through RedisStreamsBroker and SlotCap. Clients come and go over real sockets, and their channels, slot keys
and grants change all the time. Once in a round the server is paused and once it is killed; every few seconds
an application is stopped and started. After each round all clients leave, and what remains is counted. The
first round warms up. The table shows the others against it; the exit status is 1 if anything has grown.
"""

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import random
import sys
import tempfile
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from redis.asyncio import Redis

from livepush_asgi import (
    BrokerUnavailableError,
    DrainPolicy,
    Event,
    Grant,
    Limits,
    LivePush,
    MemoryBroker,
    MemorySlotCap,
    Refusal,
    Timing,
)
from livepush_asgi.brokers.history import History
from livepush_asgi.brokers.redis import RedisStreamsBroker
from livepush_asgi.grant import StreamRequest
from livepush_asgi.runtime.asgi import Receive, Scope, Send
from livepush_asgi.slots.redis import SlotCap

from .server_process import free_port
from .valkey import ValkeyProcess

CLIENTS = 40
PUBLISHERS = 3
NAMES = [f"c{number}" for number in range(40)]
KEYS = [f"user{number}" for number in range(8)]
#: How long what is left has to go, in seconds: longer than a slot's lease and than a broker's retry.
QUIET = 30.0
TTL = 6
PAGE = os.sysconf("SC_PAGE_SIZE")


#: How much more than after the first round is no leak. What is not named here must be 0 after each round.
ALLOWED = {
    "tasks": 0,
    "files": 1,
    "threads": 0,
    "connections": 1,
    "objects": 3000,
    "traced": 1024,
    "resident": 16 * 1024,
}


@dataclass
class Left:
    """What is there between two rounds."""

    tasks: int = 0
    files: int = 0
    threads: int = 0
    streams: int = 0
    channels: int = 0
    #: On the server: keys of slots, keys that never expire, subscribed channels, connections.
    slots: int = 0
    lasting: int = 0
    subscribed: int = 0
    connections: int = 0
    objects: int = 0
    #: In KiB: what Python has allocated, and what the system says.
    traced: int = 0
    resident: int = 0

    def faults(self, first: "Left") -> list[str]:
        """Return the names of what has grown."""
        names = [each.name for each in fields(self)]
        most = {name: getattr(first, name) + ALLOWED[name] if name in ALLOWED else 0 for name in names}
        return [name for name in names if getattr(self, name) > most[name]]

    def stale(self) -> int:
        """Return how much is left that has to be gone by now."""
        return self.streams + self.channels + self.slots + self.lasting + self.subscribed


@dataclass
class Tally:
    """What the clients have seen, so that a soak in which nothing happens is seen too."""

    connects: int = 0
    events: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    published: int = 0
    unpublished: int = 0
    revoked: int = 0
    raised: Counter[str] = field(default_factory=Counter)


class Complaints(logging.Handler):
    """Keeps what the component logs as its own defect."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.heard: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.heard[f"{record.getMessage()[:80]}: {record.exc_info[1]!r}"[:160]] += 1


class Soak:
    """The applications, their server, and all that churns."""

    def __init__(self, valkey: ValkeyProcess) -> None:
        self.valkey = valkey
        self.tally = Tally()
        self.port = free_port()
        self._stopping = asyncio.Event()
        self._serial = 0
        self._redis = [Redis.from_url(valkey.url) for _ in range(2)]
        history = History(events=50, age=20.0, channels=60)
        self.pushes = {
            "memory": self._push(MemoryBroker(history=history), MemorySlotCap(3)),
            "one": self._push(
                RedisStreamsBroker(self._redis[0], history=history), SlotCap(self._redis[0], cap=3, ttl=TTL)
            ),
            "two": self._push(
                RedisStreamsBroker(self._redis[1], history=history),
                SlotCap(self._redis[1], cap=3, ttl=TTL, on_full="replace_oldest"),
            ),
        }

    @staticmethod
    def _push(broker: Any, slots: Any) -> LivePush:
        return LivePush(
            broker,
            authorize,
            slots=slots,
            limits=Limits(outbox_events=20, replay_events=40),
            timing=Timing(
                linger=0.3, heartbeat_interval=1.0, send_timeout=2.0, subscribe_timeout=0.5, retry=0.1
            ),
            drain=DrainPolicy(window=0.5, signals=False),
        )

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = scope["path"].split("/")[1]
        await self.pushes[name]({**scope, "root_path": f"/{name}"}, receive, send)

    async def run(self, rounds: int, seconds: float) -> list[Left]:
        """Churn so many times for so many seconds; return what was left each time."""
        config = uvicorn.Config(
            self.app,
            interface="asgi3",
            port=self.port,
            log_config=None,
            lifespan="off",
            timeout_graceful_shutdown=2,
        )
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve())
        for push in self.pushes.values():
            await push.start()
        while not server.started:  # noqa: ASYNC110  (uvicorn sets no event)
            await asyncio.sleep(0.05)
        left = []
        for number in range(rounds):
            await self._churn(seconds)
            left.append(await self._settled())
            print(f"round {number + 1} of {rounds}: {row(left[-1])}", flush=True)
        for push in self.pushes.values():
            await push.stop()
        server.should_exit = True
        await serving
        for redis in self._redis:
            await redis.aclose()
        return left

    async def _churn(self, seconds: float) -> None:
        self._stopping.clear()
        works: list[Callable[[], Coroutine[Any, Any, None]]] = [
            *[self._client] * CLIENTS,
            *[partial(self._publisher, push) for push in self.pushes.values()] * PUBLISHERS,
            self._revoker,
            partial(self._trouble, seconds),
            self._restarts,
        ]
        tasks = [asyncio.create_task(self._while_it_lasts(work)) for work in works]
        await asyncio.sleep(seconds)
        self._stopping.set()
        await asyncio.gather(*tasks)

    async def _while_it_lasts(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Go on with a work until the round is over; what the component raises on the way is reported."""
        while not self._stopping.is_set():
            try:
                await work()
            except Exception as error:
                self.tally.raised[f"{work}: {error!r}"[:200]] += 1
                await asyncio.sleep(0.1)

    # What churns.

    async def _client(self) -> None:
        last_id, name = "", random.choice(list(self.pushes))
        while not self._stopping.is_set():
            if random.random() < 0.3:
                last_id, name = "", random.choice(list(self.pushes))
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                last_id = await self._follow(name, last_id)
            await asyncio.sleep(random.choice([0.0, 0.05, 0.3]))

    async def _follow(self, name: str, last_id: str) -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.tally.connects += 1
        try:
            header = f"Last-Event-ID: {last_id}\r\n" if last_id else ""
            writer.write(f"GET /{name}/?{self._query()} HTTP/1.1\r\nHost: x\r\n{header}\r\n".encode())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(random.choice([0.0, 0.1, 1.0, 4.0])):
                    while line := await reader.readline():
                        last_id = self._look_at(line, last_id)
        finally:
            if random.random() < 0.5:
                writer.transport.abort()
            else:
                writer.close()
        return last_id

    def _look_at(self, line: bytes, last_id: str) -> str:
        if line.startswith(b"HTTP/1.1 "):
            self.tally.statuses[line[9:12].decode()] += 1
        elif line.startswith(b"data: "):
            self.tally.events += 1
        elif line.startswith(b"id: "):
            return line[4:].strip().decode()
        return last_id

    def _query(self) -> str:
        channels = random.sample(NAMES, random.randint(1, 4))
        if random.random() < 0.2:
            # One that nobody has used and nobody will: whatever is kept for each name shows.
            self._serial += 1
            channels.append(f"once{self._serial}")
        choices = {
            "key": random.choice([*KEYS, ""]),
            "snapshot": random.choice(["", "", "quick", "slow", "raises"]),
            "expires": random.choice(["", "", "", "0.3"]),
            "mute": random.choice(["", "", "", "1"]),
            "slow": random.choice(["", "", "1"]),
            "replay": random.choice(["new", "last", "all"]),
        }
        return "&".join([f"c={name}" for name in channels] + [f"{k}={v}" for k, v in choices.items() if v])

    async def _publisher(self, push: LivePush) -> None:
        while not self._stopping.is_set():
            channel = random.choice(NAMES) if random.random() < 0.95 else f"once{self._serial}"
            try:
                await push.publish(channel, "x" * random.choice([10, 200, 2000]))
                self.tally.published += 1
            except BrokerUnavailableError:
                self.tally.unpublished += 1
            await asyncio.sleep(random.choice([0.0, 0.0, 0.01, 0.05]))

    async def _revoker(self) -> None:
        while not self._stopping.is_set():
            await asyncio.sleep(0.5)
            push = random.choice(list(self.pushes.values()))
            with contextlib.suppress(BrokerUnavailableError):
                await push.disconnect(slot_key=random.choice(KEYS))
                self.tally.revoked += 1

    async def _restarts(self) -> None:
        while not self._stopping.is_set():
            await asyncio.sleep(4.0)
            push = random.choice(list(self.pushes.values()))
            await push.stop()
            await push.start()

    async def _trouble(self, seconds: float) -> None:
        """Pause the server once, and kill it once, in each round."""
        await asyncio.sleep(seconds * 0.3)
        self.valkey.pause()
        await asyncio.sleep(min(2.0, seconds * 0.1))
        self.valkey.resume()
        await asyncio.sleep(seconds * 0.2)
        await asyncio.to_thread(self.valkey.kill)
        await asyncio.sleep(min(2.0, seconds * 0.1))
        await asyncio.to_thread(self.valkey.start)
        await self._stopping.wait()

    # What is left.

    async def _settled(self) -> Left:
        """Wait until nothing goes away any more, and count what is left."""
        deadline = time.monotonic() + QUIET
        while True:
            left = await self._count()
            if not left.stale() or time.monotonic() > deadline:
                break
            await asyncio.sleep(0.5)
        # For what is closed a moment later: connections of the pool, threads of the executor.
        await asyncio.sleep(3.0)
        return await self._count()

    async def _count(self) -> Left:
        gc.collect()
        left = Left(
            tasks=len(asyncio.all_tasks()),
            files=len(os.listdir("/proc/self/fd")),
            threads=threading.active_count(),
            streams=sum(push.statistics()["streams"] for push in self.pushes.values()),
            channels=sum(push.statistics()["channels"] for push in self.pushes.values()),
            objects=len(gc.get_objects()),
            traced=tracemalloc.get_traced_memory()[0] // 1024,
            resident=resident(),
        )
        async with Redis.from_url(self.valkey.url) as redis:
            keys = [key async for key in redis.scan_iter(count=1000)]
            left.slots = sum(key.startswith(b"livepush:slot:") for key in keys)
            expiries = [await redis.pttl(key) for key in keys]
            left.lasting = sum(expiry == -1 for expiry in expiries)
            names = await redis.pubsub_channels()
            left.subscribed = sum(b"livepush." not in name for name in names)
            left.connections = len(await redis.client_list())
        return left


def resident() -> int:
    """Return how much memory this process has, in KiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE // 1024


async def authorize(request: StreamRequest) -> Grant | Refusal:
    query = request.query
    if query.get("slow"):
        await asyncio.sleep(0.05)
    if random.random() < 0.02:
        return Refusal(403)
    snapshot = query.get("snapshot")
    return Grant(
        channels=request.query_all("c"),
        slot_key=query.get("key"),
        expires_at=time.time() + float(query["expires"]) if "expires" in query else None,
        control_events=not query.get("mute"),
        replay=query["replay"],  # type: ignore[arg-type]
        snapshot=None if snapshot is None else lambda: _snapshot(snapshot),
    )


async def _snapshot(how: str) -> list[Event]:
    if how == "slow":
        await asyncio.sleep(0.5)
    if how == "raises" and random.random() < 0.5:
        raise RuntimeError("the snapshot raises, as the soak wants it")
    return [Event({"block": number}, event="state") for number in range(3)]


def row(left: Left) -> str:
    return "  ".join(f"{each.name} {getattr(left, each.name)}" for each in fields(left))


def report(soak: Soak, left: list[Left], complaints: Counter[str]) -> bool:
    """Print the table, and return whether anything has grown or failed."""
    first, *others = left
    tally, last = soak.tally, others[-1]
    # What may go up and down, as memory, has grown only if the least of the second half is more.
    half = others[len(others) // 2 :]
    for name in ALLOWED:
        setattr(last, name, min(getattr(each, name) for each in half))
    faults = last.faults(first)
    faults += [name for one in left for name in one.faults(first) if name not in ALLOWED]
    print(
        f"\n{'':12}{'first':>10}"
        + "".join(f"{number + 2:>10}" for number in range(len(others)))
        + f"{'':4}ok?"
    )
    for each in fields(Left):
        values = [getattr(one, each.name) for one in left]
        shown = "".join(f"{value:>10}" for value in values)
        print(f"{each.name:12}{shown}{'':4}{'GROWN' if each.name in faults else 'ok'}")
    print(
        f"\n{tally.connects} connects, {tally.events} events, {tally.published} published"
        f" ({tally.unpublished} not), {tally.revoked} revocations, statuses {dict(tally.statuses)}"
    )
    unwanted = {text: count for text, count in complaints.items() if "as the soak wants it" not in text}
    for text, count in unwanted.items():
        print(f"{count} times logged: {text}")
    for text, count in tally.raised.items():
        print(f"{count} times raised: {text}")
    return bool(faults or unwanted or tally.raised)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("minutes", type=float)
    parser.add_argument("--rounds", type=int, default=6)
    given = parser.parse_args()
    complaints = Complaints()
    for name in ("livepush_asgi", "uvicorn"):
        logger = logging.getLogger(name)
        logger.addHandler(complaints)
        logger.propagate = False
    tracemalloc.start()
    with tempfile.TemporaryDirectory() as directory, ValkeyProcess(Path(directory)) as valkey:

        async def run() -> bool:
            soak = Soak(valkey)
            before = tracemalloc.take_snapshot()
            left = await soak.run(given.rounds, given.minutes * 60 / given.rounds)
            failed = report(soak, left, complaints.heard)
            if failed:
                for statistic in tracemalloc.take_snapshot().compare_to(before, "lineno")[:15]:
                    print(statistic)
            return failed

        return int(asyncio.run(run()))


if __name__ == "__main__":
    sys.exit(main())
