"""The stream of a run in each dialect: what a client is sent, cut anywhere, compared with the log."""

import random
import time
from bisect import bisect_left, bisect_right
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from itertools import count
from typing import TypedDict, Unpack

import anyio
import pytest

from livepush_asgi import (
    DrainPolicy,
    EndReason,
    Event,
    Grant,
    History,
    Limits,
    LivePush,
    MemoryBroker,
    Position,
    Received,
    Refusal,
    Run,
    RunFailedError,
    RunState,
    Sent,
    StreamRequest,
    Timing,
)
from livepush_asgi.dialects import Dialect, RunEnd, ag_ui, ai_sdk, frames, livepush, openai
from livepush_asgi.testing import Client, EventStreamParser, ParsedEvent
from livepush_asgi.wire.event import from_payload, split_position
from livepush_asgi.wire.run_record import record_of

CHANNEL = "run:a"
DONE = "[DONE]"


def several() -> Dialect:
    """Return a dialect of somebody else, in which everything has several blocks."""

    def last(end: RunEnd) -> bytes:
        return frames({"type": "last", "state": end.state}, Event("bye", "last"))

    return Dialect(
        name="several",
        first=lambda run_id: frames({"type": "first", "part": 1}, {"type": "first", "part": 2}),
        last=last,
        gap=lambda run_id, reason: frames({"type": "gap"}),
        ends_at_gap=False,
    )


DIALECTS: dict[str, Callable[[], Dialect]] = {
    "livepush": livepush,
    "plain": lambda: livepush(control_events=False),
    "ai-sdk": ai_sdk,
    "ai-sdk that goes on": lambda: ai_sdk(go_on_at_gap=True),
    "ag-ui": ag_ui,
    "ag-ui that goes on": lambda: ag_ui(go_on_at_gap=True),
    "openai": openai,
    "several": several,
}
# Streams here wait for minutes.
pytestmark = pytest.mark.virtual_time
every_dialect = pytest.mark.parametrize("name", DIALECTS)
each_kind = pytest.mark.parametrize("name", ["livepush", "ai-sdk", "ag-ui", "openai", "several"])


def _of(items: AsyncIterator[object]) -> Callable[[int], AsyncIterator[object]]:
    return lambda count: items


def item_of(number: int) -> dict[str, object]:
    """Return an item that every dialect accepts."""
    return {"type": "item", "n": number}


def token_of(event: ParsedEvent) -> str:
    """Return what an event of any of the dialects says: an item, or what the dialect has made."""
    if event.event == "livepush.end":
        return str(event.json()["state"])
    if event.event.startswith("livepush.") or event.event == "last" or event.data == DONE:
        return event.event if event.data != DONE else DONE
    part = event.json()
    match part.get("type"):
        case "item":
            return f"item {part['n']}"
        case "first":
            return f"first {part['part']}"
        case "start" | "RUN_STARTED":
            return "first"
        case "finish" | "RUN_FINISHED":
            return "done"
        case "abort":
            return "cancelled"
        case "last":
            return str(part["state"])
        case "gap" | "CUSTOM":
            return "gap"
        case "data-livepush":
            return "gap" if "gap" in part["data"] else "data"
    text = part.get("errorText") or part.get("message") or part["error"]["message"]
    return {
        "The run has failed.": "failed",
        "The run was lost: its producer has stopped.": "lost",
        "The run was cancelled.": "cancelled",
        "The connection was closed before the end. Read it again to go on.": "running",
    }.get(text, "gap" if "is missing" in text else text)


class Options(TypedDict, total=False):
    """Options of a LivePush."""

    timing: Timing
    limits: Limits
    drain: DrainPolicy


class Serving:
    """A process that serves the run, and counts how many events each stream has sent, by its path."""

    def __init__(self, broker: MemoryBroker, dialect: Dialect, **options: Unpack[Options]) -> None:
        self.sent: dict[str | None, int] = {}
        self.expires_in: float | None = None
        self._dialect = dialect
        self.push = LivePush(broker, self._authorize, on_end=self._end, **options)

    async def _authorize(self, request: StreamRequest) -> Grant | Refusal:
        expires_at = None if self.expires_in is None else time.time() + self.expires_in
        return await self.run.grant(request, slot_key=request.path, expires_at=expires_at)

    def _end(self, grant: Grant, reason: EndReason, duration: float, sent: Sent) -> None:
        self.sent[grant.slot_key] = sent.events

    @property
    def run(self) -> Run:
        return self.push.run("a", dialect=self._dialect)


