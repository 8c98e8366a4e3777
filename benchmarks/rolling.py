"""Replace four workers behind a proxy, one after the other, under 1,000 streams, and count what clients see.

    python -m benchmarks.rolling [--proxy haproxy|nginx] [--streams 1000] [--rate 20] [--trouble NAME]

The workers and the proxies are those of examples/operations, the broker is Valkey with an append-only file.
Each client does what EventSource does. `--trouble` is one of: `kill` (one worker is killed at once), `checks`
(HAProxy checks every 20 s, so that it hears of no drain), `broker` (Valkey is killed during a drain, and
started 6 s later).
"""

import argparse
import asyncio
import signal
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from livepush_asgi import LivePush, RedisStreamsBroker, public
from tests import proxies
from tests.rolling import Audience, configuration, replace, wait_ready, worker
from tests.serving import Serving
from tests.valkey import ValkeyProcess

from .__main__ import open_files
from .report import machine

FILES = {"haproxy": "haproxy.cfg", "nginx": "nginx.conf"}
TROUBLES = ("none", "kill", "checks", "broker")
WORKERS = 4
# For HAProxy to hear of a drain before it begins, and for 250 streams to end.
SETTINGS = {"DRAIN_DELAY": "3", "DRAIN_WINDOW": "10"}
# How long a proxy takes at most to notice that a worker is back, in seconds; then how long after the start of
# a drain the broker is killed, and for how long.
NOTICE, MIDDLE, OUTAGE = 3.0, 1.0, 6.0


def configured(proxy: str, workers: Sequence[Serving], trouble: str) -> str:
    """Return the example's configuration for these workers."""
    text = configuration(FILES[proxy], workers)
    return text.replace("inter 1s fall 2", "inter 20s fall 2") if trouble == "checks" else text


async def restart_all(workers: Sequence[Serving], valkey: ValkeyProcess, trouble: str) -> list[float]:
    """Replace the workers one after the other, with trouble at the second. Return how long each stop took."""
    took = []
    for number, each in enumerate(workers):
        sign = signal.SIGKILL if (number, trouble) == (1, "kill") else signal.SIGTERM
        async with asyncio.TaskGroup() as tasks:
            if (number, trouble) == (1, "broker"):
                tasks.create_task(outage(valkey))
            stopped = tasks.create_task(replace(each, lambda: asyncio.sleep(NOTICE), sign))
        took.append(stopped.result())
    return took


async def outage(valkey: ValkeyProcess) -> None:
    """Kill Valkey in the middle of a drain, and start it again."""
    await asyncio.sleep(MIDDLE)
    valkey.kill()
    await asyncio.sleep(OUTAGE)
    await asyncio.to_thread(valkey.start)


async def run(options: argparse.Namespace, folder: Path) -> None:
    async with AsyncExitStack() as stack:
        valkey = stack.enter_context(ValkeyProcess(folder / "valkey", persistent=True))
        changed = dict(text.split("=", 1) for text in options.set)
        environment = {"LIVEPUSH_REDIS": valkey.url, **SETTINGS, **changed}
        workers = [worker(folder / f"log{number}", environment) for number in range(WORKERS)]
        for each in workers:
            await stack.enter_async_context(each)
            await wait_ready(each)
        text = configured(options.proxy, workers, options.trouble)
        proxy = await stack.enter_async_context(getattr(proxies, options.proxy)(0, text, folder))
        redis = await stack.enter_async_context(valkey.client())
        push = LivePush(RedisStreamsBroker(redis), public("news"))

        async def publish(channel: str, data: str) -> None:
            await push.publish(channel, data, idempotency_key=data, retry_for=60)

        begun = time.monotonic()
        audience = await stack.enter_async_context(Audience(proxy.port, options.streams, publish))
        print(f"{options.streams} streams open after {time.monotonic() - begun:.1f} s", flush=True)
        begun = time.monotonic()
        took = await audience.meanwhile(
            lambda: restart_all(workers, valkey, options.trouble), rate=options.rate, visits=options.visits
        )
        print(report(audience, took, time.monotonic() - begun))
        for each in workers:
            if "Traceback" in each.log or "ERROR" in each.log:
                print(each.log[-3000:])


def report(audience: Audience, took: Sequence[float], seconds: float) -> str:
    tally, away = audience.tally, sorted(audience.tally.away)
    counted = {
        "events published": sum(audience.published.values()),
        "events received": tally.received,
        "new streams meanwhile": audience.visits,
        "lost": audience.lost,
        "doubled": tally.doubled,
        "told of a gap": dict(tally.gaps),
        "ended for good, by status": dict(tally.fatal),
        "attempts without a stream": dict(tally.attempts),
        "ends": dict(tally.ends),
        "came back": len(tally.returns),
        "the most in 100 ms, in 1 s": f"{tally.most_returns(0.1)}, {tally.most_returns(1.0)}",
        "away, median and longest, s": f"{away[len(away) // 2]:.2f}, {away[-1]:.2f}" if away else "nobody",
        "each worker stopped within, s": ", ".join(f"{each:.1f}" for each in took),
        "all in all, s": f"{seconds:.1f}",
    }
    width = max(map(len, counted))
    return "\n".join(f"{name:{width}}  {value}" for name, value in counted.items())


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rolling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--proxy", choices=FILES, default="haproxy")
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=20.0, help="events a second, to four channels in turn")
    parser.add_argument(
        "--visits", type=float, default=20.0, help="new streams a second, which are left at once"
    )
    parser.add_argument("--trouble", choices=TROUBLES, default="none")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="for the workers")
    options = parser.parse_args()
    open_files()
    print(f"{options.proxy}, trouble: {options.trouble}; {machine(())}")
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run(options, Path(folder)))


if __name__ == "__main__":
    main()
