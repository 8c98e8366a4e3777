"""A snapshot is the state: what was published before its call is in it, and does not come after it.

One call for all channels that are told of a gap. `test_claims.py` has what happens when a client is cut off
in its state, and `test_seam.py` the interleavings.
"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import anyio
import pytest

from livepush_asgi import (
    Event,
    Grant,
    History,
    JetStreamBroker,
    Limits,
    LivePush,
    MemoryBroker,
    PostgresBroker,
    RedisStreamsBroker,
)
from livepush_asgi.brokers import Broker
from livepush_asgi.grant import Replay
from livepush_asgi.testing import Client, MockBroker, ParsedEvent, Stream

from .faulty_broker import FaultyBroker, FaultyServer
from .nats_server import NatsProcess
from .valkey import ValkeyProcess
from .virtual_clock import let_pass

if TYPE_CHECKING:
    # Imported, it would mark every test here as one with a database: see selection.py.
    from .postgres_server import PostgresProcess

FIFTY = [f"c{number}" for number in range(50)]


class Counters:
    """A counter for each channel, as an application has it: it writes the state, and then it publishes."""

    def __init__(self, *channels: str, replay: Replay = "new") -> None:
        self.channels = channels
        self.replay: Replay = replay
        self.totals = dict.fromkeys(channels, 0)
        #: How many changes of each channel `publish` has returned for.
        self.published = dict.fromkeys(channels, 0)
        self.calls = 0
        #: Awaited in the middle of each call.
        self.during: Callable[[], Awaitable[object]] | None = None

    def authorize(self, request: object) -> Grant:
        return Grant(channels=self.channels, replay=self.replay, snapshot=self.snapshot)

    async def snapshot(self) -> Event:
        self.calls += 1
        state = {"totals": dict(self.totals), "published": dict(self.published)}
        if self.during is not None:
            await self.during()
        return Event(state, event="state")

    async def add(self, push: LivePush, *channels: str, times: int = 1) -> None:
        for _ in range(times):
            for channel in channels or self.channels:
                self.totals[channel] += 1
                await push.publish(channel, [channel, self.totals[channel]])
                self.published[channel] += 1


class Page:
    """What a page has that merges the changes into the state by their numbers, and what it was told."""

    def __init__(self) -> None:
        self.totals: dict[str, int] = {}
        self.states = 0
        self.gaps: list[tuple[str, str]] = []
        #: The changes that were published before the call of their state, and those that came before a state.
        self.stale: list[tuple[str, int]] = []
        self.early: list[tuple[str, int]] = []
        self.order = ""
        self._published: dict[str, int] = {}

    async def read(self, stream: Stream, quiet: float = 1.0) -> None:
        """Read until nothing has come for a while."""
        with suppress(TimeoutError):
            while True:
                self.take(await stream.next_event(quiet, control=True))

    def take(self, event: ParsedEvent) -> None:
        kind = {"livepush.open": "o", "livepush.gap": "g", "state": "S"}.get(event.event, ".")
        self.order += "" if self.order.endswith(kind) and kind != "S" else kind
        match kind:
            case "g":
                gap = json.loads(event.data)
                self.gaps.append((gap["channel"], gap["reason"]))
            case "S":
                self.states += 1
                state = json.loads(event.data)
                self.totals, self._published = state["totals"], state["published"]
            case ".":
                self._count(*json.loads(event.data))

    def _count(self, channel: str, number: int) -> None:
        if not self.states:
            self.early.append((channel, number))
        elif number <= self._published[channel]:
            self.stale.append((channel, number))
        else:
            assert number <= self.totals[channel] + 1, f"{channel} {number} after {self.totals[channel]}"
            self.totals[channel] = max(number, self.totals[channel])


@asynccontextmanager
async def running(
    broker: Broker, counters: Counters, **limits: object
) -> AsyncIterator[tuple[LivePush, Client]]:
    push = LivePush(broker, counters.authorize, limits=Limits(**limits))  # type: ignore[arg-type]
    async with push.lifespan(), Client(push) as client:
        yield push, client


async def come_back_to_trimmed_logs(push: LivePush, client: Client, counters: Counters) -> Page:
    async with client.open("/") as stream:
        await counters.add(push)
        await Page().read(stream)
    await counters.add(push, times=60)
    counters.calls = 0
    page = Page()
    async with client.open("/", last_event_id=stream.last_event_id) as stream:
        await page.read(stream)
        assert page.order == "ogS"
        await counters.add(push)
        await page.read(stream)
    return page


def check(page: Page, counters: Counters, *, reason: str) -> None:
    assert (counters.calls, page.states, page.stale, page.early) == (1, 1, [], [])
    assert sorted(page.gaps) == sorted((channel, reason) for channel in counters.channels)
    assert page.totals == counters.totals


async def test_fifty_trimmed_channels_bring_one_state() -> None:
    counters = Counters(*FIFTY)
    async with running(MemoryBroker(History(events=20)), counters) as (push, client):
        check(await come_back_to_trimmed_logs(push, client, counters), counters, reason="expired")


async def test_fifty_trimmed_channels_of_a_server_bring_one_state() -> None:
    counters = Counters(*FIFTY)
    broker = FaultyBroker(FaultyServer(History(events=20)))
    async with running(broker, counters) as (push, client):
        check(await come_back_to_trimmed_logs(push, client, counters), counters, reason="expired")


async def come_back_to_new_logs(
    counters: Counters, make: Callable[[], Broker], lose: Callable[[], Awaitable[object]]
) -> Page:
    async with running(make(), counters) as (push, client), client.open("/") as stream:
        await counters.add(push)
        await Page().read(stream)
    await lose()
    page = Page()
    async with running(make(), counters) as (push, client):
        await counters.add(push, times=5)
        counters.calls = 0
        async with client.open("/", last_event_id=stream.last_event_id) as stream:
            await page.read(stream)
            assert page.order == "ogS"
            await counters.add(push)
            await page.read(stream)
    return page


async def nothing() -> None:
    pass


@pytest.mark.parametrize("channels", [1, 50])
async def test_nothing_of_a_new_log_comes_after_a_state_that_has_it(channels: int) -> None:
    counters = Counters(*FIFTY[:channels])
    page = await come_back_to_new_logs(counters, MemoryBroker, nothing)
    check(page, counters, reason="epoch")


@pytest.mark.parametrize("channels", [1, 50])
async def test_nothing_of_a_new_log_of_a_server_comes_after_a_state_that_has_it(channels: int) -> None:
    counters, server = Counters(*FIFTY[:channels]), FaultyServer(History())

    async def lose() -> None:
        for channel in counters.channels:
            server.lose_log(channel)

    page = await come_back_to_new_logs(counters, lambda: FaultyBroker(server), lose)
    check(page, counters, reason="epoch")


async def test_an_open_stream_whose_log_is_lost_goes_on_after_the_state() -> None:
    counters, server = Counters("a"), FaultyServer(History())
    page = Page()
    async with running(FaultyBroker(server), counters) as (push, client), client.open("/") as stream:
        await page.read(stream)
        await counters.add(push, times=3)
        await page.read(stream)
        server.lose_log("a")
        await counters.add(push, times=4)
        await page.read(stream)
        await counters.add(push)
        await page.read(stream)
    assert (page.order, page.stale, page.totals, counters.calls) == ("oS.gS.", [], counters.totals, 2)


async def test_a_page_that_opens_gets_one_state_and_what_comes_after_its_call() -> None:
    counters = Counters(*FIFTY)
    page = Page()
    async with running(MemoryBroker(), counters) as (push, client):
        await counters.add(push, times=3)

        async def publish() -> None:
            await counters.add(push, "c7", times=2)

        counters.during = publish
        async with client.open("/") as stream:
            await page.read(stream)
            counters.during = None
            await counters.add(push)
            await page.read(stream)
    assert (page.order, page.stale, page.totals, counters.calls) == ("oS.", [], counters.totals, 1)


async def test_what_came_before_the_call_does_not_come_after_the_state_without_history() -> None:
    counters = Counters("a", "b")
    page = Page()
    async with (
        running(MockBroker(), counters) as (push, client),
        client.open("/", last_event_id="from before") as stream,
    ):
        await counters.add(push)
        await page.read(stream)
        await counters.add(push)
        await page.read(stream)
    assert (page.order[:3], page.stale, page.totals, counters.calls) == ("ogS", [], counters.totals, 1)


@pytest.mark.parametrize("policy", ["resume", "close", "drop_oldest"])
async def test_what_the_state_has_does_not_fill_the_outbox(policy: str) -> None:
    counters, server = Counters("a"), FaultyServer(History())
    broker, page = FaultyBroker(server), Page()
    limits = {"outbox_events": 4, "overflow": policy}
    async with running(broker, counters, **limits) as (push, client), client.open("/") as stream:
        await counters.add(push, times=3)
        await page.read(stream)
        server.lose_log("a")
        # The state waits for the log that is being read, and what comes meanwhile is in the state.
        broker.faults["a"].slow = 0.1
        await counters.add(push, times=10)
        await page.read(stream)
        broker.faults["a"].slow = 0.0
        await counters.add(push)
        await page.read(stream)
    # A slow broker may bring an event late: then it comes again, and nothing is missed.
    assert (page.totals, stream.end_reason) == (counters.totals, None)


async def test_a_log_that_cannot_be_read_does_not_hold_up_the_state() -> None:
    counters, broker, page = Counters("a"), FaultyBroker(), Page()
    async with running(broker, counters) as (_, client), client.open("/") as stream:
        await page.read(stream)
        broker.faults["a"].read = True
        broker.say_lost()
        async with client.open("/") as other:
            page = Page()
            await page.read(other, 0.2)
            assert page.order == "oS"


async def test_channels_that_fall_behind_trimmed_logs_bring_one_state() -> None:
    counters, page = Counters(*FIFTY), Page()
    broker = MemoryBroker(History(events=5))
    async with (
        running(broker, counters, outbox_events=4) as (push, client),
        client.open("/", window=0) as stream,
    ):
        page.take(await stream.next_event(control=True))
        await counters.add(push, times=20)
        await page.read(stream)
        await counters.add(push)
        await page.read(stream)
    assert (page.stale, page.early, page.totals) == ([], [], counters.totals)
    # The first one, and one for what was not taken in time.
    assert counters.calls <= 2


# A client that asks for a replay too.


async def test_a_new_client_gets_the_state_and_then_the_replay_it_asked_for() -> None:
    counters = Counters("a", "b", replay=3)
    page = Page()
    async with running(MemoryBroker(), counters) as (push, client):
        await counters.add(push, times=5)
        async with client.open("/") as stream:
            await page.read(stream)
    assert (page.order, counters.calls, len(page.stale)) == ("oS.", 1, 6)


async def test_a_gap_in_a_replay_brings_no_state_that_the_client_has() -> None:
    counters, broker, page = Counters("a", replay="all"), MemoryBroker(), Page()
    async with running(broker, counters) as (push, client):
        await counters.add(push, times=2)
        await broker.append("a", b"\xfe\xfe")
        await counters.add(push, times=2)
        async with client.open("/") as stream:
            await page.read(stream)
    assert (page.order, page.gaps, counters.calls, len(page.stale)) == ("oS.g.", [("a", "broker")], 1, 4)


async def test_a_client_cut_off_in_its_first_state_still_gets_the_replay() -> None:
    counters = Counters("a", replay=3)
    page = Page()
    async with running(MemoryBroker(), counters) as (push, client):
        await counters.add(push, times=5)
        counters.during = anyio.sleep_forever
        async with client.open("/") as stream:
            page.take(await stream.next_event(control=True))
            await let_pass(1)
        counters.during = None
        page = Page()
        async with client.open("/", last_event_id=stream.last_event_id) as stream:
            await page.read(stream)
    assert (page.order, page.stale) == ("oS.", [("a", 3), ("a", 4), ("a", 5)])


async def test_a_client_with_a_replay_that_comes_back_to_trimmed_logs_gets_one_state() -> None:
    counters = Counters(*FIFTY, replay="last")
    async with running(MemoryBroker(History(events=20)), counters) as (push, client):
        page = await come_back_to_trimmed_logs(push, client, counters)
        check(page, counters, reason="expired")


# A client that is cut off.


async def test_a_client_cut_off_in_its_first_state_gets_nothing_that_the_next_one_has() -> None:
    counters = Counters("a", "b")
    page = Page()
    async with running(MemoryBroker(), counters) as (push, client):
        counters.during = anyio.sleep_forever
        async with client.open("/") as stream:
            await counters.add(push)
            page.take(await stream.next_event(control=True))
            await counters.add(push, times=3)
            await let_pass(1)
        counters.during = None
        page = Page()
        async with client.open("/", last_event_id=stream.last_event_id) as stream:
            await page.read(stream)
            await counters.add(push)
            await page.read(stream)
    assert (page.order, page.stale, page.totals) == ("oS.", [], counters.totals)


async def test_a_client_cut_off_in_its_state_misses_nothing_where_there_is_no_state_any_more() -> None:
    counters = Counters("a", "b")
    push = LivePush(MemoryBroker(), lambda request: grants[0])
    grants = [counters.authorize(None)]
    async with push.lifespan(), Client(push) as client:
        async with client.open("/") as stream:
            await Page().read(stream)
            await counters.add(push, times=3)
            await Page().read(stream)
        counters.during = anyio.sleep_forever
        await counters.add(push, times=3)
        # A channel that is new to the client brings the state again, and the client is cut off in it.
        counters.totals["new"] = 0
        grants[0] = Grant(channels=["a", "b", "new"], snapshot=counters.snapshot)
        async with client.open("/", last_event_id=stream.last_event_id) as stream:
            assert (await stream.next_event(control=True)).event == "livepush.open"
            await let_pass(1)
            await counters.add(push, "a")
        grants[0] = Grant(channels=["a", "b", "new"])
        async with client.open("/", last_event_id=stream.last_event_id) as stream:
            numbers = [event.json() for event in await stream.events(7)]
    assert [number for channel, number in numbers if channel == "a"] == [4, 5, 6, 7]
    assert [number for channel, number in numbers if channel == "b"] == [4, 5, 6]


async def test_changes_during_the_call_reach_a_client_that_was_cut_off_right_after_its_state() -> None:
    counters = Counters("a", "b")
    page = Page()
    async with running(MemoryBroker(History(events=20)), counters) as (push, client):
        async with client.open("/") as stream:
            await Page().read(stream)
            await counters.add(push)
            await Page().read(stream)
        await counters.add(push, times=60)

        async def publish() -> None:
            await counters.add(push, times=2)

        counters.during = publish
        async with client.open("/", last_event_id=stream.last_event_id, window=0) as stream:
            while page.states == 0:
                page.take(await stream.next_event(control=True))
        page.gaps.clear()
        async with client.open("/", last_event_id=stream.last_event_id) as stream:
            await page.read(stream)
    assert (page.order, page.gaps, page.stale, page.totals) == ("ogSo.", [], [], counters.totals)


# Real servers.


@pytest.mark.real_time
async def test_fifty_trimmed_channels_over_redis_bring_one_state(valkey: ValkeyProcess) -> None:
    counters = Counters(*FIFTY)
    async with valkey.client() as redis:
        broker = RedisStreamsBroker(redis, history=History(events=20))
        async with running(broker, counters) as (push, client):
            check(await come_back_to_trimmed_logs(push, client, counters), counters, reason="expired")


@pytest.mark.real_time
@pytest.mark.parametrize("channels", [1, 50])
async def test_nothing_of_a_new_log_over_redis_comes_after_a_state_that_has_it(
    valkey: ValkeyProcess, channels: int
) -> None:
    counters = Counters(*FIFTY[:channels])
    async with valkey.client() as redis:
        page = await come_back_to_new_logs(counters, lambda: RedisStreamsBroker(redis), redis.flushall)
    check(page, counters, reason="epoch")


@pytest.mark.real_time
async def test_an_open_stream_over_redis_whose_log_is_lost_goes_on_after_the_state(
    valkey: ValkeyProcess,
) -> None:
    counters, page = Counters("a"), Page()
    async with valkey.client() as redis:
        broker = RedisStreamsBroker(redis)
        async with running(broker, counters) as (push, client), client.open("/") as stream:
            await counters.add(push, times=3)
            await page.read(stream)
            await redis.flushall()
            await counters.add(push, times=4)
            await page.read(stream)
            await counters.add(push)
            await page.read(stream)
    # The state may have been read between two of the four.
    assert (page.stale, page.totals) == ([], counters.totals)


@pytest.mark.real_time
async def test_fifty_trimmed_channels_over_jetstream_bring_one_state(
    nats_server: NatsProcess, prefix: str
) -> None:
    counters = Counters(*FIFTY)
    broker = JetStreamBroker(nats_server.url, prefix=prefix, history=History(events=20))
    async with running(broker, counters) as (push, client):
        check(await come_back_to_trimmed_logs(push, client, counters), counters, reason="expired")


@pytest.mark.slow
@pytest.mark.real_time
async def test_fifty_trimmed_channels_over_postgres_bring_one_state(
    postgres_server: "PostgresProcess",
) -> None:
    counters = Counters(*FIFTY)
    async with (
        PostgresBroker(postgres_server.dsn, prefix="snapshots", history=History(events=20)) as broker,
        running(broker, counters) as (push, client),
    ):
        check(await come_back_to_trimmed_logs(push, client, counters), counters, reason="expired")
