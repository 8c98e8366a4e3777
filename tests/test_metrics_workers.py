"""Two workers of a real server, with real streams: a scrape of either gives what all clients saw together."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.parser import text_string_to_metric_families as classic

from .serving import Serving, WireStream, uvicorn
from .test_metrics import Samples, open_metrics, sampled
from .valkey import ValkeyProcess
from .visit import Visit

STREAMS = 24
INTERVAL = "0.1"

pytestmark = [pytest.mark.real_time, pytest.mark.slow]


@asynccontextmanager
async def two_workers(valkey: ValkeyProcess, tmp_path: Path) -> AsyncIterator[Serving]:
    directory = tmp_path / "prometheus"
    directory.mkdir()
    environment = {
        "PROMETHEUS_MULTIPROC_DIR": str(directory),
        "INTERVAL": INTERVAL,
        "REDIS_URL": valkey.url,
        "HISTORY": "1",
        "CAP": "2",
        "WINDOW": "0.5",
        # A heartbeat that nobody reads would be missing from what the clients have.
        "HEARTBEAT": "300",
    }
    app = "tests.apps.metrics:app"
    async with uvicorn(app, tmp_path / "log", "--workers", "2", environment=environment) as server:
        yield server


class Clients:
    """Streams with a slot key each, and all that they got."""

    def __init__(self, server: Serving) -> None:
        self.server = server
        self.open: list[WireStream] = []
        self.all: list[WireStream] = []

    async def enter(self, last_event_id: str = "") -> WireStream:
        path = f"/events?key=k{len(self.all)}"
        stream = await self.server.open(path, last_event_id=last_event_id)
        await stream.next_event("livepush.open")
        self.open.append(stream)
        self.all.append(stream)
        return stream

    def leave(self, stream: WireStream) -> None:
        stream.close()
        self.open.remove(stream)

    @property
    def events(self) -> int:
        return sum(not event.event.startswith("livepush.") for stream in self.all for event in stream.events)

    def count(self, name: str) -> int:
        return sum(event.event == name for stream in self.all for event in stream.events)

    @property
    def bytes(self) -> int:
        return sum(stream.received for stream in self.all)


async def scrape(server: Serving, path: str = "/metrics") -> Samples:
    answer = await server.open(path)
    page = (await answer.read_chunks()).decode()
    answer.abort()
    return sampled(classic(page))


def total(samples: Samples, name: str, **labels: str) -> float:
    """Return the sum of the samples of this name that have these labels."""
    wanted = set(labels.items())
    return sum(value for (found, pairs), value in samples.items() if found == name and wanted <= pairs)


async def until(server: Serving, name: str, value: float, **labels: str) -> Samples:
    """Scrape until a number is there: a worker writes its own ten times a second."""
    async with asyncio.timeout(10):
        while total(samples := await scrape(server), name, **labels) != value:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    return samples


async def telemetry(server: Serving) -> Counter[str]:
    """Return what the readers of both workers have in memory, added up: values, and counts of histograms."""
    found: dict[int, Counter[str]] = {}
    async with asyncio.timeout(20):
        while len(found) < 2:
            answer = await server.open("/telemetry")
            page = json.loads(await answer.read_chunks())
            numbers = found[page["pid"]] = Counter[str]()
            for metric in page["resource_metrics"][0]["scope_metrics"][0]["metrics"]:
                for point in metric["data"]["data_points"]:
                    numbers[metric["name"]] += point.get("value", point.get("count"))
    return sum(found.values(), Counter[str]())


async def pids_with_streams(server: Serving) -> dict[int, int]:
    """Return how many streams each worker has, by its own word."""
    found: dict[int, int] = {}
    async with Visit(server.port) as visit, asyncio.timeout(20):
        while len(found) < 2:
            numbers = await visit.statistics()
            found[numbers.pid] = numbers.streams
    return found


async def test_the_numbers_add_up(valkey: ValkeyProcess, tmp_path: Path) -> None:
    async with two_workers(valkey, tmp_path) as server, Visit(server.port) as visit:
        clients = Clients(server)
        for _ in range(STREAMS):
            await clients.enter()
        # More on each worker than leave.
        while min((await pids_with_streams(server)).values()) <= 5:
            await clients.enter()
        count = len(clients.open)
        await asyncio.gather(*(visit.publish(f"hello {number}", times=20) for number in range(10)))
        for stream in clients.open:
            for _ in range(200):
                await stream.next_event()
        # Some leave and come back for what they missed, one comes with an id of another server.
        for stream in clients.open[:5]:
            clients.leave(stream)
        await until(server, "livepush_streams_ended_total", 5)
        last = clients.open[0].events[-1].last_event_id
        await visit.publish("missed", times=7)
        for stream in clients.open:
            for _ in range(7):
                await stream.next_event()
        for _ in range(3):
            stream = await clients.enter(last_event_id=last)
            for _ in range(7):
                await stream.next_event()
        foreign = await clients.enter(last_event_id="1234")
        await foreign.next_event("livepush.gap")
        for status in (200, 200, 429):
            answer = await server.open("/events?key=same")
            assert answer.status == status
            if status == 200:
                await answer.next_event("livepush.open")
                clients.all.append(answer)
                clients.open.append(answer)
        # A worker writes its numbers one after the other: what comes behind `sent_bytes` is awaited first.
        await until(server, "livepush_replayed_events_total", 3 * 7)
        await until(server, "livepush_gaps_total", 1, reason="unknown")
        await visit.publish("last")
        for stream in clients.open:
            await stream.next_event()
        # The streams may have an event before its publisher has the answer of the broker, and counts it.
        await until(server, "livepush_publish_duration_seconds_count", 208)
        samples = await until(server, "livepush_sent_bytes_total", clients.bytes)

        opened = len(clients.all)
        assert total(samples, "livepush_streams") == len(clients.open)
        assert total(samples, "livepush_streams_opened_total", resume="fresh") == opened - 4
        assert total(samples, "livepush_streams_opened_total", resume="resumed") == 3
        assert total(samples, "livepush_streams_opened_total", resume="gap") == 1
        assert total(samples, "livepush_streams_ended_total", reason="disconnect") == 5
        assert total(samples, "livepush_stream_duration_seconds_count", reason="disconnect") == 5
        assert total(samples, "livepush_streams_refused_total", cause="cap") == 1
        assert total(samples, "livepush_gaps_total", reason="unknown") == clients.count("livepush.gap") == 1
        assert total(samples, "livepush_replayed_events_total") == 3 * 7
        seen = total(samples, "livepush_events_delivered_total") + 3 * 7
        assert seen == clients.events == 200 * count + 7 * (count - 5) + 3 * 7 + len(clients.open)
        assert total(samples, "livepush_open_duration_seconds_count") == opened
        assert total(samples, "livepush_publish_duration_seconds_count") == 208
        assert 0 < total(samples, "livepush_publish_duration_seconds_sum") < 60
        assert total(samples, "livepush_delivery_lag_seconds_count") >= 2
        assert total(samples, "livepush_delivery_lag_seconds_sum") < 5
        assert total(samples, "livepush_healthy") == total(samples, "livepush_info") == 1
        assert total(samples, "livepush_draining") == 0
        assert not [name for name, labels in samples if "pid" in dict(labels)]

        numbers = await telemetry(server)
        assert numbers["livepush.streams"] == len(clients.open)
        assert numbers["livepush.streams.opened"] == numbers["livepush.open.duration"] == opened
        assert numbers["livepush.streams.ended"] == numbers["livepush.stream.duration"] == 5
        assert (numbers["livepush.streams.refused"], numbers["livepush.gaps"]) == (1, 1)
        assert numbers["livepush.events.delivered"] + numbers["livepush.replayed.events"] == clients.events
        assert numbers["livepush.events.published"] == numbers["livepush.publish.duration"] == 208
        assert numbers["livepush.sent.bytes"] == clients.bytes

        # One worker's own text has a part of that alone.
        answer = await server.open("/text")
        page = (await answer.read_chunks()).decode()
        assert 0 < total(sampled(open_metrics(page)), "livepush_streams") < len(clients.open)


async def test_a_worker_that_is_killed_and_those_that_stop(valkey: ValkeyProcess, tmp_path: Path) -> None:
    """The streams of a dead worker do not count any more, and what it counted stays."""
    async with two_workers(valkey, tmp_path) as server:
        clients = Clients(server)
        for _ in range(STREAMS):
            await clients.enter()
        while min((await pids_with_streams(server)).values()) < 1:
            await clients.enter()
        count = len(clients.open)
        before = await until(server, "livepush_streams", count)
        with pytest.raises(asyncio.IncompleteReadError):
            await server.open("/die")
        ended = await asyncio.gather(*(ends_soon(stream) for stream in clients.open))
        left = ended.count(False)
        assert 0 < left < count
        samples = await until(server, "livepush_streams", left)
        name = "livepush_streams_opened_total"
        assert total(samples, name) == total(before, name) == count
        # The new worker of the server has numbers of its own.
        await clients.enter()
        await until(server, name, count + 1)
        server.process.terminate()
        assert await server.ended(20) in (0, -15)
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(tmp_path / "prometheus"))  # type: ignore[no-untyped-call]
    samples = sampled(registry.collect())
    assert total(samples, "livepush_streams") == 0
    assert total(samples, "livepush_healthy") == 1
    assert total(samples, "livepush_streams_ended_total", reason="drain") == left + 1


async def test_the_application_of_the_page(valkey: ValkeyProcess, tmp_path: Path) -> None:
    directory = tmp_path / "prometheus"
    directory.mkdir()
    environment = {"PROMETHEUS_MULTIPROC_DIR": str(directory), "LIVEPUSH_REDIS": valkey.url}
    options = ("--app-dir", "docs/snippets/operate", "--workers", "2")
    async with uvicorn("workers:app", tmp_path / "log", *options, environment=environment) as server:
        for _ in range(4):
            await (await server.open("/events/")).next_event("livepush.open")
        async with asyncio.timeout(10):
            while total(await scrape(server, "/metrics/"), "livepush_streams") != 4:  # noqa: ASYNC110
                await asyncio.sleep(0.05)


async def ends_soon(stream: WireStream) -> bool:
    try:
        await stream.next_event(timeout=1)
    except TimeoutError:
        return False
    except (EOFError, asyncio.IncompleteReadError, ConnectionError):
        return True
    raise AssertionError("an event came that nobody published: " + json.dumps(stream.events[-1].data))
