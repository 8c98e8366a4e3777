"""What a client has a claim to, from the first id on: each event once and in order, or a gap in its place.

Here: channels that are not live when the stream opens, grants that change, states that are cut off, ids of
publishers, and what goes on while a stream waits for a snapshot or for history. `test_seam.py` has the
interleavings.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial

import anyio
import pytest

from livepush_asgi import (
    BrokerUnavailableError,
    EndReason,
    Event,
    Grant,
    History,
    InvalidEventError,
    Limits,
    LivePush,
    MemoryBroker,
    Timing,
)
from livepush_asgi.brokers import READ_BYTES, Page, Subscription
from livepush_asgi.grant import Replay
from livepush_asgi.runtime.event_loop import soon_caller
from livepush_asgi.testing import Client, Stream, StreamEnded
from livepush_asgi.wire.cursor import MAX_POSITIONS, Position
from livepush_asgi.wire.event import positioned, to_payload

from .faulty_broker import FaultyBroker, FaultyServer
from .virtual_clock import let_pass

TIMING = Timing(subscribe_timeout=0.5, linger=0.1)


class PickyBroker(FaultyBroker):
    """Refuses to subscribe or to read some channels, in this process only."""

    def __init__(self, server: FaultyServer) -> None:
        super().__init__(server)
        self.refused: set[str] = set()
        self.unreadable: set[str] = set()
        self.reads = 0

    async def subscribe(self, channel: str) -> Subscription:
        if channel in self.refused:
            raise BrokerUnavailableError(f"no permission for {channel}")
        return await super().subscribe(channel)

    async def read(self, channel: str, after: int, limit: int, *, max_bytes: int = READ_BYTES) -> Page:
        self.reads += 1
        if channel in self.unreadable:
            raise BrokerUnavailableError(f"no permission to read {channel}")
        return await super().read(channel, after, limit, max_bytes=max_bytes)


class Processes:
    """Two processes over one server, and what they grant now."""

    def __init__(
        self, *channels: str, snapshot: Callable[[], object] | None = None, **limits: object
    ) -> None:
        self.grant = Grant(channels=channels, snapshot=snapshot)
        self.server = FaultyServer(History(events=100))
        self.brokers = [PickyBroker(self.server) for _ in range(2)]
        self.pushes = [
            LivePush(
                broker,
                lambda request: self.grant,
                timing=TIMING,
                limits=Limits(**limits),  # type: ignore[arg-type]
            )
            for broker in self.brokers
        ]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[list[Client]]:
        async with AsyncExitStack() as stack:
            for push in self.pushes:
                await stack.enter_async_context(push.lifespan())
            yield [await stack.enter_async_context(Client(push)) for push in self.pushes]


async def opened(stream: Stream) -> dict[str, object]:
    event = await stream.next_event(control=True)
    assert event.event == "livepush.open"
    data: dict[str, object] = json.loads(event.data)
    return data


async def gap(stream: Stream) -> tuple[str, str]:
    event = await stream.next_event(control=True)
    assert event.event == "livepush.gap", event
    data = json.loads(event.data)
    return data["channel"], data["reason"]


def body(stream: Stream) -> bytes:
    return b"".join(message.get("body", b"") for message in stream.messages)


async def nothing_more(stream: Stream) -> None:
    with pytest.raises(TimeoutError):
        await stream.next_event(1, control=True)


# Channels that are not live when the stream opens.


@pytest.mark.parametrize("fault", ["refused", "unreadable"])
@pytest.mark.parametrize("channels", [["news", "user:42"], ["user:42"], ["user:42", "news", "more"]])
async def test_a_channel_that_was_not_live_is_told_of_where_it_is(channels: list[str], fault: str) -> None:
    house = Processes(*channels)
    async with house.running() as (one, other):
        getattr(house.brokers[0], fault).add("user:42")
        async with one.open("/") as stream:
            assert (await opened(stream))["not_live"] == ["user:42"]
            await house.pushes[1].publish("user:42", "missed")
        async with other.open("/", last_event_id=stream.last_event_id) as again:
            assert not (await opened(again))["resumed"]
            assert await gap(again) == ("user:42", "unknown")
            await house.pushes[1].publish("user:42", "heard")
            assert (await again.next_event(control=True)).data == "heard"
            await nothing_more(again)


async def test_a_channel_that_a_later_grant_adds_is_in_the_id_though_it_is_not_live() -> None:
    house = Processes("news")
    async with house.running() as (one, other):
        async with one.open("/") as stream:
            await opened(stream)
        house.grant = Grant(channels=["news", "user:42"])
        house.brokers[0].refused.add("user:42")
        async with one.open("/", last_event_id=stream.last_event_id) as again:
            assert await opened(again) == {
                "resumed": True,
                "retry": again.control_events[0].retry,
                "not_live": ["user:42"],
            }
            await house.pushes[0].publish("user:42", "missed")
            await house.pushes[0].publish("news", "1")
            assert (await again.next_event(control=True)).data == "1"
        async with other.open("/", last_event_id=again.last_event_id) as third:
            assert not (await opened(third))["resumed"]
            assert await gap(third) == ("user:42", "unknown")


async def test_a_position_is_kept_through_a_process_where_its_channel_is_refused() -> None:
    house = Processes("news", "user:42")
    async with house.running() as (one, other):
        async with other.open("/") as stream:
            await opened(stream)
            await house.pushes[1].publish("user:42", "1")
            await stream.next_event()
        house.brokers[0].refused.add("user:42")
        await house.pushes[1].publish("user:42", "2")
        async with one.open("/", last_event_id=stream.last_event_id) as refused:
            assert (await opened(refused))["not_live"] == ["user:42"]
        async with other.open("/", last_event_id=refused.last_event_id) as again:
            assert (await opened(again))["resumed"]
            assert (await again.next_event(control=True)).data == "2"
            await nothing_more(again)


async def test_a_channel_that_cannot_be_read_keeps_no_other_from_being_resumed() -> None:
    house = Processes("bad", "good")
    async with house.running() as (one, other):
        async with other.open("/") as beside, one.open("/") as stream:
            await opened(beside)
            await opened(stream)
            # The other process listens, but hears none of it.
            house.brokers[1].losing = 600
            for number in range(300):
                await house.pushes[0].publish("good", number)
                await house.pushes[0].publish("bad", number)
            house.brokers[1].unreadable.add("bad")
            async with other.open("/", last_event_id=stream.last_event_id) as again:
                await opened(again)
                house.brokers[1].losing = 0
                await house.pushes[0].publish("good", "last")
                events = [(await again.next_event(20, control=True)) for _ in range(2)]
        assert [event.event for event in events] == ["livepush.gap", "message"]


async def test_a_grant_that_goes_on_to_other_channels_is_no_gap() -> None:
    house = Processes("a")
    async with house.running() as (one, other):
        async with one.open("/") as stream:
            await opened(stream)
            await house.pushes[0].publish("a", "1")
            await stream.next_event()
        house.grant = Grant(channels=["b", "c"])
        async with other.open("/", last_event_id=stream.last_event_id) as again:
            assert (await opened(again))["resumed"]
            await house.pushes[0].publish("b", "1")
            assert (await again.next_event(control=True)).data == "1"
            await nothing_more(again)
        house.grant = Grant(channels=["c", "b", "a"])
        await house.pushes[0].publish("b", "2")
        async with one.open("/", last_event_id=again.last_event_id) as third:
            assert (await opened(third))["resumed"]
            assert (await third.next_event(control=True)).data == "2"
            await nothing_more(third)


async def test_an_id_that_is_beyond_what_an_ended_stream_did_not_send_is_not_sent() -> None:
    house = Processes("a", "b")
    for broker in house.brokers:
        broker.refused.add("b")
    async with house.running() as (one, other):
        async with one.open("/") as stream:
            await opened(stream)
        for number in range(5):
            await house.pushes[0].publish("a", number)
        house.grant = Grant(channels=["a", "b"], expires_at=time.time() + 2)
        async with other.open("/", last_event_id=stream.last_event_id, window=0) as expired:
            # The page of history is there, and the client does not even take the open event.
            await let_pass(3)
            house.brokers[1].refused.clear()
            await let_pass(8)
            assert (await opened(expired))["not_live"] == ["b"]
            assert await expired.wait_ended() == "expired"
        house.grant = Grant(channels=["a", "b"])
        async with other.open("/", last_event_id=expired.last_event_id) as again:
            assert [event.data for event in await again.events(5)] == list("01234")


# The state, when it is cut off.


def state_of(blocks: int) -> list[Event]:
    return [Event(number, event="state") for number in range(blocks)]


@pytest.mark.parametrize("read", range(7))
async def test_a_client_that_is_cut_off_in_its_state_gets_it_again(read: int) -> None:
    house = Processes("c", snapshot=lambda: state_of(6), message_bytes=20)
    async with house.running() as (one, other):
        async with one.open("/", window=0) as stream:
            await opened(stream)
            await house.pushes[0].publish("c", "change")
            for number in range(read):
                assert (await stream.next_event()).data == str(number)
        complete = read == 6
        async with other.open("/", last_event_id=stream.last_event_id) as again:
            assert (await opened(again))["resumed"] is complete
            # The state has the change.
            expected = [] if complete else [*map(str, range(6))]
            assert [(await again.next_event(control=True)).data for _ in expected] == expected
            await nothing_more(again)


async def test_a_client_that_is_cut_off_after_a_gap_gets_the_state_that_the_gap_asks_for() -> None:
    states = [Slow(0), Slow(3600), Slow(0)]
    house = Processes("c", snapshot=lambda: states[0]())
    async with house.running() as (one, other):
        async with one.open("/", window=0) as stream:
            await opened(stream)
            assert (await stream.next_event()).data == "the state"
            states.pop(0)
            await house.pushes[0].publish("c", "taken")
            house.server.lose_log("c")
            for number in range(3):
                await house.pushes[0].publish("c", number)
            await let_pass(1)
            assert (await stream.next_event()).data == "taken"
            assert await gap(stream) == ("c", "epoch")
            await nothing_more(stream)
        states.pop(0)
        async with other.open("/", last_event_id=stream.last_event_id) as again:
            assert not (await opened(again))["resumed"]
            # It was called after the three, and has them.
            assert (await again.next_event(control=True)).data == "the state"
            await nothing_more(again)


async def test_a_gap_that_waits_behind_several_messages_brings_the_state_again() -> None:
    states = iter(["the state", "the state again"])
    house = Processes("c", snapshot=lambda: next(states), message_bytes=20)
    async with house.running() as (one, _), one.open("/", window=0) as stream:
        await opened(stream)
        assert (await stream.next_event()).data == "the state"
        for number in range(3):
            await house.pushes[0].publish("c", f"event {number}, more than half a message")
        await let_pass(1)
        house.server.lose_log("c")
        await house.pushes[0].publish("c", "the last")
        await let_pass(1)
        assert [event.data[:7] for event in await stream.events(3)] == ["event 0", "event 1", "event 2"]
        assert await gap(stream) == ("c", "epoch")
        # The last one was published before the call, and is in the state.
        assert (await stream.next_event()).data == "the state again"
        await house.pushes[0].publish("c", "a change")
        assert (await stream.next_event()).data == "a change"


async def test_a_channel_that_is_new_to_a_client_brings_the_state_again() -> None:
    house = Processes("a", snapshot=lambda: state_of(1))
    async with house.running() as (one, _):
        async with one.open("/") as stream:
            await opened(stream)
            await stream.next_event()
        house.grant = Grant(channels=["a", "b"], snapshot=lambda: state_of(2))
        async with one.open("/", last_event_id=stream.last_event_id) as again:
            assert not (await opened(again))["resumed"]
            assert [event.data for event in await again.events(2)] == ["0", "1"]


async def test_an_empty_state_is_a_state() -> None:
    house = Processes("a", snapshot=list)
    async with house.running() as (one, _), one.open("/") as stream:
        await opened(stream)
        # What is published before the call of the snapshot is in the state.
        await let_pass(1)
        await house.pushes[0].publish("a", "1")
        assert (await stream.next_event(control=True)).data == "1"
        async with one.open("/", last_event_id=stream.last_event_id) as again:
            assert (await opened(again))["resumed"]


# While a stream waits.


class Slow:
    """A snapshot that takes its time and notes how it ended."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.cancelled = 0

    async def __call__(self) -> str:
        try:
            await anyio.sleep(self.seconds)
        except BaseException:
            self.cancelled += 1
            raise
        return "the state"


