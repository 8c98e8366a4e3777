"""A random model of runs: each reader has the output once and in order, whole or with a gap, and its end.

A *story* is several processes with one run: starts of each kind, cancels, processes that are killed, stand
still or end, logs that are lost, a broker that is away, readers that are cut and come back with any id that
they had. It runs in memory and in virtual time, so a seed tells the same story each time.

`python -m tests.run_stories 20000` tells as many on all cores, and `--tell SEED` one with what happened. With
`--memory` the processes are LivePush objects over one MemoryBroker, where a run appends in other ways.
"""

import argparse
import asyncio
import json
import logging
import os
import random
import re
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import anyio

from livepush_asgi import (
    BrokerUnavailableError,
    DrainPolicy,
    Gap,
    Grant,
    Limits,
    LivePush,
    MemoryBroker,
    NotRunningError,
    Refusal,
    RunNotFoundError,
    RunState,
    RunStatus,
    StreamRequest,
)
from livepush_asgi.brokers import READ_BYTES, Page, Subscription
from livepush_asgi.brokers.history import History
from livepush_asgi.brokers.mailbox import Mailbox
from livepush_asgi.dialects import Dialect, frames
from livepush_asgi.testing.exchange import Exchange, http_scope
from livepush_asgi.wire.cursor import Cursor, Position
from livepush_asgi.wire.event import RESERVED_PREFIX, data_of, from_payload
from livepush_asgi.wire.parser import EventStreamParser
from livepush_asgi.wire.run_record import RunRecord, record_in

from .faulty_broker import FaultyBroker, FaultyServer
from .virtual_clock import VirtualClockLoop

RUN = "a"
CHANNEL = f"run:{RUN}"
LENIENT = Dialect(
    name="lenient",
    first=lambda run_id: frames({"first": run_id}),
    last=lambda end: frames({"end": end.state, "count": end.count}),
    gap=lambda run_id, reason: frames({"gap": reason}),
    ends_at_gap=False,
)
STRICT = replace(LENIENT, name="strict", ends_at_gap=True)
# How long readers may take to end after all faults and the run have ended, in virtual seconds.
PATIENCE = 300.0
FOREIGN = "foreign."
#: How many turns of the loop a story may take: one that takes more spins.
TURNS = 3_000_000
CHUNK = 50
#: What happens in memory, which has no faults.
IN_MEMORY = ("join", "restart", "resume", "resume", "cancel", "twice", "end", "publish", "publish", "clock")


class PromiseBrokenError(AssertionError):
    """Raised when a reader saw what it should not have seen, or a producer did what it should not."""


@dataclass
class Entry:
    """An event or a record that was appended."""

    number: int
    position: Position
    #: None for an event.
    record: RunRecord | None
    text: str
    #: The number of the output: a start that begins anew has begun it.
    output: int
    #: Whether the server has lost it.
    lost: bool = False

    @property
    def is_foreign(self) -> bool:
        """Whether another program has published it to the channel of the run."""
        return self.text.startswith(FOREIGN)


