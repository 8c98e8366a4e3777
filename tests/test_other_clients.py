"""Other people's clients as witnesses: all of them get the same, and nothing that goes along upsets one.

Each runs in a process of its own (`clients/`, `node/clients/`) and prints what it gets.
"""

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlencode

import httpx
import pytest

from livepush_asgi.testing import EventStreamParser

from .programs import need, need_node_package
from .serving import Serving, uvicorn

HERE = Path(__file__).parent
PATIENCE = 60.0
CLIENTS = ["curl", "httpx-sse", "aiohttp-sse-client", "sseclient-py"]
NODE_CLIENTS = ["eventsource", "@microsoft/fetch-event-source", "eventsource-parser"]

Said = tuple[str, str, str]

FIRST = [
    ("message", "one line"),
    ("message", "two\nlines"),
    ("named", "grüße 😀 \u2028 \u2029 \u0085 \x0b \x0c \x1c are no line ends"),
    ("message", ""),
    ("message", '{"data": ["as", "JSON"]}'),
    ("message", ": no comment"),
    ("named", "data: no field\nid: neither\n\nevent: nor this"),
    ("message", "long " * 20_000),
]
# Not all clients keep to the standard in these; `OTHERWISE` has what they make of them.
HARD = {
    "spaces": "  two spaces first",
    "first": "\nan empty line first",
    "last": "an empty line last\n",
}
THEN = [("message", "after some heartbeats"), *(("named", data) for data in HARD.values())]
AWAY = [("message", "while nobody was here"), ("named", "änd this"), ("end", "")]
OTHERWISE = {
    "aiohttp-sse-client": {"spaces": "two spaces first", "last": "an empty line last"},
    "@microsoft/fetch-event-source": {"first": "an empty line first"},
}


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Serving]:
    log = tmp_path_factory.mktemp("server") / "log"
    async with uvicorn("tests.apps.browser:app", log, environment={"HEARTBEAT": "0.05"}) as server:
        yield server


class Witness:
    """A client in a process of its own, on a channel of its own, and what it has to get."""

    def __init__(self, server: Serving, channel: str, process: Process) -> None:
        self._server = server
        self._channel = channel
        self._process = process
        self.said: list[Said] = []
        self.published: list[Said] = []

    async def publish(self, events: Sequence[tuple[str, str]]) -> None:
        for name, data in events:
            event = {} if name == "message" else {"event": name}
            id_ = await post(self._server, "/publish", data, channel=self._channel, **event)
            self.published.append((name, data, id_))

    async def cut_off(self) -> None:
        await post(self._server, "/disconnect", channel=self._channel)

    async def hears_all(self) -> None:
        """Wait until it has said as many events as were published."""
        assert self._process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            while len(self.events) < len(self.published):
                line = await self._process.stdout.readline()
                assert line, f"it has ended, after {self.said[-3:]}"
                name, data, id_ = json.loads(line)
                # aiohttp-sse-client has no name for a message.
                self.said.append((name or "message", data, id_))

    async def ended(self) -> int:
        async with asyncio.timeout(PATIENCE):
            return await self._process.wait()

    @property
    def events(self) -> list[Said]:
        """What it has got of what was published."""
        return [event for event in self.said if not event[0].startswith("livepush.")]

    @property
    def own(self) -> list[str]:
        """The names of the control events that it has got."""
        return [name for name, *_ in self.said if name.startswith("livepush.")]


def read_by(client: str, data: str) -> str:
    """Return what a client makes of data."""
    readings = {HARD[what]: reading for what, reading in OTHERWISE.get(client, {}).items()}
    return readings.get(data, data)


async def post(server: Serving, path: str, body: str = "", **query: str) -> str:
    async with httpx.AsyncClient(trust_env=False, timeout=PATIENCE) as client:
        answer = await client.post(f"{server.url}{path}?{urlencode(query)}", content=body.encode())
        assert answer.status_code == 200
        return answer.text


async def heartbeats(server: Serving, count: int) -> None:
    """Wait until a stream that opens now has had so many heartbeats."""
    parser = EventStreamParser()
    async with (
        asyncio.timeout(PATIENCE),
        httpx.AsyncClient(trust_env=False, timeout=PATIENCE) as client,
        client.stream("GET", f"{server.url}/events?channel=quiet") as response,
    ):
        async for chunk in response.aiter_bytes():
            parser.feed(chunk)
            if len(parser.comments) >= count:
                return


def command_of(client: str) -> list[str]:
    name = f"with_{client.removeprefix('@microsoft/').replace('-', '_')}"
    if client in NODE_CLIENTS:
        need_node_package(client)
        return [need("node"), str(HERE / "node" / "clients" / f"{name}.mjs")]
    if client == "curl":
        need("curl")
    return [sys.executable, str(HERE / "clients" / f"{name}.py")]


@asynccontextmanager
async def witness(server: Serving, client: str, *, bare: bool) -> AsyncIterator[Witness]:
    channel = f"{client}, {'bare' if bare else 'told'}"
    query = urlencode({"channel": channel, "name": channel, "all": 1, "soft": 1})
    url = f"{server.url}/{'bare' if bare else 'events'}?{query}"
    process = await asyncio.create_subprocess_exec(*command_of(client), url, stdout=PIPE, limit=2**20)
    try:
        yield Witness(server, channel, process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.mark.parametrize("bare", [False, True], ids=["control events", "without control events"])
@pytest.mark.parametrize("client", [*CLIENTS, *NODE_CLIENTS])
async def test_every_client_gets_the_same(server: Serving, client: str, bare: bool) -> None:
    async with witness(server, client, bare=bare) as one:
        # It is refused softly, comes back, and has these from history or live, as it happens.
        await one.publish(FIRST)
        await one.hears_all()
        await heartbeats(server, 5)
        await one.publish(THEN)
        await one.hears_all()
        await one.cut_off()
        await one.publish(AWAY)
        await one.hears_all()
        assert await one.ended() == 0
    assert one.events == [(name, read_by(client, data), id_) for name, data, id_ in one.published]
    told = ["livepush.refused", "livepush.open", "livepush.close", "livepush.open"]
    assert one.own == (told[:1] if bare else told)