async def revoke(push: LivePush) -> None:
    await push.disconnect(channel="c")


async def stop(push: LivePush) -> None:
    await push.stop()


async def wait(push: LivePush) -> None:
    await let_pass(30)


@pytest.mark.parametrize(
    ("ending", "reason"),
    [(revoke, EndReason.REVOKED), (stop, EndReason.DRAIN), (wait, EndReason.EXPIRED)],
    ids=["revoked", "drain", "expired"],
)
async def test_an_ending_does_not_wait_for_a_snapshot_and_what_that_returns_is_not_sent(
    ending: Callable[[LivePush], Awaitable[None]], reason: EndReason
) -> None:
    snapshot = Slow(1800)
    push = LivePush(
        MemoryBroker(),
        lambda request: Grant(channels="c", snapshot=snapshot, expires_at=time.time() + 20),
        timing=Timing(snapshot_timeout=3600),
    )
    async with push.lifespan(), Client(push) as client, client.open("/") as stream:
        await opened(stream)
        await let_pass(1)
        began = anyio.current_time()
        await ending(push)
        assert await stream.wait_ended(5) == reason.value
        assert anyio.current_time() - began <= 35
        assert snapshot.cancelled == 1
        assert [event.event for event in stream.control_events] == ["livepush.open", "livepush.close"]
        with pytest.raises(StreamEnded):
            await stream.next_event()
    assert push.statistics()["ended"][reason] == 1


