"""The scenarios in which not all is one server and one load: a publisher elsewhere or alone, clients that
come back, clients that read nothing.
"""

import asyncio
import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Set
from contextlib import ExitStack

from redis.asyncio import Redis

from .bench import APP, FLOOR, SETTLE, Bench, Environment
from .load import Figures, Load
from .result import Case, Size
from .serve import REPOSITORY, Server, cores

DEAF = 10
SUBSCRIBE_TIMEOUT = 120.0
BETWEEN_LOOKS = 0.01
# The clients that stay while the others come back, and what they hear meanwhile.
LIVE, LIVE_RATE = 200, 20


def redis_cases(bench: Bench) -> list[Case]:
    def through_valkey() -> Figures:
        with bench.valkey() as valkey, ExitStack() as running:
            connections = 0

            def publish(server: Server) -> None:
                nonlocal connections
                connections = asyncio.run(connections_of(valkey.url))
                running.callback(start_publisher(bench, valkey.url).wait)

            figures = bench.fan_out(APP, {"REDIS_URL": valkey.url}, publish=publish)
            return {**figures, "connections": connections}

    def floor() -> Figures:
        return {**bench.fan_out(FLOOR), "connections": 0}

    return [Case("floor, in process", floor), Case("livepush_asgi, through Valkey", through_valkey)]


def start_publisher(
    bench: Bench, to: str, module: str = "benchmarks.publish", environment: Environment | None = None
) -> "subprocess.Popen[bytes]":
    """Run a module that publishes the events of this size, on the cores of the load."""
    size = bench.size
    arguments = [to, str(size.events), str(size.rate), str(size.bytes)]
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments], cwd=REPOSITORY, env={**os.environ, **(environment or {})}
    )
    os.sched_setaffinity(process.pid, cores()[1])
    return process


async def connections_of(url: str) -> int:
    """Return how many connections a server has, without the one that asks."""
    async with Redis.from_url(url) as redis:
        return len(await redis.client_list()) - 1


def publish_cases(bench: Bench) -> list[Case]:
    """One who waits for each event, then many at once; redis-py alone before each."""
    return [
        Case(label, lambda way=way: append(bench, way))  # type: ignore[misc]
        for label, way in (
            ("XADD by redis-py", "xadd"),
            ("RedisStreamsBroker", "broker"),
            ("Publisher, over it", "publisher"),
            ("XADD from 100 tasks", "xadd_in_tasks"),
            ("XADD in pipelines of 1,000", "xadd_in_pipelines"),
            ("RedisStreamsBroker from 1,000 tasks", "broker_in_tasks"),
            ("the same to 1,000 channels", "broker_on_channels"),
            ("LivePush.publish from 1,000 tasks", "push_in_tasks"),
        )
    ]


def append(bench: Bench, way: str) -> Figures:
    """Append the events in a process that has a core for itself."""
    with bench.valkey() as valkey:
        return append_to(valkey.url, way, bench.size, cores()[0])


def append_to(url: str, way: str, size: Size, on: Set[int]) -> Figures:
    """Append the events of a size in a process on these cores."""
    command = [sys.executable, "-m", "benchmarks.append", way, url, str(size.events), str(size.bytes)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        os.sched_setaffinity(process.pid, on)
        written, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"benchmarks.append {way} has failed")
    figures: Figures = json.loads(written)
    return figures


def subscribe_cases(bench: Bench) -> list[Case]:
    return [
        Case("one channel for all", lambda: subscribe(bench, "/events", 1)),
        Case("a channel each", lambda: subscribe(bench, "/events?channel=c{}", bench.size.streams)),
        Case("a channel each, streams without a server", lambda: subscribe_alone(bench)),
    ]


def subscribe(bench: Bench, path: str, channels: int) -> Figures:
    """Open the streams, and wait until Valkey has all their channels."""
    with bench.valkey() as valkey, bench.serve(APP, {"REDIS_URL": valkey.url}) as server:
        start = time.monotonic()
        with Load(bench.program, server.port, bench.size.streams, path) as load:
            # The component has one of its own, for commands, from its first stream on.
            asyncio.run(subscribed(valkey.url, channels + 1))
            took = time.monotonic() - start
            return {**load.opened(), "subscribed_s": took}


