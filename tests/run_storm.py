"""A storm of runs: readers are cut at random, a producer is killed, and the server is killed and comes back.

Two processes are told to start every run, so that one of them joins. Each attempt notes its start and its
items in a file. Of the runs of the process that is killed, some are taken over with `resume`, some begin
again with `restart`, and some are left.
"""

import asyncio
import contextlib
import json
import random
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from .blocks import Block, Blocks
from .nats_server import NatsProcess
from .serving import REPOSITORY, Serving
from .valkey import ValkeyProcess

Server = ValkeyProcess | NatsProcess
# Where nothing comes to any reader for so long, in seconds, nothing more will.
STALL = 30.0
# How long a reader waits after a refusal, and after a 204 where more is to come, in seconds.
RETRY = 0.2
HEAD_START = 0.3
SERVING = "uvicorn tests.apps.run_worker:app --port {port} --no-access-log"


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """So many `runs` of `items` each, one every `pace` seconds, with so many `readers` each."""

    runs: int
    items: int
    pace: float
    readers: int = 2
    lease: float = 3.0
    #: How long the server is away, in seconds.
    outage: float = 1.0
    #: `History.age`, in seconds: longer than the whole takes.
    age: float = 60.0

    @property
    def seconds(self) -> float:
        """How long a run takes by itself."""
        return self.items * self.pace


SMALL = Size(runs=20, items=24, pace=0.08, lease=1.5, outage=0.5)
FULL = Size(runs=200, items=60, pace=0.4, outage=2.0, age=75.0)


@dataclass
class Tally:
    """What all readers saw."""

    received: int = 0
    connections: int = 0
    cuts: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    gaps: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)


class Reader:
    """A page that follows one run, is cut at random, and comes back with its last id."""

    def __init__(self, ports: Sequence[int], id: str, size: Size, tally: Tally, seed: int) -> None:
        self.id = id
        self.done = False
        #: Whether more than `lost` is to come: the run will be taken over.
        self.awaits_more = False
        #: Whether that begins again.
        self.begins_again = False
        #: The ends that it was told.
        self.ends: list[str] = []
        self.faults: list[str] = []
        #: The last number that it has had, and whether a gap was told since.
        self.last = 0
        self._gap = False
        self._had_gap = False
        self._ports = ports
        self._size = size
        self._tally = tally
        self._random = random.Random(seed)
        self._last_id = ""

    async def run(self) -> None:
        """Follow until the end."""
        while not self.done and not self.faults:
            try:
                await self._follow(self._random.randint(1, self._size.items))
            except OSError:
                self._tally.statuses["no connection"] += 1
            await asyncio.sleep(self._random.uniform(0, 0.02))

    async def _follow(self, most: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._random.choice(self._ports))
        self._tally.connections += 1
        head = f"GET /{self.id} HTTP/1.1\r\nhost: storm\r\naccept: text/event-stream\r\nconnection: close\r\n"
        writer.write(f"{head}last-event-id: {self._last_id}\r\n\r\n".encode())
        blocks = Blocks()
        try:
            while most > 0 and (data := await reader.read(65536)):
                for block in blocks.feed(data)[:most]:
                    most -= 1
                    self._take(block)
                if blocks.status and " 200 " not in blocks.status:
                    await self._refused(blocks.status)
                    return
            self._tally.cuts += most <= 0
        finally:
            writer.transport.abort()

    async def _refused(self, status: str) -> None:
        self._tally.statuses[status] += 1
        if " 204 " not in status:
            # After it an EventSource stops.
            self.faults.append(f"was answered {status}")
        elif self.ends and not self.awaits_more:
            # This is where EventSource stops.
            self.done = True
        await asyncio.sleep(RETRY)

    def _take(self, block: Block) -> None:
        self._last_id = block.id or self._last_id
        if block.event == "livepush.refused":
            self._tally.statuses[block.event] += 1
        match block.event:
            case "livepush.open":
                for reason in json.loads(block.data).get("gaps", {}).values():
                    self._take_gap(reason)
            case "livepush.gap":
                self._take_gap(json.loads(block.data)["reason"])
            case "livepush.end":
                self._take_end(json.loads(block.data)["state"])
            case "":
                if block.data:
                    self._take_number(int(block.data.split()[0]))

    def _take_gap(self, reason: str) -> None:
        self._tally.gaps[reason] += 1
        self._gap = self._had_gap = True

    def _take_number(self, number: int) -> None:
        self._tally.received += 1
        begins_again = number == 1 and self.begins_again and self.ends[-1:] == ["lost"]
        if number != self.last + 1 and not self._gap and not begins_again:
            self.faults.append(f"{number} after {self.last}")
        self.last, self._gap = number, False

    def _take_end(self, state: str) -> None:
        self._tally.ends[state] += 1
        self.ends.append(state)
        if state == "done" and self.last != self._size.items and not self._gap:
            self.faults.append(f"done after {self.last}")
        if state == "done":
            self.awaits_more = False