def count_events(body: bytes) -> int:
    """Return how many events a client dispatches, without those of the component."""
    return len([event for event in EventStreamParser().feed(body) if not event.event.startswith("livepush.")])


def tokens_of(body: bytes) -> list[str]:
    """Return what is in a whole response, without what opens and closes a stream of ours."""
    events = EventStreamParser().feed(body)
    return [token for token in map(token_of, events) if token not in ("livepush.open", "livepush.close")]


FIRSTS = {"several": ["first 1", "first 2"], "livepush": [], "plain": [], "openai": []}


def firsts_of(name: str) -> list[str]:
    return FIRSTS.get(name, ["first"])


def end_of(name: str, state: str) -> list[str]:
    """Return the tokens of the end of a stream."""
    if name == "plain" or (name == "livepush" and state == "running"):
        return []
    if name.startswith("ai-sdk"):
        before = ["data"] if state == "cancelled" else []
        return [*before, state, *([] if state == "running" else [DONE])]
    if name == "openai" and state == "done":
        return [DONE]
    return [state, "last"] if name == "several" else [state]


async def numbers(first: int, last: int, *, then: float = 0.0) -> AsyncIterator[object]:
    for number in range(first, last + 1):
        yield item_of(number)
        await anyio.sleep(1)
    await anyio.sleep(then)


async def failing() -> AsyncIterator[object]:
    raise RunFailedError("The run has failed.")
    yield


@every_dialect
async def test_a_whole_run_an_empty_one_and_one_that_failed_at_once(name: str) -> None:
    dialect = DIALECTS[name]()
    serving = Serving(MemoryBroker(), dialect)
    async with serving.push.lifespan(), Client(serving.push) as client:
        for items, found in [
            (numbers(1, 3), ["item 1", "item 2", "item 3", *end_of(name, "done")]),
            (numbers(1, 0), end_of(name, "done")),
            (failing(), end_of(name, "failed")),
        ]:
            await serving.run.start(items, restart=True)
            for _ in ("while it runs", "after it"):
                async with client.open("/") as page:
                    body = await page.read_body(timeout=60)
                    assert page.headers.items() >= dialect.headers.items()
                assert tokens_of(body) == [*firsts_of(name), *found]
                assert serving.sent["/"] == count_events(body)
                parser = EventStreamParser()
                parser.feed(body)
                if name == "openai":
                    assert parser.empty_blocks == 0
                async with client.open("/", last_event_id=parser.last_event_id) as page:
                    assert page.status == dialect.idle


@each_kind
async def test_a_stream_that_ends_before_its_run(name: str) -> None:
    """Whatever its reason: with silence before, and heartbeats, which are no blocks."""
    dialect = DIALECTS[name]()
    for reason, items in [("lifetime", 0), ("expired", 2), ("revoked", 2), ("drain", 0), ("drain", 2)]:
        broker = MemoryBroker()
        # The producer is another process.
        producer, lifetime = Serving(broker, dialect), 60.0 if reason == "lifetime" else None
        timing = Timing(heartbeat_interval=5, max_lifetime=lifetime)
        reader = Serving(broker, dialect, timing=timing, drain=DrainPolicy(signals=False))

        reader.expires_in = 60.0 if reason == "expired" else None
        async with producer.push.lifespan(), reader.push.lifespan(), Client(reader.push) as client:
            await producer.run.start(numbers(1, items, then=1000))
            async with client.open("/") as page:
                with anyio.move_on_after(40):
                    await page.read_body(timeout=100)
                if reason == "revoked":
                    await reader.push.disconnect(channel=CHANNEL)
                elif reason == "drain":
                    await reader.push.drain()
                body = await page.read_body(timeout=100)
            found = [f"item {number + 1}" for number in range(items)]
            assert tokens_of(body) == [*firsts_of(name), *found, *end_of(name, "running")]
            assert reader.sent["/"] == count_events(body)
            parser = EventStreamParser()
            parser.feed(body)
            assert parser.comments.count("") >= 5
            # No more blocks without data than `control_block` makes of the start record.
            assert parser.empty_blocks <= (name in ("livepush", "plain"))