async def test_heartbeats_go_on_while_a_snapshot_is_read() -> None:
    push = LivePush(
        MemoryBroker(),
        lambda request: Grant(channels="c", snapshot=Slow(50)),
        timing=Timing(heartbeat_interval=15),
    )
    async with push.lifespan(), Client(push) as client, client.open("/") as stream:
        await opened(stream)
        assert (await stream.next_event(60)).data == "the state"
        assert stream.comments == ["", "", ""]


@pytest.mark.parametrize(
    "snapshot", [Slow(100), lambda: 1 / 0, lambda: object()], ids=["hangs", "raises", "object"]
)
async def test_a_snapshot_that_fails_ends_the_stream_with_a_word(
    snapshot: Callable[[], object], caplog: pytest.LogCaptureFixture
) -> None:
    push = LivePush(
        MemoryBroker(),
        lambda request: Grant(channels="c", snapshot=snapshot),
        timing=Timing(snapshot_timeout=10),
    )
    async with push.lifespan(), Client(push) as client:
        for _ in range(3):
            async with client.open("/") as stream:
                assert await stream.wait_ended(20) == "error"
                assert [event.event for event in stream.control_events] == ["livepush.open", "livepush.close"]
                assert stream.control_events[-1].retry
    assert [record.levelname for record in caplog.records] == ["ERROR"]