class Producer:
    """A process that produces runs."""

    def __init__(self, environment: Mapping[str, str], log: Path) -> None:
        command = [sys.executable, "-m", "tests.apps.run_worker"]
        self._log = log.open("wb")
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**environment},
            cwd=REPOSITORY,
        )
        self.pid = self._process.pid

    async def ready(self) -> None:
        """Wait until it takes runs."""
        assert self._process.stdout is not None
        line = await asyncio.to_thread(self._process.stdout.readline)
        assert line == b"ready\n", line

    async def closed(self, id: str) -> float:
        """Return when it says that the iterator of a run was closed, by the clock of the wall."""
        assert self._process.stdout is not None
        line = await asyncio.to_thread(self._process.stdout.readline)
        word, told, at = line.decode().split()
        assert (word, told) == ("closed", id), line
        return float(at)

    def tell(self, mode: str, ids: Sequence[str]) -> None:
        """Tell it to start or to take over these runs."""
        assert self._process.stdin is not None
        self._process.stdin.write("".join(f"{mode} {id}\n" for id in ids).encode())
        self._process.stdin.flush()

    def kill(self) -> None:
        """End it as a power cut would."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Kill it, if it lives."""
        self.kill()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        self._log.close()


class Notes:
    """What the attempts have noted."""

    def __init__(self, path: Path) -> None:
        #: The attempts of each run, in their order.
        self.attempts: defaultdict[str, list[str]] = defaultdict(list)
        self.closed: set[str] = set()
        self.items: defaultdict[str, list[int]] = defaultdict(list)
        #: What is wrong with them.
        self.faults: list[str] = []
        for line in path.read_text().splitlines():
            kind, id, attempt, *rest = line.split()
            match kind:
                case "start":
                    self.attempts[id].append(attempt)
                case "close":
                    self.closed.add(attempt)
                case "item":
                    if self.attempts[id][-1] != attempt:
                        self.faults.append(f"{id}: {attempt} yields {rest[0]} after {self.attempts[id][-1]}")
                    self.items[attempt].append(int(rest[0]))

    def running_in(self, pid: int) -> list[str]:
        """Return the runs of a process that have not ended."""
        last = {id: attempts[-1] for id, attempts in self.attempts.items()}
        return sorted(
            id for id, attempt in last.items() if attempt.startswith(f"{pid}-") and attempt not in self.closed
        )


@dataclass
class Outcome:
    """What came of a storm."""

    tally: Tally
    seconds: float
    #: What is wrong, empty if nothing is.
    reasons: list[str]
    killed: int = 0


def environment_of(server: Server, size: Size, folder: Path) -> dict[str, str]:
    """Return what the processes have to know. They note what they do in this folder."""
    (folder / "notes").touch()
    return {
        "SERVER": server.url,
        "ITEMS": str(size.items),
        "PACE": str(size.pace),
        "LEASE": str(size.lease),
        "AGE": str(size.age),
        "NOTES": str(folder / "notes"),
        "PYTHONPATH": str(REPOSITORY),
    }


@asynccontextmanager
async def workers(
    server: Server, size: Size, folder: Path
) -> AsyncIterator[tuple[list[Serving], list[Producer]]]:
    """Start two processes for readers and two that produce."""
    environment = environment_of(server, size, folder)
    async with AsyncExitStack() as stack:
        serving = [
            Serving(SERVING, folder / f"reading{number}", environment=environment, development=False)
            for number in range(2)
        ]
        producers = []
        for number in range(2):
            producers.append(Producer(environment, folder / f"producing{number}"))
            stack.callback(producers[-1].close)
        for each in serving:
            await stack.enter_async_context(each)
        await asyncio.gather(*(producer.ready() for producer in producers))
        yield serving, producers