@each_kind
async def test_a_drain_while_the_end_waits_for_a_slow_client(name: str) -> None:
    """Nothing follows the end: one client fails on data after `[DONE]`."""
    serving = Serving(MemoryBroker(), DIALECTS[name](), drain=DrainPolicy(signals=False))
    async with serving.push.lifespan(), Client(serving.push) as client:
        await serving.run.start(numbers(1, 3))
        async with client.open("/", window=1) as page, anyio.create_task_group() as tasks:
            await anyio.sleep(10)
            tasks.start_soon(serving.push.drain)
            # It has ended the stream, and waits for its client.
            await anyio.sleep(2)
            body = await page.read_body(timeout=60)
        items = ["item 1", "item 2", "item 3"]
        assert tokens_of(body) == [*firsts_of(name), *items, *end_of(name, "done")]


@pytest.mark.parametrize("name", ["ai-sdk", "livepush"])
async def test_what_others_publish_after_the_end_is_none_of_the_run(name: str) -> None:
    """Also many pages of it, for a client that reads them later, and for one that was there."""
    serving = Serving(MemoryBroker(History(events=10_000)), DIALECTS[name]())
    found = [*firsts_of(name), "item 1", *end_of(name, "done")]
    async with serving.push.lifespan(), Client(serving.push) as client:
        await serving.run.start(numbers(1, 1))
        async with client.open("/", window=0) as page:
            await serving.run.wait()
            for number in range(1500):
                await serving.push.publish(CHANNEL, item_of(number))
            assert tokens_of(await page.read_body(timeout=60)) == found
        async with client.open("/") as page:
            assert tokens_of(await page.read_body(timeout=60)) == found


@each_kind
@pytest.mark.parametrize("before", [0, 5])
async def test_a_client_of_a_log_that_was_lost(name: str, before: int) -> None:
    """It is told of a gap, and gets all of the run that was started in the next log."""
    lost, serving = Serving(MemoryBroker(), DIALECTS[name]()), Serving(MemoryBroker(), DIALECTS[name]())
    parser = EventStreamParser()
    async with lost.push.lifespan(), serving.push.lifespan():
        await lost.run.start(numbers(1, 3))
        async with Client(lost.push) as client, client.open("/") as page:
            parser.feed(await page.read_body(timeout=60))
        for number in range(before):
            await serving.push.publish(CHANNEL, item_of(number))
        await serving.run.start(numbers(1, 3))
        responses: list[bytes] = []
        async with Client(serving.push) as client:
            while len(responses) < 5:
                async with client.open("/", last_event_id=parser.last_event_id) as page:
                    if page.status != 200:
                        break
                    responses.append(await page.read_body(timeout=60))
                    parser.feed(responses[-1])
    tokens = [token for token in tokens_of(b"".join(responses)) if not token.startswith("first")]
    items = ["item 1", "item 2", "item 3", *end_of(name, "done")]
    gap = {"livepush": ["livepush.gap"], "plain": [], "ai-sdk": ["gap", "gap", DONE]}.get(name, ["gap"])
    assert tokens in ([*gap, *items], [*gap, *gap, *items])


@each_kind
async def test_a_head_request(name: str) -> None:
    dialect = DIALECTS[name]()
    serving = Serving(MemoryBroker(), dialect)
    async with serving.push.lifespan(), Client(serving.push) as client:
        assert (await client.request("HEAD", "/")).status == dialect.idle
        await serving.run.start(numbers(1, 3))
        answer = await client.request("HEAD", "/")
        assert (answer.status, answer.body) == (200, b"")
        assert answer.headers.items() >= dialect.headers.items()


@each_kind
async def test_a_reader_is_not_given_another_attempt_after_its_own(name: str) -> None:
    """It reads on so slowly that the run has ended and begun again."""
    serving = Serving(MemoryBroker(), DIALECTS[name]())
    async with serving.push.lifespan(), Client(serving.push) as client:
        await serving.run.start(numbers(1, 3))
        async with serving.run.read() as items:
            # After the last item, it meets nothing of its attempt but the end.
            id = [await anext(items) for _ in range(3)][-1].id
        async with client.open("/", window=0, last_event_id=id) as page:
            async with serving.run.read(last_event_id=id) as items:
                await serving.run.wait()
                await serving.run.start(numbers(4, 5), restart=True)
                await serving.run.wait()
                rest = [item.data async for item in items if isinstance(item, Received)]
            assert (rest, items.state) == ([], RunState.DONE)
            assert tokens_of(await page.read_body(timeout=60)) == end_of(name, "done")


