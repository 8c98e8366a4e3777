"""A rolling restart: workers behind a proxy are replaced one after the other, under streams and events.

Each client does what EventSource does: it comes back after the reconnection time that it was told, with its
last event id, and gives up for good at any answer that is no event stream.
"""

import asyncio
import contextlib
import re
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from httptools import HttpResponseParser

from livepush_asgi.testing import EventStreamParser, ParsedEvent

from .serving import REPOSITORY, Serving, WireStream

T = TypeVar("T")
OPERATIONS = REPOSITORY / "examples" / "operations"
CHANNELS = ["news", "prices", "orders", "scores"]
# EventSource's own reconnection time where it was told none, in milliseconds.
RETRY = 3000
BETWEEN_TRIES = 0.05
READY_TIMEOUT = 30.0
EXIT_TIMEOUT = 60.0
OPEN_TIMEOUT = 60.0
# Where nothing comes to any client for so long, in seconds, nothing more will. And how long a proxy that lets
# clients in one by one may take.
STALL, LONGEST = 15.0, 60.0
# The names of what may go wrong before a stream.
UNREACHABLE, CUT_BEFORE, REFUSED, SENT_AWAY = "unreachable", "cut before its answer", "refused", "sent away"


@dataclass
class Tally:
    """What all clients of a rolling restart saw."""

    #: Answers that end EventSource for good, by status.
    fatal: Counter[int] = field(default_factory=Counter)
    #: Attempts that brought no stream, after which a client tries again.
    attempts: Counter[str] = field(default_factory=Counter)
    #: How streams ended: the reason of `livepush.close`, or "cut".
    ends: Counter[str] = field(default_factory=Counter)
    #: The reconnection times that clients were told at the end of a stream, in milliseconds.
    told: list[int] = field(default_factory=list)
    gaps: Counter[str] = field(default_factory=Counter)
    received: int = 0
    doubled: int = 0
    #: When a stream was open again, by the loop's clock, and how long after its end.
    returns: list[float] = field(default_factory=list)
    away: list[float] = field(default_factory=list)

    def most_returns(self, seconds: float) -> int:
        """Return the most clients that came back within so many seconds."""
        times = sorted(self.returns)
        first = most = 0
        for last, moment in enumerate(times):
            while moment - times[first] > seconds:
                first += 1
            most = max(most, last - first + 1)
        return most