class Ledger:
    """All that was ever appended to the run's channel."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.by_text: dict[str, Entry] = {}
        #: How many outputs there were.
        self.outputs = 0

    def note(self, channel: str, position: Position, payload: bytes) -> None:
        """Called for each event and record that is appended, in order."""
        if channel != CHANNEL:
            return
        record = record_in(payload)
        output = next((entry.output for entry in reversed(self.entries) if not entry.lost), self.outputs)
        if record is not None and record.kind == "start" and record.begin == position.offset:
            # With a count it goes on after the log was lost.
            self.outputs += not record.count
            output = self.outputs
        text = "" if record is not None else data_of(from_payload(payload))
        entry = Entry(len(self.entries), position, record, text, output)
        if text in self.by_text:
            raise PromiseBrokenError(f"{text} was appended twice")
        if record is None:
            self.by_text[text] = entry
        self.entries.append(entry)

    def at(self, position: Position) -> Entry | None:
        """Return the entry at a position, which may have been appended in an earlier epoch."""
        found = [entry for entry in self.entries if entry.position.offset == position.offset]
        of_epoch = [entry for entry in found if entry.position.epoch == position.epoch]
        kept = [entry for entry in found if not entry.lost]
        return next(iter([*of_epoch, *kept, *found]), None)

    def kept_from(self, first: int) -> list[Entry]:
        """Return what the log has, if its first offset is this one."""
        return [entry for entry in self.entries if not entry.lost and entry.position.offset >= first]


class Server(FaultyServer):
    """A server that may be away, and lose its log or the end of it."""

    def __init__(self, history: History) -> None:
        super().__init__(history)
        self.ledger = Ledger()

    def appended(self, channel: str, position: Position, payload: bytes) -> None:
        self.ledger.note(channel, position, payload)

    def lose(self, count: int | None) -> None:
        """Lose the log, or its newest events."""
        if count is None:
            self.lose_log(CHANNEL)
            for broker in self.brokers:
                broker.say_lost()
        else:
            self.restart(CHANNEL, count)
        last = 0 if count is None else self.log(CHANNEL).last
        for entry in self.ledger.entries:
            entry.lost = entry.lost or entry.position.offset > last

    def kept(self) -> list[Entry]:
        return self.ledger.kept_from(self.page(CHANNEL, 0, 0).first)


class Memory(MemoryBroker):
    """The memory of one process, with several LivePush objects in it."""

    def __init__(self, history: History) -> None:
        super().__init__(history=history)
        self.ledger = Ledger()
        self._keys: set[str] = set()

    async def append(
        self,
        channel: str,
        payload: bytes,
        *,
        idempotency_key: str | None = None,
        expected_position: Position | None = None,
    ) -> Position:
        # Before the append, since it delivers at once.
        if idempotency_key not in self._keys:
            self._note(channel, [payload], expected_position)
        if idempotency_key is not None:
            self._keys.add(idempotency_key)
        return await super().append(
            channel, payload, idempotency_key=idempotency_key, expected_position=expected_position
        )

    async def append_batch(
        self, channel: str, payloads: Sequence[bytes], *, expected_position: Position
    ) -> Position:
        # It calls `append_nowait`.
        return await super().append_batch(channel, payloads, expected_position=expected_position)

    def append_nowait(
        self, channel: str, payloads: Sequence[bytes], *, expected_position: Position
    ) -> Position:
        self._note(channel, payloads, expected_position)
        return super().append_nowait(channel, payloads, expected_position=expected_position)

    def _note(self, channel: str, payloads: Sequence[bytes], expected: Position | None) -> None:
        page = self._bounds(channel)
        end = Position(page.epoch, page.last)
        if expected is not None and expected != end and (page.last or expected.offset):
            return
        for payload in payloads:
            end = end.next()
            self.ledger.note(channel, end, payload)

    def _bounds(self, channel: str) -> Page:
        try:
            # It waits for nothing.
            self.read(channel, 0, 0).send(None)
        except StopIteration as returned:
            page: Page = returned.value
            return page
        raise AssertionError("a read in memory has waited")

    def kept(self) -> list[Entry]:
        return self.ledger.kept_from(self._bounds(CHANNEL).first)


class Held(Subscription):
    """A subscription of a process that may stand still."""

    def __init__(self, inner: Subscription, link: "Link") -> None:
        self._inner = inner
        self._link = link

    async def get_message(self, *, timeout: float) -> bytes | None:
        message = await self._inner.get_message(timeout=timeout)
        await self._link.going.wait()
        if self._link.dead:
            raise BrokerUnavailableError("the process is dead")
        return message

    async def close(self) -> None:
        await self._inner.close()


class Link(FaultyBroker):
    """The connection of one process. While it is stopped, nothing gets through.

    Live payloads are asked for one by one, or those of one turn are delivered `together`.
    """

    def __init__(
        self,
        server: Server,
        chance: random.Random | None = None,
        cuts: float = 0.0,
        latency: float = 0.0,
        *,
        together: bool = False,
    ) -> None:
        super().__init__(server)
        self.together = together
        # The live payloads that come while it is stopped.
        self._kept: list[tuple[Mailbox, bytes]] = []
        self.going = anyio.Event()
        self.going.set()
        self.dead = False
        self._chance = chance or random.Random(0)
        self._cuts = cuts
        self._latency = latency

    def go(self) -> None:
        """Go on after a stop."""
        self.going.set()
        kept, self._kept = self._kept, []
        for mailbox, payload in kept:
            self.arrive(mailbox, payload)

    def arrive(self, mailbox: Mailbox, payload: bytes) -> None:
        if self.dead:
            return
        if not self.together or self.going.is_set():
            super().arrive(mailbox, payload)
        else:
            self._kept.append((mailbox, payload))

    async def _travel(self) -> None:
        await anyio.sleep(self._chance.uniform(0, self._latency))
        await self.going.wait()
        if self.dead:
            raise BrokerUnavailableError("the process is dead")

    def end_cuts(self) -> None:
        self._cuts = 0.0

    def _cut(self) -> None:
        if self._chance.random() < self._cuts:
            raise BrokerUnavailableError("cut, as the story wants it")

    async def append(
        self,
        channel: str,
        payload: bytes,
        *,
        idempotency_key: str | None = None,
        expected_position: Position | None = None,
    ) -> Position:
        await self._travel()
        self._cut()
        position = await super().append(
            channel, payload, idempotency_key=idempotency_key, expected_position=expected_position
        )
        await self._travel()
        self._cut()
        return position

    async def read(self, channel: str, after: int, limit: int, *, max_bytes: int = READ_BYTES) -> Page:
        await self._travel()
        page = await super().read(channel, after, limit, max_bytes=max_bytes)
        await self._travel()
        return page

    async def subscribe(self, channel: str) -> Subscription:
        await self._travel()
        subscription = await super().subscribe(channel)
        return subscription if self.together else Held(subscription, self)


class BatchLink(Link):
    """A connection that takes several events in one call, all of them or the first ones."""

    async def append(
        self,
        channel: str,
        payload: bytes,
        *,
        idempotency_key: str | None = None,
        expected_position: Position | None = None,
    ) -> Position:
        return await super().append(
            channel, payload, idempotency_key=idempotency_key, expected_position=expected_position
        )

    async def append_batch(
        self, channel: str, payloads: Sequence[bytes], *, expected_position: Position
    ) -> Position:
        await self._travel()
        self._cut()
        position = expected_position
        for payload in payloads[: self._chance.randint(1, len(payloads))]:
            position = await FaultyBroker.append(self, channel, payload, expected_position=position)
        await self._travel()
        self._cut()
        return position


class Job:
    """An iterator whose items are named, and what became of it."""

    def __init__(self, number: int, chance: random.Random, *, memory: bool = False) -> None:
        self.number = number
        self.begun = self.closed = False
        self.accepted: bool | None = None
        self._count = chance.choice([1, 40, 300] if memory else [0, 1, 3, 10, 40])
        # None: it waits for nothing between its items.
        paces = [None, 0.0, 0.001, 0.01, 0.2]
        self._pace = chance.choice(paces if memory else [0.0, 0.01, 0.5, 2.0, 20.0])
        self._fails = chance.random() < 0.15

    async def __call__(self) -> AsyncIterator[object]:
        self.begun = True
        try:
            for number in range(self._count):
                if self._pace is not None:
                    await anyio.sleep(self._pace)
                yield f"{self.number}.{number}"
            if self._fails:
                raise ZeroDivisionError("as the story wants it")
        finally:
            self.closed = True


class Process:
    """A process with a LivePush."""

    def __init__(self, story: "Story", number: int) -> None:
        self.number = number
        self.link = story.link()
        broker = story.memory if self.link is None else self.link
        assert broker is not None
        self.push = LivePush(
            broker,
            self._authorize,
            # Each takes a handler of the process otherwise.
            drain=DrainPolicy(signals=False),
            limits=Limits(outbox_events=story.outbox, replay_events=story.replay),
        )
        self.usable = True
        #: The connections of readers.
        self.clients: set[anyio.CancelScope] = set()
        self._story = story
        self._end = asyncio.Event()
        self.task = asyncio.create_task(self._run())

    async def _authorize(self, request: StreamRequest) -> Grant | Refusal:
        dialect = None if request.path == "/page" else STRICT if request.path == "/strict" else LENIENT
        return await self.push.run(RUN, dialect=dialect).grant(request)

    async def _run(self) -> None:
        async with self.push.lifespan():
            await self._end.wait()

    def kill(self) -> None:
        """Let nothing get in or out any more."""
        assert self.link is not None
        self.usable = False
        self.link.dead = True
        self.link.go()
        for scope in self.clients:
            scope.cancel()

    def end(self) -> None:
        """Stop as after a SIGTERM."""
        self.usable = False
        self._end.set()

    async def close(self) -> None:
        if self.link is not None:
            self.link.dead = not self.usable
            self.link.go()
        self._end.set()
        await self.task


@dataclass
class Place:
    """What a reader has had up to one id."""

    id: str | None = None
    #: The number of the last entry that it has had.
    seen: int = -1
    #: Whether a gap was told since.
    gap: bool = False
    #: The output that it has a part of, None if it was told since that this is over.
    output: int | None = None


@dataclass
class Reader:
    """One reader, over all its connections."""

    story: "Story"
    number: int
    kind: str
    place: Place = field(default_factory=Place)
    places: list[Place] = field(default_factory=list)
    #: The output that its stream has.
    output: int | None = None
    #: How the run has ended for it.
    end: RunState | None = None
    done: bool = False

    async def run(self) -> None:
        chance = self.story.chance
        while not self.done:
            await anyio.sleep(chance.uniform(0, 15))
            if self.story.quiet.is_set() and chance.random() < 0.5:
                # Nothing happens any more but that the run goes on.
                await self.story.settled.wait()
            choice = chance.random()
            if choice < 0.1:
                self.place = Place()
            elif choice < 0.3 and self.places:
                self.place = chance.choice(self.places)
            self.end = self.output = None
            process = self.story.any_process()
            most = chance.choice([0.0, 1.0, 10.0, 60.0, 1000.0])
            pause = chance.choice([0.0, 0.0, 0.0, 0.5, 5.0])
            if self.story.settled.is_set():
                most, pause = PATIENCE, 0.0
            self.story.say(f"{self.name} reads in {process.number} after {self.place.id} for {most} s")
            try:
                with anyio.move_on_after(most) as scope:
                    process.clients.add(scope)
                    if self.kind == "code":
                        await self._read(process, pause)
                    else:
                        await self._follow(process, pause)
            except (BrokerUnavailableError, NotRunningError):
                pass
            process.clients.discard(scope)
            self.done = self.story.settled.is_set() and self.end is not None

    @property
    def name(self) -> str:
        return f"reader {self.number} ({self.kind})"

    def fail(self, text: str) -> None:
        raise PromiseBrokenError(f"{self.name}: {text}")

    async def _read(self, process: Process, pause: float) -> None:
        reader = process.push.run(RUN).read(last_event_id=self.place.id)
        try:
            async with reader as items:
                async for item in items:
                    if isinstance(item, Gap):
                        self.take_gap(item.id, item.reason)
                    else:
                        self.take(item.data, item.id)
                    if pause and not self.story.settled.is_set():
                        await anyio.sleep(pause)
                if items.state is not RunState.RUNNING:
                    self.take_end(items.state, items.count, None)
        except RunNotFoundError:
            self.take_nothing()

    async def _follow(self, process: Process, pause: float) -> None:
        exchange = Exchange(window=4, after_disconnect="ignore")
        scope = http_scope(
            "GET",
            f"/{self.kind}",
            root_path="",
            spec_version="2.3",
            headers=(),
            query="",
            cookies={},
            last_event_id=self.place.id,
        )
        parser = EventStreamParser(self.place.id or "")
        task = asyncio.create_task(exchange.run(process.push, scope))
        try:
            while (message := await exchange.take()) is not None:
                if "status" in message:
                    if message["status"] == 204:
                        self.take_nothing()
                        return
                    if message["status"] != 200:
                        return
                    continue
                for event in parser.feed(message.get("body", b"")):
                    told = json.loads(event.data) if event.data.startswith("{") else {}
                    if "end" in told or event.event == "livepush.end":
                        state = RunState(told.get("end") or told["state"])
                        if state is not RunState.RUNNING:
                            self.take_end(state, told["count"], event.id)
                    elif "gap" in told or event.event == "livepush.gap" or told.get("gaps"):
                        self.take_gap(event.id, told.get("gap", told.get("reason", "open")))
                    elif event.event == "message" and not told:
                        self.take(event.data, event.id or "")
                if parser.last_event_id and parser.last_event_id != self.place.id:
                    self._move(parser.last_event_id, self.place.seen, gap=self.place.gap)
                if pause and not self.story.settled.is_set():
                    await anyio.sleep(pause)
        finally:
            exchange.leave()
            with anyio.CancelScope(shield=True):
                await exchange.settle(60.0)
                await task

    def _move(self, id: str | None, seen: int, *, gap: bool) -> None:
        self.place = Place(id or self.place.id, seen, gap, self.place.output)
        self.places.append(self.place)

    def take(self, text: str, id: str) -> None:
        entry = self.story.ledger.by_text.get(text)
        if entry is None:
            self.fail(f"{text} was never appended")
            return
        self.story.say(f"{self.name} gets {text} [{id}]")
        if entry.number <= self.place.seen:
            self.fail(f"{text} came twice or out of order")
        if entry.is_foreign:
            self._check_whole(entry.output, entry.number, f"before {text}")
            self._move(id, entry.number, gap=self.place.gap)
            return
        if self.output not in (None, entry.output):
            self.fail(f"{text} came on a stream that had another output")
        self.output = entry.output
        self._check_whole(entry.output, entry.number, f"before {text}", text)
        if self.place.output not in (None, entry.output) and not self.place.gap:
            self.fail(f"{text} is of another output than the last item, and nothing was told")
        self._move(id, entry.number, gap=False)
        self.place.output = entry.output

    def take_gap(self, id: str | None, reason: object) -> None:
        self.story.say(f"{self.name} is told of a gap: {reason} [{id}]")
        # It may be told that the run was started again, and that it was there before the broker.
        allowed = {"broker"} if self.story.ledger.outputs < 2 else {"broker", "epoch", "open"}
        if self.story.calm and reason not in allowed:
            self.fail(f"a gap ({reason}), and nothing was lost")
        # The log may be another one, with another output.
        self.output = None
        self._move(id, self.place.seen, gap=True)

    def take_end(self, state: RunState, count: int | None, id: str | None) -> None:
        self.story.say(f"{self.name} is told of the end: {state} {count} [{id}]")
        ledger, end = self.story.ledger, -1
        if id is not None:
            cursor = Cursor.parse(id)
            assert cursor is not None
            (position,) = cursor.positions_in(CHANNEL)
            entry = ledger.at(position)
            if entry is None:
                self.fail(f"its end is at {position}, where nothing is")
                return
            self._check_whole(entry.output, entry.number, "before the end")
            end = entry.number
        else:
            ends = [entry for entry in ledger.entries if entry.record and entry.record.kind == "end"]
            ends = [entry for entry in ends if entry.record and entry.record.state is state]
            if not ends:
                self.fail(f"{state}, and no end says so")
            # It does not say which one.
            errors = []
            for entry in ends:
                try:
                    if entry.number > self.place.seen:
                        self._check_whole(entry.output, entry.number, "before the end")
                except PromiseBrokenError as error:
                    errors.append(error)
            if len(errors) == len(ends):
                raise errors[-1]
        self.end = state
        self.place = replace(self.place, output=None)
        self.places.append(self.place)
        if id is not None:
            self._move(id, max(end, self.place.seen), gap=self.place.gap)

    def take_nothing(self) -> None:
        """There is no run, or the reader has had all of it."""
        self.story.say(f"{self.name} finds nothing")
        kept = [entry for entry in self.story.kept() if entry.record is not None]
        if kept and self.kind == "code" and self.story.settled.is_set():
            self.fail("there is no run, and the log has one")
        if self.story.settled.is_set():
            if kept:
                last = kept[-1]
                self._check_whole(last.output, last.number, "before a 204")
            self.end = RunState.LOST

    def _check_whole(self, output: int, number: int, when: str, text: str = "") -> None:
        """Check that nothing of an output is missing before the entry with this number."""
        if self.place.gap:
            return
        for entry in self.story.ledger.entries[self.place.seen + 1 : number]:
            # The producer that went on after a loss knows of it.
            of_same = entry.text.split(".")[0] == text.split(".")[0]
            if entry.is_foreign or entry.record is not None:
                continue
            if entry.output == output and (not entry.lost or of_same):
                self.fail(f"{entry.text} is missing {when}, and no gap was told")


class Story:
    """What happens to one run."""

    def __init__(
        self, seed: int, say: Callable[[str], None] = lambda text: None, *, memory: bool = False
    ) -> None:
        self.chance = chance = random.Random(seed)
        self._say = say
        self.cuts = chance.choice([0.0, 0.0, 0.05, 0.2])
        self.latency = chance.choice([0.0, 0.001, 0.05])
        self.outbox = chance.choice([1, 5, 1000])
        self.replay = chance.choice([3, 10_000, 10_000])
        self.lease = chance.choice([1.0, 5.0, 15.0])
        self.retry_for = chance.choice([2.0, 60.0])
        # Whether nothing is ever lost, so that nobody may be told of a gap.
        self.calm = chance.random() < 0.5
        history = 10_000 if self.calm else chance.choice([10_000, 10_000, 20])
        self.replay = 10_000 if self.calm else self.replay
        # By itself, so that each seed tells what it told without it.
        more = random.Random(f"batches {seed}")
        self.batches, self.together = more.random() < 0.5, more.random() < 0.5
        self.server = Server(History(events=history))
        self.memory = Memory(History(events=history)) if memory else None
        self.ledger = self.server.ledger if self.memory is None else self.memory.ledger
        self.quiet, self.settled = asyncio.Event(), asyncio.Event()
        self.jobs: list[Job] = []
        self.processes: list[Process] = []
        self.errors: list[BaseException] = []
        self.tasks: list[asyncio.Task[None]] = []
        self._running_starts = 0

    def say(self, text: str) -> None:
        self._say(f"{asyncio.get_running_loop().time():9.3f} {text}")

    def link(self) -> Link | None:
        """Return the connection of another process; None if all is in memory."""
        if self.memory is not None:
            return None
        kind = BatchLink if self.batches else Link
        return kind(self.server, self.chance, self.cuts, self.latency, together=self.together)

    def kept(self) -> list[Entry]:
        return (self.memory or self.server).kept()

    def any_process(self) -> Process:
        usable = [process for process in self.processes if process.usable]
        return self.chance.choice(usable)

    def spawn(self, job: Coroutine[Any, Any, None]) -> None:
        async def run() -> None:
            try:
                await job
            except (BrokerUnavailableError, NotRunningError) as error:
                self.say(f"an operation: {error}")
            except PromiseBrokenError as error:
                self.errors.append(error)
            except Exception as error:
                self.errors.append(error)

        self.tasks.append(asyncio.create_task(run()))

    async def tell(self) -> None:
        chance = self.chance
        self.processes = [Process(self, number) for number in range(3)]
        kinds = [chance.choice(["code", "page", "lenient", "strict"]) for _ in range(3)]
        readers = [Reader(self, number, kind) for number, kind in enumerate(kinds)]
        reading = [asyncio.create_task(reader.run()) for reader in readers]
        self.spawn(self._start("join"))
        for _ in range(chance.randint(2, 14)):
            await anyio.sleep(chance.choice([0.0, 0.01, 1.0, chance.uniform(0, 40)]))
            self._operate()
            self._check(reading)
        await self._settle()
        self._check(reading)
        _, late = await asyncio.wait(reading, timeout=PATIENCE)
        self._check(reading)
        if late:
            names = ", ".join(reader.name for reader in readers if not reader.done)
            raise PromiseBrokenError(f"not ended: {names}")
        await self._check_end()

    def _check(self, reading: list[asyncio.Task[None]]) -> None:
        for task in reading:
            if task.done():
                task.result()
        if self.errors:
            raise self.errors[0]

    def _operate(self) -> None:
        chance = self.chance
        process = self.any_process()
        common = ["join", "restart", "resume", "resume", "cancel", "twice", "kill", "stop", "end", "away"]
        common += ["publish"]
        operation = chance.choice(
            IN_MEMORY
            if self.memory
            else [*common, "deaf", "slow", "clock", *([] if self.calm else ["lose", "tail"])]
        )
        self.say(f"--- {operation} in {process.number}")
        match operation:
            case "join" | "restart" | "resume":
                self.spawn(self._start(operation))
            case "cancel":
                self.spawn(self._cancel())
            case "twice":
                self.spawn(self._cancel())
                self.spawn(self._cancel())
            case "end":
                process.end()
                self.processes.append(Process(self, len(self.processes)))
            case "publish":
                self.spawn(self._publish(process))
            case "clock":
                self.clock = chance.choice([-100.0, 100.0, 0.0])
            case _:
                assert process.link is not None
                self._harm(operation, process, process.link)

    def _harm(self, operation: str, process: "Process", link: Link) -> None:
        chance = self.chance
        match operation:
            case "kill":
                process.kill()
                self.processes.append(Process(self, len(self.processes)))
            case "stop":
                if link.going.is_set():
                    link.going = anyio.Event()
                self.spawn(self._wake(link, chance.choice([0.5, 3.0, 30.0, 100.0])))
            case "away":
                self.server.away = True
                self.spawn(self._come_back(chance.choice([0.1, 3.0, 30.0])))
            case "deaf":
                link.faults[RESERVED_PREFIX].cut = True
                link.faults[CHANNEL].lossy = chance.random() < 0.5
            case "slow":
                link.faults[CHANNEL].late = chance.choice([0.1, 3.0])
            case "lose":
                self.server.lose(None)
            case "tail":
                self.server.lose(min(self.server.log(CHANNEL).last, chance.randint(0, 5)))

    #: How far the clock of the wall is set forward, in seconds.
    clock = 0.0
    #: How many events another program has published to the channel.
    foreign = 0

    async def _wake(self, link: Link, seconds: float) -> None:
        await anyio.sleep(seconds)
        if not link.dead:
            link.go()

    async def _come_back(self, seconds: float) -> None:
        await anyio.sleep(seconds)
        self.server.away = False

    async def _publish(self, process: Process) -> None:
        for _ in range(self.chance.choice([1, 3, 150])):
            self.foreign += 1
            await process.push.publish(CHANNEL, f"{FOREIGN}{self.foreign}")

    async def _start(self, mode: str) -> None:
        job = Job(len(self.jobs), self.chance, memory=self.memory is not None)
        self.jobs.append(job)
        process = self.any_process()
        job.accepted = await process.push.run(RUN).start(
            (lambda count: job()) if mode == "resume" else job(),
            restart=mode == "restart",
            resume=mode == "resume",
            lease=self.lease,
            retry_for=self.retry_for,
        )
        self.say(f"--- job {job.number} {mode} in {process.number}: {job.accepted}")

    async def _cancel(self) -> None:
        process = self.any_process()
        before = len(self.ledger.entries)
        status = await process.push.run(RUN).cancel()
        self.say(f"--- cancelled in {process.number}: {status}")
        if status is None:
            return
        if status.state is RunState.RUNNING:
            later = self.ledger.entries[before:]
            if not any(entry.record and entry.record.kind == "start" for entry in later) and self.calm:
                raise PromiseBrokenError("cancel has returned, and the run is running")

    async def _settle(self) -> None:
        """End all faults, and the run."""
        self.server.away = False
        links = [process.link for process in self.processes if process.link is not None]
        for link in links:
            if not link.dead:
                link.heal()
                link.go()
        self.quiet.set()
        await anyio.sleep(self.chance.choice([1.0, 200.0]))
        self.say("--- settled")
        for link in links:
            link.end_cuts()
        self.settled.set()
        _, late = await asyncio.wait(self.tasks, timeout=PATIENCE)
        if late:
            raise PromiseBrokenError("a start or a cancel does not return")
        if not self.calm:
            # A run whose log was lost is found again as soon as its producer has begun another one.
            while any(job.begun and not job.closed for job in self.jobs):
                await self._cancel()
                await anyio.sleep(1)
                if not any(process.usable for process in self.processes):
                    break
        elif self.chance.random() < 0.5:
            await self._cancel()
        else:
            with suppress(RunNotFoundError), anyio.move_on_after(PATIENCE) as scope:
                await self.any_process().push.run(RUN).wait()
            if scope.cancelled_caught:
                if not any(job.begun and not job.closed for job in self.jobs):
                    status = await self.any_process().push.run(RUN).status()
                    raise PromiseBrokenError(f"the run does not end: {status}")
                # Some take 800 seconds.
                await self._cancel()

    async def _check_end(self) -> None:
        statuses = [await process.push.run(RUN).status() for process in self.processes if process.usable]
        if len(set(statuses)) > 1:
            raise PromiseBrokenError(f"two states: {statuses}")
        kept = self.kept()
        self._check_status(statuses[0], kept)
        self._check_fences(self.ledger.entries)
        await anyio.sleep(self.lease + 5)
        alive = [process for process in self.processes if process.usable]
        dead = any(not process.usable for process in self.processes)
        assert alive
        for job in self.jobs:
            if job.begun and not job.closed and not dead:
                raise PromiseBrokenError(f"job {job.number} was not closed")
            if job.accepted is False and job.begun:
                raise PromiseBrokenError(f"job {job.number} was refused and has begun")

    def _check_status(self, status: RunStatus | None, kept: list[Entry]) -> None:
        attempt, state, count = "", RunState.RUNNING, 0
        for entry in kept:
            record = entry.record
            if record is None:
                count += state is RunState.RUNNING
            elif record.kind == "start":
                count = record.count or 0
                attempt, state = record.attempt, RunState.RUNNING
            elif record.kind == "end" and state is RunState.RUNNING and attempt in ("", record.attempt):
                state = record.state
        if status is None:
            if attempt:
                raise PromiseBrokenError("no status, and the log has a run")
        elif status.state is not state and self.calm:
            raise PromiseBrokenError(f"the status is {status.state}, and the log says {state}")
        elif self.calm and not self.foreign and status.count != count:
            raise PromiseBrokenError(f"the status has {status.count} events, and the log {count}")

    def _check_fences(self, entries: list[Entry]) -> None:
        """Check that events follow a start and no end, and that each job has its items in order."""
        running, last = False, dict[str, int]()
        for entry in entries:
            record = entry.record
            if record is None:
                job, number = entry.text.split(".")
                if entry.is_foreign:
                    continue
                if not running and self.calm:
                    raise PromiseBrokenError(f"{entry.text} was appended after an end")
                if int(number) != last.get(job, -1) + 1:
                    raise PromiseBrokenError(f"{entry.text} was appended after {last.get(job)}")
                last[job] = int(number)
            elif record.kind == "start":
                if running and self.calm:
                    raise PromiseBrokenError("a start, and no end before it")
                running, attempt = True, record.attempt
            elif record.kind == "end" and running and record.attempt == attempt:
                running = False

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        for process in self.processes:
            await process.close()


@contextmanager
def wall_clock(story: Story, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Let `time.time` be the virtual time of a loop, and what the story adds to it."""
    real = time.time
    time.time = lambda: 1.7e9 + loop.time() + story.clock
    try:
        yield
    finally:
        time.time = real