class Connected:
    """A snapshot that has a connection to give back, which takes a moment."""

    def __init__(self) -> None:
        self.given_back = 0

    async def __call__(self) -> str:
        try:
            await anyio.sleep(3600)
        finally:
            await anyio.sleep(0.01)
            self.given_back += 1
        return "the state"


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
@pytest.mark.parametrize("ending", [revoke, wait], ids=["revoked", "timeout"])
async def test_a_snapshot_is_cancelled_once_and_can_give_back_what_it_has(
    ending: Callable[[LivePush], Awaitable[None]],
) -> None:
    snapshot = Connected()
    push = LivePush(
        MemoryBroker(),
        lambda request: Grant(channels="c", snapshot=snapshot),
        timing=Timing(snapshot_timeout=10),
    )
    async with push.lifespan(), Client(push) as client, client.open("/") as stream:
        await opened(stream)
        await let_pass(1)
        await ending(push)
        await stream.wait_ended(5)
        await let_pass(1)
    assert snapshot.given_back == 1


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_a_snapshot_that_something_else_cancels_is_not_asked_for_again_and_again() -> None:
    calls = 0

    async def snapshot() -> str:
        nonlocal calls
        calls += 1
        if calls < 10:
            raise asyncio.CancelledError
        return "the state"

    push = LivePush(MemoryBroker(), lambda request: Grant(channels="c", snapshot=snapshot))
    async with push.lifespan(), Client(push) as client, client.open("/") as stream:
        await opened(stream)
        assert await stream.wait_ended(5) == "error"
    assert calls == 1