class Answer(asyncio.Protocol):
    """One request of an EventSource, and its answer as it comes."""

    def __init__(self, request: bytes, last_event_id: str, take: Callable[[ParsedEvent], None]) -> None:
        self.status = 0
        self.is_stream = False
        self.ended = asyncio.Event()
        self.events = EventStreamParser(last_event_id)
        self._request = request
        self._take = take
        self._http = HttpResponseParser(self)
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._http.feed_data(data)

    def connection_lost(self, error: Exception | None) -> None:
        self.ended.set()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser of HTTP."""
        if name.lower() == b"content-type":
            self.is_stream = value.startswith(b"text/event-stream")

    def on_headers_complete(self) -> None:
        """Called by the parser of HTTP."""
        self.status = self._http.get_status_code()

    def on_body(self, body: bytes) -> None:
        """Called by the parser of HTTP."""
        if self.is_stream:
            for event in self.events.feed(body):
                self._take(event)

    def on_message_complete(self) -> None:
        """Called by the parser of HTTP."""
        self.abort()

    def abort(self) -> None:
        """Give up the connection."""
        self._transport.abort()


class EventSource:
    """A page's EventSource, which checks the numbers of the events of its channels.

    Its reconnection times are `pace` times as long as those that it was told.
    """

    def __init__(self, port: int, channels: Sequence[str], tally: Tally, pace: float = 1.0) -> None:
        self.channels = channels
        self.began = asyncio.Event()
        #: The number of the next event of each channel.
        self.next = dict.fromkeys(channels, 0)
        self.lost = 0
        self._port = port
        self._tally = tally
        self._pace = pace
        self._last_id = ""
        self._retry = RETRY
        self._said: list[ParsedEvent] = []
        self._ended_at: float | None = None

    async def run(self) -> None:
        """Stay connected until cancelled, or until an answer ends it for good."""
        while await self._follow():  # noqa: ASYNC110  (the time that the client was told)
            await asyncio.sleep(self._pace * self._retry / 1000)

    async def visit(self) -> None:
        """Open a stream, and leave when it is open."""
        follow = asyncio.create_task(self._follow())
        began = asyncio.create_task(self.began.wait())
        await asyncio.wait([follow, began], return_when=asyncio.FIRST_COMPLETED)
        for task in (follow, began):
            task.cancel()
        await asyncio.gather(follow, began, return_exceptions=True)

    async def _follow(self) -> bool:
        query = "&".join(f"channel={name}" for name in self.channels)
        fields = {"host": "rolling", "accept": "text/event-stream", "cache-control": "no-store"}
        if self._last_id:
            fields["last-event-id"] = self._last_id
        lines = [f"GET /events/?{query} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
        answer = Answer("\r\n".join([*lines, "", ""]).encode(), self._last_id, self._take)
        self._said.clear()
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: answer, "127.0.0.1", self._port)
        except OSError:
            self._tally.attempts[UNREACHABLE] += 1
            return True
        try:
            await answer.ended.wait()
        finally:
            answer.abort()
        self._last_id = answer.events.last_event_id
        self._retry = self._retry if answer.events.retry is None else answer.events.retry
        return self._count_end(answer)

    def _count_end(self, answer: Answer) -> bool:
        tally, names = self._tally, [event.event for event in self._said]
        if not answer.status:
            tally.attempts[CUT_BEFORE] += 1
        elif answer.status != 200 or not answer.is_stream:
            tally.fatal[answer.status] += 1
            return False
        elif "livepush.refused" in names:
            tally.attempts[REFUSED] += 1
        elif "livepush.open" not in names:
            tally.attempts[SENT_AWAY] += 1
        else:
            last = self._said[-1]
            if last.retry is not None:
                tally.told.append(last.retry)
            tally.ends[last.json()["reason"] if last.event == "livepush.close" else "cut"] += 1
            self._ended_at = asyncio.get_running_loop().time()
        return True

    def _take(self, event: ParsedEvent) -> None:
        tally = self._tally
        match event.event:
            case "message":
                channel, text = event.data.split(" ")
                number, expected = int(text), self.next[channel]
                tally.received += 1
                tally.doubled += number < expected
                self.lost += max(0, number - expected)
                self.next[channel] = max(expected, number + 1)
                return
            case "livepush.open":
                self.began.set()
                if self._ended_at is not None:
                    now = asyncio.get_running_loop().time()
                    tally.returns.append(now)
                    tally.away.append(now - self._ended_at)
                    self._ended_at = None
            case "livepush.gap":
                tally.gaps[event.json()["reason"]] += 1
        self._said.append(event)


class Audience:
    """Many pages with a stream each, inside an `async with` block, and the publisher of what they hear."""

    def __init__(
        self, port: int, count: int, publish: Callable[[str, str], Awaitable[object]], *, pace: float = 1.0
    ) -> None:
        self.tally = Tally()
        self.published = dict.fromkeys(CHANNELS, 0)
        self.visits = 0
        self._port = port
        self._publish = publish
        size = len(CHANNELS)
        # Every fourth page has two channels, the others one.
        self._pages = [
            EventSource(
                port,
                [CHANNELS[n % size], *([CHANNELS[(n + 1) % size]] if n // size % size == 0 else [])],
                self.tally,
                pace,
            )
            for n in range(count)
        ]
        self._tasks: list[asyncio.Task[None]] = []
        self._calm = False

    async def __aenter__(self) -> "Audience":
        self._tasks = [asyncio.create_task(page.run()) for page in self._pages]
        opening = [asyncio.create_task(page.began.wait()) for page in self._pages]
        _, late = await asyncio.wait(opening, timeout=OPEN_TIMEOUT)
        if late:
            for task in (*self._tasks, *late):
                task.cancel()
            raise TimeoutError(f"{len(late)} streams have not opened: {self.tally}")
        return self

    async def __aexit__(self, *exception: object) -> None:
        for task in self._tasks:
            task.cancel()
        ended = await asyncio.gather(*self._tasks, return_exceptions=True)
        # The sockets are closed in the loop's next turn.
        await asyncio.sleep(0)
        assert [error for error in ended if isinstance(error, Exception)] == []

    async def publish(self, rate: float) -> None:
        """Publish to all channels in turn, so many events a second, until it is calm."""
        loop = asyncio.get_running_loop()
        start, count = loop.time(), 0
        while not self._calm:
            await asyncio.sleep(max(0.0, start + count / rate - loop.time()))
            channel = CHANNELS[count % len(CHANNELS)]
            await self._publish(channel, f"{channel} {self.published[channel]}")
            self.published[channel] += 1
            count += 1

    async def visit(self, rate: float) -> None:
        """Open new streams that are left at once, so many a second, until it is calm."""
        async with asyncio.TaskGroup() as visits:
            while not self._calm:
                page = EventSource(self._port, CHANNELS[:1], self.tally)
                visits.create_task(page.visit())
                self.visits += 1
                await asyncio.sleep(1 / rate)

    @property
    def missing(self) -> int:
        """How many events the pages still have to get."""
        return sum(self.published[name] - page.next[name] for page in self._pages for name in page.channels)

    @property
    def lost(self) -> int:
        """How many events pages were not sent although they were sent a later one, or never."""
        return self.missing + sum(page.lost for page in self._pages)

    async def meanwhile(self, work: Callable[[], Awaitable[T]], *, rate: float, visits: float) -> T:
        """Publish and open streams, so many a second, while something is done; then wait for all events."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.publish(rate))
            tasks.create_task(self.visit(visits))
            try:
                done = await work()
            finally:
                self._calm = True
        await self.settle()
        return done

    async def settle(self) -> None:
        """Return when all pages have everything, when nothing comes any more, or when it takes too long."""
        loop, before = asyncio.get_running_loop(), -1
        start = since = loop.time()
        while self.missing and loop.time() < min(since + STALL, start + LONGEST):
            if self.tally.received > before:
                before, since = self.tally.received, loop.time()
            await asyncio.sleep(BETWEEN_TRIES)


