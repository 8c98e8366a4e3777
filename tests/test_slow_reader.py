"""A reader at 1 % of the publishing speed, on real uvicorn: it misses nothing, and costs little memory."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from livepush_asgi import History, LivePush, RedisStreamsBroker, Refusal

from .blocks import Blocks
from .serving import Serving, uvicorn
from .test_uvicorn import APP, statistics
from .valkey import ValkeyProcess

# 48 MiB in all. For each hundred events that are published, the slow one reads the bytes of one.
EVENTS, DATA = 12_000, "x" * 4096
SHARE = 100
HISTORY = History(events=20_000, size=128 * 1024 * 1024)
MAX_GROWTH_KIB = 12 * 1024

pytestmark = [pytest.mark.real_time, pytest.mark.slow]


class Reader:
    """A client that takes from its socket what it is asked to, and hardly more."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._blocks = Blocks()
        #: The events so far, and the names of the component's own ones.
        self.numbers: list[int] = []
        self.told: list[str] = []

    async def take(self, size: int) -> None:
        """Read so many bytes."""
        self._take(await self._reader.readexactly(size))

    async def take_up_to(self, number: int) -> None:
        """Read whatever comes until this event is there."""
        while not self.numbers or self.numbers[-1] < number:
            await self._take_some()

    async def take_opening(self) -> None:
        """Read until the stream is open."""
        while not self.told:
            await self._take_some()

    async def _take_some(self) -> None:
        async with asyncio.timeout(60):
            data = await self._reader.read(65536)
        assert data, "the stream has ended"
        self._take(data)

    def _take(self, data: bytes) -> None:
        for block in self._blocks.feed(data):
            if block.event:
                self.told.append(block.event)
            else:
                self.numbers.append(int(block.data.split(" ")[0]))


@asynccontextmanager
async def opened(server: Serving) -> AsyncIterator[Reader]:
    raw = socket.socket()
    # As small as they come, or the kernel would keep for the slow one what the process should not.
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.setblocking(False)
    await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", server.port))
    streams, writer = await asyncio.open_connection(sock=raw, limit=4096)
    writer.write(b"GET /events HTTP/1.1\r\nhost: slow\r\n\r\n")
    reader = Reader(streams)
    try:
        await reader.take_opening()
        yield reader
    finally:
        writer.transport.abort()


def nobody(request: object) -> Refusal:
    return Refusal(404)


async def resident_kib(server: Serving) -> int:
    found = (await statistics(server))["resident_kib"]
    assert isinstance(found, int)
    return found


async def test_a_reader_at_one_percent_gets_everything_and_memory_stays_flat(
    own_valkey: ValkeyProcess, tmp_path: Path
) -> None:
    environment = {
        "REDIS_URL": own_valkey.url,
        "HISTORY": "1",
        "HISTORY_EVENTS": str(HISTORY.events),
        "HISTORY_SIZE": str(HISTORY.size),
        "SEND_TIMEOUT": "300",
    }
    async with (
        uvicorn(APP, tmp_path / "log", environment=environment) as server,
        own_valkey.client() as redis,
        opened(server) as slow,
        opened(server) as fast,
    ):
        push = LivePush(RedisStreamsBroker(redis, history=HISTORY), nobody)
        sizes = [await resident_kib(server)]
        for first in range(0, EVENTS, SHARE):
            numbers = range(first, first + SHARE)
            await asyncio.gather(*(push.publish("c", f"{number} {DATA}") for number in numbers))
            await slow.take(len(DATA))
            # The neighbour has them all at once, which keeps the publisher to the speed of the process.
            await fast.take_up_to(numbers[-1])
            sizes.append(await resident_kib(server))
        assert len(slow.numbers) <= EVENTS // SHARE
        await slow.take_up_to(EVENTS - 1)
        sizes.append(await resident_kib(server))
    for reader in (slow, fast):
        assert reader.numbers == list(range(EVENTS))
        assert reader.told == ["livepush.open"]
    assert max(sizes) - sizes[0] < MAX_GROWTH_KIB, json.dumps(sizes)