class HangingBroker(PickyBroker):
    """Reads no events of the history while it hangs."""

    hangs = False

    async def read(self, channel: str, after: int, limit: int, *, max_bytes: int = READ_BYTES) -> Page:
        if self.hangs and limit:
            await anyio.sleep_forever()
        return await super().read(channel, after, limit, max_bytes=max_bytes)


async def test_heartbeats_and_endings_go_on_while_history_hangs() -> None:
    broker = HangingBroker(FaultyServer(History()))
    push = LivePush(broker, lambda request: Grant(channels="c"))
    async with push.lifespan(), Client(push) as client:
        async with client.open("/") as stream:
            await opened(stream)
        await push.publish("c", "missed")
        broker.hangs = True
        async with client.open("/", last_event_id=stream.last_event_id) as again:
            await opened(again)
            await let_pass(50)
            await push.disconnect(channel="c")
            assert await again.wait_ended(5) == "revoked"
        assert len(again.comments) == 3
        broker.hangs = False
        async with client.open("/", last_event_id=again.last_event_id) as third:
            assert (await opened(third))["resumed"]
            assert (await third.next_event()).data == "missed"


# When the response starts, and what is said first and last.


class LateBroker(MemoryBroker):
    """Takes a second to subscribe a channel of the application."""

    async def subscribe(self, channel: str) -> Subscription:
        await anyio.sleep(channel == "c")
        return await super().subscribe(channel)


async def test_what_is_published_at_the_start_of_the_response_arrives() -> None:
    push = LivePush(LateBroker(), lambda request: Grant(channels="c"))
    async with push.lifespan(), Client(push) as client, client.open("/") as stream:
        await push.publish("c", "from onopen")
        assert (await stream.next_event()).data == "from onopen"


async def test_the_reconnection_time_is_the_first_line_then_the_id_then_the_data() -> None:
    push = LivePush(MemoryBroker(), lambda request: Grant(channels="c"))
    async with push.lifespan(), Client(push) as client, client.open("/") as stream:
        await opened(stream)
        lines = body(stream).decode().split("\n")
    assert [line.partition(":")[0] for line in lines] == ["retry", "id", "event", "data", "", ""]


@pytest.mark.parametrize("control_events", [True, False])
async def test_a_drain_before_a_stream_has_opened_is_told(control_events: bool) -> None:
    push = LivePush(LateBroker(), lambda request: Grant(channels="c"), control_events=control_events)
    async with push.lifespan(), Client(push) as client, anyio.create_task_group() as tasks:

        async def drain() -> None:
            await anyio.sleep(0.2)
            await push.drain()

        tasks.start_soon(drain)
        async with client.open("/", last_event_id="abcd~e.1") as stream:
            assert await stream.wait_ended(5) == ("drain" if control_events else None)
            assert [event.event for event in stream.control_events] == (
                ["livepush.open", "livepush.close"] if control_events else []
            )
            # The client keeps the place that it had.
            assert b"id:" not in body(stream)
            assert body(stream).startswith(b"retry: ")


async def test_without_control_events_a_gap_at_the_beginning_ends_the_stream_once() -> None:
    push = LivePush(MemoryBroker(), lambda request: Grant(channels="c"), control_events=False)
    async with push.lifespan(), Client(push) as client:
        async with client.open("/", last_event_id="what is this") as stream:
            await stream.wait_ended(5)
            assert body(stream).startswith(b"retry: ")
        assert push.statistics()["ended"][EndReason.BROKER] == 1
        async with client.open("/", last_event_id=stream.last_event_id) as again:
            await push.publish("c", "1")
            assert (await again.next_event()).data == "1"


@pytest.mark.parametrize("harm", ["trimmed", "taken over", "lost"])
async def test_without_control_events_a_gap_in_history_ends_few_streams(harm: str) -> None:
    server = FaultyServer(History(events=4))
    push = LivePush(FaultyBroker(server), lambda request: Grant(channels="c"), control_events=False)
    async with push.lifespan(), Client(push) as client:
        async with client.open("/") as stream:
            await push.publish("c", "1")
            await stream.next_event()
        for number in range(9 if harm == "trimmed" else 2):
            await push.publish("c", number)
        if harm == "taken over":
            server.restart("c", 0, doubtful=True)
        elif harm == "lost":
            server.lose_log("c")
        last_id = stream.last_event_id
        for _ in range(3):
            async with client.open("/", last_event_id=last_id) as again:
                with suppress(TimeoutError):
                    await again.wait_ended(5)
                last_id = again.last_event_id or last_id
    assert 1 <= push.statistics()["ended"][EndReason.BROKER] <= 2
    assert [event.data for event in again.received] == []