async def is_ready(worker: Serving) -> bool:
    """Return whether a worker's readiness check says 200."""
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        answer = await WireStream.open(worker.port, "/health/ready")
        answer.abort()
        return answer.status == 200
    return False


async def wait_ready(worker: Serving) -> None:
    """Wait until a worker's readiness check says 200."""
    async with asyncio.timeout(READY_TIMEOUT):
        while not await is_ready(worker):  # noqa: ASYNC110  (another process sets no event)
            await asyncio.sleep(BETWEEN_TRIES)


def configuration(name: str, workers: Sequence[Serving]) -> str:
    """Return a configuration of the example for these workers, without the other ones."""
    lines = (OPERATIONS / name).read_text().splitlines(keepends=True)
    text = "".join(line for line in lines if not any(f":800{n}" in line for n in range(len(workers) + 1, 5)))
    return re.sub(r"127\.0\.0\.1:800(\d)", lambda found: f"127.0.0.1:{workers[int(found[1]) - 1].port}", text)


async def replace(
    worker: Serving, noticed: Callable[[], Awaitable[None]], number: signal.Signals = signal.SIGTERM
) -> float:
    """Stop a worker, start it again, wait until the proxy has noticed, and return how long the stop took."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    worker.send_signal(number)
    await worker.ended(EXIT_TIMEOUT)
    took = loop.time() - start
    await worker.start_again()
    await wait_ready(worker)
    await noticed()
    return took


def worker(log: Path, environment: dict[str, str]) -> Serving:
    """Return a worker of the example, on a port of its own."""
    command = (
        "uvicorn app:app --app-dir examples/operations --port {port} --no-access-log --backlog 2048 "
        "--timeout-graceful-shutdown 30"
    )
    return Serving(command, log, environment=environment, development=False)