def subscribe_alone(bench: Bench) -> Figures:
    """Have as many streams opened in a process that serves nobody: what subscribing itself takes."""
    with bench.valkey() as valkey:
        command = [sys.executable, "-m", "benchmarks.subscribe", valkey.url, str(bench.size.streams)]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    connected, subscribed = map(float, done.stdout.split())
    return {"connect_s": connected, "subscribed_s": subscribed}


async def subscribed(url: str, least: int) -> int:
    """Wait until so many channels are subscribed, and return how many there are."""
    async with asyncio.timeout(SUBSCRIBE_TIMEOUT), Redis.from_url(url) as redis:
        while True:
            number = int((await redis.info("stats"))["pubsub_channels"])
            if number >= least:
                return number
            await asyncio.sleep(BETWEEN_LOOKS)


def resume_cases(bench: Bench) -> list[Case]:
    return [
        Case("plain connects", lambda: come(bench, behind=False)),
        Case(f"{bench.size.events} events behind", lambda: come(bench, behind=True)),
    ]


def resume_valkey_cases(bench: Bench) -> list[Case]:
    def over_valkey(*, behind: bool) -> Figures:
        with bench.valkey() as valkey:
            return come(bench, {"LOG_URL": valkey.url}, behind=behind)

    return [
        Case("plain connects", lambda: over_valkey(behind=False)),
        Case(f"{bench.size.events} events behind", lambda: over_valkey(behind=True)),
    ]


def restart_cases(bench: Bench) -> list[Case]:
    return [
        Case("plain connects", lambda: restart(bench, behind=False)),
        Case(f"{bench.size.events} events behind", lambda: restart(bench, behind=True)),
    ]


def restart(bench: Bench, *, behind: bool) -> Figures:
    """Kill a server with open streams, start it again on the same port, and have all clients come back."""
    with bench.valkey() as valkey, ExitStack() as running:
        server = bench.serve(APP, {"LOG_URL": valkey.url})
        with server:
            running.enter_context(Load(bench.program, server.port, bench.size.streams)).opened()
            last = first_id(server.port)
        with server:
            server.get(bench.order())
            time.sleep(2 * SETTLE)
            return come_back(bench, server, last if behind else None)


def come(bench: Bench, environment: Environment | None = None, *, behind: bool) -> Figures:
    """Have all clients come at once, while others are there."""
    with bench.serve(APP, environment) as server, ExitStack() as running:
        # An id of before the events that are to be missed, which are published in either case.
        last = first_id(server.port)
        server.get(bench.order())
        # So many a second for as long as it takes; that they all come is not waited for.
        live = running.enter_context(Load(bench.program, server.port, LIVE, "/events?channel=c0"))
        live.opened()
        server.get(f"/pub?n=100000&rate={LIVE_RATE}&channels=1")
        time.sleep(2 * SETTLE)
        figures = come_back(bench, server, last if behind else None)
        return {**figures, "live_p99_ms": live.stop()["p99_ms"]}


def come_back(bench: Bench, server: Server, last_id: str | None) -> Figures:
    """Have all clients come at once with this id, if any; `ready_s` is when each has all there is."""
    expect, header = (bench.size.events, f"Last-Event-ID: {last_id}") if last_id else (0, "")
    before = server.cpu()
    with Load(bench.program, server.port, bench.size.streams, expect=expect, header=header) as load:
        opened = load.opened()
        figures = load.result() if last_id else load.stop()
        used = server.cpu() - before
    ready = figures["caught_up_s"] if last_id else opened["connect_s"]
    return {**figures, "ready_s": ready, "cpu_s": used, "us_per_connect": 1e6 * used / bench.size.streams}


def first_id(port: int) -> str:
    """Return the id with which a stream begins."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/events")
    answer = connection.getresponse()
    while not (line := answer.readline()).startswith(b"id: "):
        if not line:
            raise RuntimeError("the stream has ended before its first id")
    answer.close()
    connection.close()
    return line.removeprefix(b"id: ").decode().strip()


def slow_cases(bench: Bench) -> list[Case]:
    def with_the_deaf() -> Figures:
        with ExitStack() as running:

            def publish(server: Server) -> None:
                deaf = running.enter_context(Load(bench.program, server.port, DEAF, deaf=True))
                deaf.opened()
                server.get(bench.order())

            return bench.fan_out(APP, publish=publish)

    return [
        Case("all read", lambda: bench.fan_out(APP)),
        Case(f"{DEAF} more read nothing", with_the_deaf),
    ]