@pytest.mark.parametrize("replay", ["new", "last", "all", 1])
async def test_a_client_that_had_what_a_log_has_lost_is_told_and_gets_nothing_twice(replay: Replay) -> None:
    server = FaultyServer(History())
    push = LivePush(FaultyBroker(server), lambda request: Grant(channels="c", replay=replay))
    async with push.lifespan(), Client(push) as client:
        async with client.open("/") as stream:
            for data in ("1", "2"):
                await push.publish("c", data)
                assert (await stream.next_event()).data == data
        server.restart("c", 1)
        await push.publish("c", "3")
        await let_pass(1)
        async with client.open("/", last_event_id=stream.last_event_id) as again:
            assert not (await opened(again))["resumed"]
            assert await gap(again) == ("c", "epoch")
            assert (await again.next_event(control=True)).data == "3"
            await nothing_more(again)


class CallbackBroker(FaultyBroker):
    """Delivers from a plain callback of the event loop, as an adapter does that is an asyncio.Protocol."""

    def deliver(self, channel: str, payload: bytes) -> None:
        soon_caller()(partial(super().deliver, channel, payload))

    def say_lost(self) -> None:
        soon_caller()(super().say_lost)


async def test_a_broker_may_deliver_and_tell_losses_from_a_callback_of_the_loop() -> None:
    broker = CallbackBroker(FaultyServer(History()))
    push = LivePush(broker, lambda request: Grant(channels="c"))
    async with push.lifespan(), Client(push) as client, client.open("/") as stream:
        await opened(stream)
        broker.losing = 1
        for number in range(3):
            await push.publish("c", number)
        broker.say_lost()
        assert [event.data for event in await stream.events(3)] == ["0", "1", "2"]


# Ids.


async def test_a_publishers_own_id_is_never_taken_for_a_place() -> None:
    house = Processes("c")
    async with house.running() as (one, other):
        async with one.open("/") as stream:
            await opened(stream)
            place = await house.pushes[0].publish("c", "1")
            await house.pushes[0].publish("c", "2")
            with pytest.raises(InvalidEventError, match="reads as a cursor"):
                await house.pushes[0].publish("c", "3", id=place)
            # Written by hand, as another program might.
            block = f"id: {place}\ndata: 3\n\n".encode()
            await house.brokers[0].append("c", to_payload(block))
            await house.pushes[0].publish("c", "4")
            assert [event.data for event in await stream.events(2)] == ["1", "2"]
            assert await gap(stream) == ("c", "broker")
            assert (await stream.next_event()).data == "4"
        async with other.open("/", last_event_id=stream.last_event_id) as again:
            assert (await opened(again))["resumed"]
            await nothing_more(again)


async def test_a_client_whose_last_id_is_a_publishers_own_is_told_of_a_gap() -> None:
    house = Processes("c")
    async with house.running() as (one, other):
        async with one.open("/") as stream:
            await opened(stream)
            assert await house.pushes[0].publish("c", "1", id="own.7") == "own.7"
            await stream.next_event()
        async with other.open("/", last_event_id=stream.last_event_id) as again:
            assert not (await opened(again))["resumed"]
            assert await gap(again) == ("c", "unknown")


@pytest.mark.parametrize("channels", [1, 20, 128])
async def test_a_hostile_id_costs_one_read_when_it_comes_and_no_more_than_one_of_each_channel(
    channels: int,
) -> None:
    names = [f"c{number}" for number in range(channels)]
    house = Processes(*names)
    async with house.running() as (one, _):
        async with one.open("/") as stream:
            await opened(stream)
        hostile = stream.last_event_id.replace(".0", f".{2**63 - 1}")
        swapped = [entry.partition("~")[0] + "~other.1" for entry in hostile.split(",")]
        texts = {
            hostile: "epoch",
            ",".join(swapped): "epoch",
            ",".join(swapped[:1] * MAX_POSITIONS): "unknown",
        }
        for text, reason in texts.items():
            house.brokers[0].reads = 0
            async with one.open("/", last_event_id=text) as again:
                assert not (await opened(again))["resumed"]
                assert house.brokers[0].reads <= 1
                # A while later the other logs are asked, whether the client is in them.
                assert {await gap(again) for _ in names} == {(name, reason) for name in names}
                await nothing_more(again)
            assert house.brokers[0].reads <= channels