async def storm(server: Server, size: Size, folder: Path, say: Callable[[str], None] = print) -> Outcome:
    """Let it happen, and return what came of it."""
    tally, reasons = Tally(), list[str]()
    ids = [f"run-{number}" for number in range(size.runs)]
    async with workers(server, size, folder) as (serving, producers):
        ports = [each.port for each in serving]
        readers = [
            Reader(ports, id, size, tally, seed * size.runs + number)
            for number, id in enumerate(ids)
            for seed in range(size.readers)
        ]
        began = time.monotonic()
        # Both start all of them, and each has a head start in one half.
        for first in (0, 1):
            producers[first].tell("start", ids[first::2])
        await asyncio.sleep(HEAD_START)
        for first in (0, 1):
            producers[first].tell("start", ids[1 - first :: 2])
        reading = [asyncio.create_task(reader.run()) for reader in readers]
        try:
            await asyncio.sleep(size.seconds * 0.3)
            producers[0].kill()
            killed = Notes(folder / "notes").running_in(producers[0].pid)
            resumed, restarted = killed[0::3], killed[1::3]
            say(
                f"killed the producer of {len(killed)} runs: {len(resumed)} are resumed, and "
                f"{len(restarted)} begin again"
            )
            for reader in readers:
                reader.awaits_more = reader.id in {*resumed, *restarted}
                reader.begins_again = reader.id in restarted
            producers[1].tell("resume", resumed)
            producers[1].tell("restart", restarted)
            await asyncio.sleep(size.seconds * 0.2)
            await asyncio.to_thread(server.kill)
            await asyncio.sleep(size.outage)
            await asyncio.to_thread(server.start)
            say(f"the server is back after {time.monotonic() - began:.1f} s")
            await _wait_for(tally, reading)
        finally:
            for task in reading:
                task.cancel()
            ended = await asyncio.gather(*reading, return_exceptions=True)
        seconds = time.monotonic() - began
        reasons += [repr(error) for error in ended if isinstance(error, Exception)]
        left = set(killed) - {*resumed, *restarted}
        for reader in readers:
            reasons += _faults_of(reader, killed=reader.id in killed, left=reader.id in left)
        reasons += _faults_in(Notes(folder / "notes"), ids, {*resumed, *restarted}, size)
        reasons += [f"a traceback in {each.port}" for each in serving if "Traceback" in each.log]
    return Outcome(tally, seconds, reasons, len(killed))


def _faults_of(reader: Reader, *, killed: bool, left: bool) -> list[str]:
    faults = [*reader.faults]
    if not reader.done:
        faults.append(f"has not ended after {reader.last} and {reader.ends}")
    elif reader.ends[-1] != ("lost" if left else "done"):
        faults.append(f"has ended with {reader.ends}")
    if "lost" in reader.ends and not killed:
        faults.append("was told lost, and its producer was not killed")
    return [f"reader of {reader.id}: {fault}" for fault in faults]


def _faults_in(notes: Notes, ids: Sequence[str], taken_over: set[str], size: Size) -> list[str]:
    faults = [*notes.faults]
    for id in ids:
        attempts, wanted = notes.attempts[id], 1 + (id in taken_over)
        if len(attempts) != wanted:
            faults.append(f"{id} was produced by {len(attempts)} attempts, not {wanted}")
        for attempt in attempts:
            numbers = notes.items[attempt]
            if numbers and numbers != list(range(numbers[0], numbers[0] + len(numbers))):
                faults.append(f"{id}: {attempt} has yielded {numbers}")
    return faults


async def _wait_for(tally: Tally, tasks: Sequence[asyncio.Task[None]]) -> None:
    """Return when all have ended, or when nothing comes any more."""
    before, pending = -1, set(tasks)
    while pending and tally.received + sum(tally.ends.values()) > before:
        before = tally.received + sum(tally.ends.values())
        _, pending = await asyncio.wait(pending, timeout=STALL)
