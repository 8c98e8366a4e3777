"""A storm: clients that are cut at random and come back with their last id, while publishers run.

Every client has to have every event of its channels once and in order, and to be told of no gap.
"""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from .blocks import Block, Blocks
from .serving import Serving

CHANNELS = ["a", "b", "c", "d", "e"]
# Where nothing comes to any client for so long, in seconds, nothing more will. A busy machine takes its time,
# so the whole is not limited; but who is only saved by a heartbeat has been forgotten, and has to be seen.
STALL = 30.0
HEARTBEAT = 120.0
Trouble = Callable[[], Awaitable[object]]


class Publish(Protocol):
    """How an event gets to the broker."""

    async def __call__(self, channel: str, data: str, /) -> object:
        """Return when it is there."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Each channel has `events`, published over `seconds` in bursts of `burst`, each with `padding` bytes.

    A client follows four of the five channels; one in sixteen follows one.
    """

    clients: int
    events: int
    seconds: float
    burst: int = 1
    padding: int = 0


# 300 clients that have to get 2,000 events each, and 20 on one channel: 610,000 deliveries.
FULL = Size(clients=320, events=500, seconds=15)
SMALL = Size(clients=100, events=300, seconds=6)


class Client:
    """One that gives up its connection after a random number of events, and comes back at once."""

    def __init__(self, port: int, number: int, events: int) -> None:
        self.number = number
        if number % 16:
            self.channels = [name for name in CHANNELS if name != CHANNELS[number % len(CHANNELS)]]
        else:
            self.channels = [CHANNELS[number % len(CHANNELS)]]
        #: What is wrong with what it was sent.
        self.faults: list[str] = []
        self.connections = 0
        self.began = asyncio.Event()
        self._port = port
        self._random = random.Random(number)
        self._events = events
        self._next = dict.fromkeys(self.channels, 0)
        self._last_id = ""

    @property
    def missing(self) -> dict[str, int]:
        """How many events it still has to get."""
        return {name: self._events - number for name, number in self._next.items() if number < self._events}

    @property
    def received(self) -> int:
        """How many events it has, all that were in order."""
        return sum(self._next.values())

    async def run(self) -> None:
        """Follow until nothing is missing, or something is wrong."""
        while self.missing and not self.faults:
            with contextlib.suppress(OSError):
                await self._follow(self._random.randint(1, self._events))

    async def _follow(self, most: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        self.connections += 1
        query = "&".join(f"channel={name}" for name in self.channels)
        writer.write(
            f"GET /events?{query} HTTP/1.1\r\nhost: storm\r\nlast-event-id: {self._last_id}\r\n\r\n".encode()
        )
        blocks = Blocks()
        try:
            while most > 0 and self.missing and (data := await reader.read(65536)):
                # What comes behind the cut is as good as lost on its way.
                taken = blocks.feed(data)[:most]
                most -= len(taken)
                for block in taken:
                    self._take(block)
        finally:
            writer.transport.abort()

    def _take(self, block: Block) -> None:
        self._last_id = block.id or self._last_id
        if block.event == "livepush.open":
            self.began.set()
        elif block.event:
            self.faults.append(f"{block.event} {block.data}")
        else:
            channel, number, *_ = block.data.split(" ")
            expected = self._next.get(channel)
            if int(number) != expected:
                self.faults.append(f"{channel}: {number} instead of {expected}")
            self._next[channel] = int(number) + 1


async def storm(server: Serving, publish: Publish, size: Size, trouble: Trouble | None = None) -> None:
    """Publish to clients on all channels; cause the trouble when half of the events are out."""
    clients = [Client(server.port, number, size.events) for number in range(size.clients)]
    tasks = [asyncio.create_task(client.run()) for client in clients]
    try:
        async with asyncio.timeout(60):
            await asyncio.gather(*(client.began.wait() for client in clients))
        async with asyncio.TaskGroup() as publishers:
            half = asyncio.Event()
            for channel in CHANNELS:
                publishers.create_task(_publish_all(publish, channel, size, half))
            await half.wait()
            if trouble is not None:
                await trouble()
        await _wait_for(clients, tasks)
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert [error for error in ended if isinstance(error, Exception)] == []
    wrong = {client.number: (client.faults, client.missing) for client in clients}
    hurt = {number: found for number, found in wrong.items() if any(found)}
    assert not hurt, f"faults and what is missing, by client: {hurt}\n{server.log[-5000:]}"
    assert sum(client.received for client in clients) == size.events * sum(
        len(client.channels) for client in clients
    )
    assert sum(client.connections for client in clients) > 2 * size.clients


async def _wait_for(clients: list[Client], tasks: list[asyncio.Task[None]]) -> None:
    """Return when all have everything, or when nothing comes any more."""
    before, pending = -1, set(tasks)
    while pending and (received := sum(client.received for client in clients)) > before:
        before = received
        _, pending = await asyncio.wait(pending, timeout=STALL)


async def _publish_all(publish: Publish, channel: str, size: Size, half: asyncio.Event) -> None:
    """Publish a channel's events spread over the time; what is late is published at once."""
    now = asyncio.get_running_loop().time
    start = now()
    padding = " " + "x" * size.padding if size.padding else ""
    for first in range(0, size.events, size.burst):
        await asyncio.sleep(max(0.0, start + size.seconds * first / size.events - now()))
        if 2 * first >= size.events:
            half.set()
        numbers = range(first, min(size.events, first + size.burst))
        await asyncio.gather(*(publish(channel, f"{channel} {number}{padding}") for number in numbers))