def error_of(
    seed: int, say: Callable[[str], None] = lambda text: None, *, memory: bool = False
) -> str | None:
    """Tell the story of a seed, and return what was wrong."""

    async def tell() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualClockLoop)
        loop.bound(TURNS)
        story = Story(seed, say, memory=memory)
        with wall_clock(story, loop):
            try:
                await story.tell()
            finally:
                pending = asyncio.all_tasks() - {asyncio.current_task()}
                del pending
                await story.close()

    # The pauses between tries are random.
    random.seed(seed)
    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        try:
            runner.run(tell())
        except PromiseBrokenError as error:
            return str(error)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    return None


def failures(seeds: range, *, memory: bool) -> list[tuple[int, str]]:
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    found = ((seed, error_of(seed, memory=memory)) for seed in seeds)
    return [(seed, error) for seed, error in found if error is not None]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.run_stories", description=__doc__)
    parser.add_argument("stories", type=int, nargs="?", default=2000)
    parser.add_argument("--first", type=int, default=0, help="the seed of the first story")
    parser.add_argument("--tell", type=int, help="tell the story of this seed")
    parser.add_argument("--memory", action="store_true", help="stories over MemoryBroker, without faults")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    if given.tell is not None:
        logging.disable(logging.CRITICAL)
        print(error_of(given.tell, print, memory=given.memory))
        return 0
    began, last = time.monotonic(), given.first + given.stories
    chunks = [range(seed, min(seed + CHUNK, last)) for seed in range(given.first, last, CHUNK)]
    with ProcessPoolExecutor(given.jobs) as pool:
        found = [
            failure
            for failed in pool.map(partial(failures, memory=given.memory), chunks)
            for failure in failed
        ]
    kinds: defaultdict[str, list[int]] = defaultdict(list)
    for seed, error in found:
        kinds[re.sub(r"\d+(\.\d+)?|\([a-z]+\)", "#", error)[:110]].append(seed)
    seconds = time.monotonic() - began
    print(f"{given.stories} stories in {seconds:.0f} s: {len(found)} failed")
    for name, seeds in sorted(kinds.items(), key=lambda item: -len(item[1])):
        print(f"{len(seeds):6} {name}  (seeds {', '.join(map(str, seeds[:8]))})")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