@pytest.mark.parametrize("attacked", [False, True])
@pytest.mark.parametrize("forged", [0, 1, 19])
async def test_positions_that_this_process_has_not_heard_of_are_taken_if_the_log_has_them(
    forged: int, attacked: bool
) -> None:
    """Another process has delivered more. The first `forged` positions are beyond their logs all the same.

    So were those of another client just before, where the process is `attacked`.
    """
    names = [f"c{number}" for number in range(20)]
    house = Processes(*names)
    async with house.running() as (one, other), other.open("/") as kept:
        await opened(kept)
        for name in names:
            house.brokers[1].faults[name].cut = True
        async with one.open("/") as stream:
            await opened(stream)
            for name in names:
                await house.pushes[0].publish(name, f"{name} 1")
            await stream.events(len(names))
        house.brokers[1].heal()
        entries = stream.last_event_id.split(",")
        id_ = ",".join([f"{entry}00" for entry in entries[:forged]] + entries[forged:])
        if attacked:
            hostile = ",".join(f"{entry}00" for entry in entries)
            async with other.open("/", last_event_id=hostile) as again:
                await opened(again)
        async with other.open("/", last_event_id=id_) as again:
            assert (await opened(again))["resumed"] is (forged == 0)
            for name in names:
                await house.pushes[0].publish(name, f"{name} 2")
            gaps, events = set[str](), set[str]()
            # Of a forged position's channel the gap is what has to come: it may be behind the event.
            while gaps != set(names[:forged]) or not events >= {f"{name} 2" for name in names[forged:]}:
                event = await again.next_event(control=True)
                if event.event == "livepush.gap":
                    gaps.add(json.loads(event.data)["channel"])
                else:
                    assert event.data not in events
                    events.add(event.data)
            assert not events & {f"{name} 1" for name in names[forged:]}


async def test_bounds_from_before_an_epoch_do_not_refute_a_client_that_was_sent_events_of_it() -> None:
    """Another client has just had the bounds read in the process to which this one comes."""
    house = Processes("c")
    async with house.running() as (one, other), other.open("/") as kept:
        await opened(kept)
        house.brokers[1].faults["c"].cut = True
        async with other.open("/", last_event_id=kept.last_event_id.replace(".0", ".7")) as hostile:
            await opened(hostile)
        house.server.lose_log("c")
        async with one.open("/") as stream:
            await opened(stream)
            await house.pushes[0].publish("c", "1")
            await stream.next_event()
        await house.pushes[0].publish("c", "2")
        async with other.open("/", last_event_id=stream.last_event_id) as again:
            await opened(again)
            assert (await again.next_event(control=True)).data == "2"


# What is lost while a log is read.


async def test_what_is_lost_while_a_page_is_on_its_way_is_read_at_once() -> None:
    house = Processes("c")
    async with house.running() as (one, _), one.open("/") as stream:
        await opened(stream)
        house.brokers[0].faults["c"].slow = 1.0
        house.brokers[0].say_lost()
        # The server has answered, and the answer has not come.
        await let_pass(1.5)
        house.brokers[0].losing = 1
        await house.pushes[1].publish("c", "lost")
        house.brokers[0].say_lost()
        assert (await stream.next_event(5, control=True)).data == "lost"


async def test_a_repeat_that_comes_while_a_page_is_on_its_way_hides_nothing_newer() -> None:
    house = Processes("c")
    async with house.running() as (one, _), one.open("/") as stream:
        await opened(stream)
        await house.pushes[1].publish("c", "first")
        first = Position.of_id((await stream.next_event()).id or "")
        house.brokers[0].faults["c"].slow = 1.0
        house.brokers[0].say_lost()
        await let_pass(1.5)
        await house.pushes[1].publish("c", "second")
        house.brokers[0].deliver("c", positioned(first, to_payload(Event("first").encode())))
        assert (await stream.next_event(5, control=True)).data == "second"