@dataclass(frozen=True)
class Entry:
    """An event or a record of the log. An event after an end is none of the run."""

    offset: int
    begin: int
    item: str | None = None
    end: str | None = None
    in_run: bool = True


@dataclass(frozen=True)
class Response:
    """What a client has asked for and was sent, up to where it was cut."""

    path: str
    last_event_id: str
    body: bytes
    ended: bool


@dataclass
class Story:
    """A run that is started, ended and started again by chance, its readers, and all that its log has had."""

    chance: random.Random
    name: str
    dialect: Dialect
    broker: MemoryBroker
    log: list[Entry] = field(default_factory=list)
    responses: list[Response] = field(default_factory=list)
    paths: "count[int]" = field(default_factory=count)
    over: bool = False
    #: The offsets of the items, by the beginning of the run. Made when the log is complete.
    items_of: dict[int, list[int]] = field(default_factory=dict)

    async def watch(self, started: anyio.Event) -> None:
        """Take down what is appended, also what the history drops soon."""
        subscription, begin, in_run = await self.broker.subscribe(CHANNEL), 0, False
        started.set()
        while not self.over:
            message = await subscription.get_message(timeout=1.0)
            if message is None:
                continue
            position, payload = split_position(message)
            assert position is not None
            block = from_payload(payload)
            if (record := record_of(block)) is None:
                (event,) = EventStreamParser().feed(block)
                self.log.append(Entry(position.offset, begin, token_of(event), in_run=in_run))
                continue
            begin = record.begin
            end = record.state if record.kind == "end" and in_run else None
            in_run = record.kind == "start" or (in_run and record.kind != "end")
            self.log.append(Entry(position.offset, begin, end=end))
        await subscription.close()

    async def produce(self, serving: Serving) -> None:
        """Start the run, end it in one of the ways, and start it again, so many times."""
        chance, run, number, push = self.chance, serving.run, 1, serving.push
        for attempt in range(chance.choice([1, 2, 2, 3])):
            last = number + chance.choice([0, 3, 30, 130])
            restart = chance.random() < 0.4
            items = self.items(number, last, fails=chance.random() < 0.5)
            if chance.random() < 0.3 and (restart or not attempt):
                await run.queue(restart=attempt > 0)
                await anyio.sleep(chance.uniform(0, 10))
            resumes = attempt > 0 and not restart
            if not await run.start(
                _of(items) if resumes else items,
                restart=attempt > 0 and restart,
                resume=resumes,
            ):
                break
            number = last
            if chance.random() < 0.3:
                await anyio.sleep(chance.uniform(0, 20))
                await run.cancel()
            if chance.random() < 0.3:
                await push.publish(CHANNEL, item_of(chance.randrange(1000, 2000)))
            await run.wait()
            if chance.random() < 0.2:
                await push.publish(CHANNEL, item_of(3000))
            await anyio.sleep(chance.choice([0, 0, 5, 30]))
        await anyio.sleep(30)
        self.over = True

    async def items(self, first: int, last: int, *, fails: bool) -> AsyncIterator[object]:
        for number in range(first, last):
            yield item_of(number)
            if self.chance.random() < 0.3:
                await anyio.sleep(self.chance.uniform(0, 2))
        if fails:
            raise RunFailedError("The run has failed.")

    async def read(self, client: Client) -> None:
        """Read the run, at some pace, cut off at some byte, and come back, until it is over."""
        chance, last_event_id = self.chance, ""
        while not self.over:
            await anyio.sleep(chance.uniform(0, 10))
            window = chance.choice([0, 1, 64])
            path = f"/{next(self.paths)}"
            async with client.open(path, window=window, last_event_id=last_event_id or None) as page:
                if page.status != 200:
                    assert page.status == self.dialect.idle
                    last_event_id = "" if chance.random() < 0.5 else last_event_id
                    continue
                ended, body = False, b""
                with anyio.move_on_after(chance.choice([0, 1, 10, 40, 1000])):
                    await anyio.sleep(chance.choice([0, 0, 10]))
                    body = await page.read_body(timeout=2000)
                    ended = True
                if not ended:
                    body = b"".join([message.get("body", b"") for message in page.messages])
                    body = body[: chance.randrange(len(body) + 1)]
            self.responses.append(Response(path, last_event_id, body, ended))
            parser = EventStreamParser(last_event_id)
            parser.feed(body)
            last_event_id = parser.last_event_id if chance.random() < 0.8 else ""

    def check(self, response: Response) -> None:
        """Raise AssertionError for a response that is wrong for every beginning of the run."""
        begins = sorted({entry.begin for entry in self.log})
        faults = [self.fault(response, begin) for begin in begins]
        assert None in faults, (dict(zip(begins, faults, strict=True)), response, self.log)

    def fault(self, response: Response, begin: int) -> str | None:
        """Return what is wrong with a response, for a run that began at this offset."""
        # An id can also say that the whole log is owed.
        has_position = response.last_event_id and "~!" not in response.last_event_id
        asked = Position.of_id(response.last_event_id).offset if has_position else None
        at = begin - 1 if asked is None or asked < begin else asked
        events = EventStreamParser().feed(response.body)
        tokens = [(token_of(event).replace("livepush.gap", "gap"), event.id) for event in events]
        told = [token for token, _ in tokens if token not in ("livepush.open", "livepush.close")]
        tokens = [(token, id) for token, id in tokens if token not in ("livepush.open", "livepush.close")]
        if at == begin - 1:
            firsts = firsts_of(self.name)
            if told[: len(firsts)] != firsts[: len(told)] or (response.ended and len(told) < len(firsts)):
                return "no beginning"
            tokens = tokens[len(firsts) :]
        if any(token.startswith("first") for token, _ in tokens):
            return "two beginnings"
        gap, from_beginning = False, asked is None
        if asked is not None and asked < begin and tokens and self.name != "plain" and tokens[0][0] != "gap":
            return "the output of another attempt goes on"
        by_offset = {entry.offset: entry for entry in self.log}
        while tokens and (
            tokens[0][0].startswith("item") or (not self.dialect.ends_at_gap and tokens[0][0] == "gap")
        ):
            token, id = tokens.pop(0)
            if token == "gap":
                gap, from_beginning = True, False
                continue
            assert id is not None
            offset = Position.of_id(id).offset
            if offset <= at or by_offset[offset].item != token or by_offset[offset].begin != begin:
                return f"{token} is out of place"
            if not gap and self.missing(begin, at, offset):
                return f"items are missing before {token}"
            # A reader that has not met the start of the attempt need not know that it has ended.
            if from_beginning and not by_offset[offset].in_run:
                return f"{token} is after the end"
            at, gap = offset, False
        rest = [token for token, _ in tokens]
        ends = [["gap", "gap", DONE] if self.name.startswith("ai") else ["gap"], end_of(self.name, "running")]
        if self.name == "plain":
            ends.append([])
        for entry in self.log:
            if (
                entry.end
                and entry.offset > at
                and entry.begin == begin
                and (gap or not self.missing(begin, at, entry.offset))
            ):
                ends.append(end_of(self.name, entry.end))
        if rest in ends or (not response.ended and any(rest == end[: len(rest)] for end in ends)):
            return None
        return f"it ends with {rest}, and not with one of {ends}"

    def missing(self, begin: int, after: int, before: int) -> bool:
        """Return whether the log has had items of the run between these offsets."""
        if begin not in self.items_of:
            of_run = [entry for entry in self.log if entry.item and entry.in_run and entry.begin == begin]
            self.items_of[begin] = [entry.offset for entry in of_run]
        return bisect_left(self.items_of[begin], before) > bisect_right(self.items_of[begin], after)


@every_dialect
@pytest.mark.parametrize("seed", [0, *[pytest.param(n, marks=pytest.mark.slow) for n in range(1, 4)]])
async def test_random_stories(name: str, seed: int) -> None:
    """Whatever ends the run and its streams, each response has the items in order, once, or tells a gap."""
    chance = random.Random(f"{name} {seed}")
    broker = MemoryBroker(History(events=chance.choice([120, 10_000])))
    story = Story(chance, name, DIALECTS[name](), broker)
    serving = Serving(broker, story.dialect, limits=Limits(outbox_events=chance.choice([5, 1000])))
    push = serving.push
    async with push.lifespan(), Client(push, deadline=600) as client, anyio.create_task_group() as tasks:
        started = anyio.Event()
        tasks.start_soon(story.watch, started)
        await started.wait()
        for _ in range(3):
            tasks.start_soon(story.read, client)
        tasks.start_soon(story.produce, serving)
    assert story.responses
    for response in story.responses:
        story.check(response)
        if response.ended:
            assert serving.sent[response.path] == count_events(response.body)
