"""What a connect costs whose `Last-Event-ID` is hostile, and how much more than one whose id is up to date.

    python -m benchmarks.micro.hostile [--valkey]

Processor time of this process, in memory or over a Valkey that is started for it: for a connect up to its
open event, one after the other and many at a time; and for a client that stays until all gaps were told.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median

from redis.asyncio import Redis

from livepush_asgi import Grant, HistoryBroker, LivePush, MemoryBroker, RedisStreamsBroker
from livepush_asgi.runtime.asgi import Message
from livepush_asgi.wire.cursor import MAX_OF_ONE_TAG, MAX_OFFSET, MAX_POSITIONS, Position, event_id
from tests.valkey import ValkeyProcess

from .fan_out import SCOPE

CHANNELS = (1, 20, 128)
EVENTS, SETTLE = 3, 1.0
ROUNDS, CONNECTS, TOGETHER, STAYING = 5, 60, 20, 3

Places = list[tuple[str, Position]]


class Client:
    """One connect: it is answered when it has the open event and was told of so many gaps."""

    def __init__(self, last_event_id: str, gaps: int) -> None:
        headers = [(b"last-event-id", last_event_id.encode())] if last_event_id else []
        self.scope = {**SCOPE, "headers": headers}
        self.body = b""
        self.answered = asyncio.Event()
        self._gaps = gaps

    async def receive(self) -> Message:
        await asyncio.get_running_loop().create_future()
        raise AssertionError("no client disconnects by itself")

    async def send(self, message: Message) -> None:
        self.body += message.get("body", b"")
        if b"livepush.open" in self.body and self.body.count(b"event: livepush.gap") >= self._gaps:
            self.answered.set()

    send.livepush_inline = True  # type: ignore[attr-defined]


def replaced(places: Places, change: Callable[[Position], Position]) -> str:
    return ",".join(event_id(channel, change(place)) for channel, place in places)


def cursors(places: Places) -> dict[str, str]:
    """Return an id that is up to date, and the hostile ones, by what is wrong with them."""
    beyond = replaced(places, lambda place: place.at(MAX_OFFSET))
    unknown = replaced(places, lambda place: Position("other", 1))
    some = places[: MAX_POSITIONS // MAX_OF_ONE_TAG]
    several = [replaced([each], lambda place, n=n: Position(f"o{n}", 1)) for each in some for n in range(4)]  # type: ignore[misc]
    mixed = zip(beyond.split(","), unknown.split(","), strict=True)
    return {
        "up to date": replaced(places, lambda place: place),
        "far beyond the end": beyond,
        "one beyond the end": replaced(places, lambda place: place.at(place.offset + 1)),
        "unknown epochs": unknown,
        "several entries of a tag": ",".join(several),
        "one tag alone": ",".join([f"{unknown.partition('~')[0]}~other.1"] * MAX_POSITIONS),
        "placeholders": ",".join(event_id(channel, None) for channel, _ in places),
        "mixed": ",".join(each[number % 2] for number, each in enumerate(mixed)),
        "no cursor": "~" * len(beyond),
    }


async def connects(push: LivePush, last_event_id: str, gaps: int, count: int, together: int = 1) -> float:
    """Return the processor time of a connect, in microseconds."""

    async def connect() -> None:
        client = Client(last_event_id, gaps)
        task = asyncio.create_task(push(client.scope, client.receive, client.send))
        await client.answered.wait()
        task.cancel()
        await asyncio.wait([task])

    start = time.process_time()
    for _ in range(count // together):
        await asyncio.gather(*(connect() for _ in range(together)))
    return 1e6 * (time.process_time() - start) / (count // together * together)


async def gaps_of(push: LivePush, last_event_id: str) -> int:
    """Return of how many gaps a client with this id is told."""
    client = Client(last_event_id, 0)
    task = asyncio.create_task(push(client.scope, client.receive, client.send))
    await asyncio.sleep(SETTLE)
    task.cancel()
    await asyncio.wait([task])
    return client.body.count(b"event: livepush.gap")


async def measure(broker: HistoryBroker, channels: int) -> None:
    names = tuple(f"c{number}" for number in range(channels))
    push = LivePush(broker, lambda request: Grant(channels=names))
    async with push.lifespan():
        first = Client("", 0)
        kept = asyncio.create_task(push(first.scope, first.receive, first.send))
        await first.answered.wait()
        for name in names * EVENTS:
            await push.publish(name, "x")
        kinds = cursors([(name, await end_of(broker, name)) for name in names])
        costs: dict[tuple[str, int], list[float]] = {}
        for _ in range(ROUNDS):
            for kind, id_ in kinds.items():
                for together in (1, TOGETHER):
                    cost = await connects(push, id_, 0, CONNECTS, together)
                    costs.setdefault((kind, together), []).append(cost)
        for kind, id_ in kinds.items():
            cells = []
            for together in (1, TOGETHER):
                pairs = zip(costs[kind, together], costs["up to date", together], strict=True)
                ratio = median([mine / first for mine, first in pairs])
                cells.append(f"{median(costs[kind, together]):8.0f} µs {ratio:5.2f}")
            gaps = await gaps_of(push, id_)
            staying = await connects(push, id_, gaps, STAYING)
            print(f"{channels:4} {kind:26} {'   '.join(cells)}   {gaps:4} gaps {staying:8.0f} µs", flush=True)
        kept.cancel()
        await asyncio.wait([kept])


async def end_of(broker: HistoryBroker, channel: str) -> Position:
    page = await broker.read(channel, MAX_OFFSET, 0)
    return Position(page.epoch, page.last)


@asynccontextmanager
async def over_valkey() -> AsyncIterator[HistoryBroker]:
    with tempfile.TemporaryDirectory() as folder, ValkeyProcess(Path(folder)) as valkey:
        async with Redis.from_url(valkey.url) as client:
            broker = RedisStreamsBroker(client)
            yield broker
            await broker.aclose()


async def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--valkey", action="store_true")
    over = parser.parse_args().valkey
    print(f"{'':34} one at a time    {TOGETHER} at a time      until all is told")
    for channels in CHANNELS:
        if over:
            async with over_valkey() as broker:
                await measure(broker, channels)
        else:
            await measure(MemoryBroker(), channels)


if __name__ == "__main__":
    asyncio.run(main())
