"""Revocation: when `disconnect` has returned, no matching stream is open or opens on an older decision."""

import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import anyio
import pytest

from livepush_asgi import (
    BrokerUnavailableError,
    EndReason,
    Grant,
    GrantRevokedError,
    InvalidGrantError,
    Lease,
    LivePush,
    MemoryBroker,
    MemorySlotCap,
    RefusalCause,
    SSEStreamService,
    StreamRequest,
    Timing,
)
from livepush_asgi.brokers import Broker, Subscription
from livepush_asgi.brokers.history import History
from livepush_asgi.grant import Refusal
from livepush_asgi.testing import Client, MockBroker, Stream
from livepush_asgi.wire.cursor import Position

from .faulty_broker import FaultyBroker, FaultyServer
from .virtual_clock import let_pass


class Door:
    """An `authorize` that waits until it is let go on, and grants what is set then."""

    def __init__(self, decision: Grant | Refusal | None = None) -> None:
        self.decision = decision or Grant(channels=["news", "user"], slot_key="k")
        self.calls = 0
        self.busy = 0
        self.busiest = 0
        self.open = anyio.Event()
        self.called = anyio.Event()

    async def __call__(self, request: StreamRequest) -> Grant | Refusal:
        self.calls += 1
        self.busy += 1
        self.busiest = max(self.busy, self.busiest)
        self.called.set()
        decision = self.decision
        try:
            await self.open.wait()
        finally:
            self.busy -= 1
        # As a database answers: with what it knew when it was asked.
        return decision


class SlowSlots(MemorySlotCap):
    """A cap whose store takes a second."""

    async def acquire_lease(self, slot_key: str, on_replaced: Callable[[], None] | None = None) -> Lease:
        await let_pass(1)
        return await super().acquire_lease(slot_key, on_replaced)


class Uncounted(MemoryBroker):
    """A broker that does not say how many subscribers a channel has, as NATS."""

    async def publish(self, channel: str, payload: str | bytes) -> int:
        await super().publish(channel, payload)
        return 0


async def opened(stack: AsyncExitStack, client: Client, path: str = "/") -> Stream:
    stream = await stack.enter_async_context(client.open(path))
    await stream.next_event(name="livepush.open")
    return stream


@asynccontextmanager
async def later(function: Callable[[], Awaitable[object]]) -> AsyncIterator[None]:
    """Do something while the block runs, and wait for its end."""

    async def run() -> None:
        await function()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        yield


def both(request: StreamRequest) -> Grant:
    return Grant(channels=["news", "user"], slot_key="k")


@pytest.mark.parametrize("target", [{"slot_key": "k"}, {"channel": "user"}], ids=["key", "channel"])
async def test_a_stream_that_is_being_authorized_is_authorized_again(target: dict[str, str]) -> None:
    door = Door()
    push = LivePush(MemoryBroker(), door)
    async with push.lifespan(), Client(push) as client:

        async def revoke() -> None:
            await door.called.wait()
            door.decision = Refusal(403)
            done = await push.disconnect(**target)  # type: ignore[arg-type]
            assert done == (0, 1, 0)
            door.open.set()

        async with later(revoke):
            assert (await client.request("GET", "/")).status == 403
        assert door.calls == 2
        assert push.statistics()["opened"] == 0


async def test_a_revocation_of_others_lets_a_decision_stand() -> None:
    door = Door()
    push = LivePush(MemoryBroker(), door)
    async with push.lifespan(), Client(push) as client:

        async def revoke() -> None:
            await door.called.wait()
            await push.disconnect(slot_key="another")
            await push.disconnect(slot_key="k", channel="another")
            door.open.set()

        async with later(revoke), client.open("/") as stream:
            assert stream.status == 200
        assert door.calls == 1


async def test_a_stream_that_waits_for_its_slot_is_authorized_again_and_gives_the_slot_back() -> None:
    calls = []

    def authorize(request: StreamRequest) -> Grant | Refusal:
        calls.append(request)
        return both(request) if len(calls) == 1 else Refusal(403)

    log: list[str] = []
    slots = SlowSlots(1, on_acquire=partial(log.append), on_release=partial(log.append))
    push = LivePush(MemoryBroker(), authorize, slots=slots)
    async with push.lifespan(), Client(push) as client:

        async def revoke() -> None:
            await let_pass(0.5)
            await push.disconnect(slot_key="k")

        async with later(revoke):
            assert (await client.request("GET", "/")).status == 403
    assert log == ["k", "k"]
    assert slots.held("k") == 0


async def test_one_that_is_revoked_again_and_again_is_refused_softly() -> None:
    push: LivePush
    calls = 0

    async def authorize(request: StreamRequest) -> Grant:
        nonlocal calls
        calls += 1
        async with later(lambda: let_pass(1)):
            await let_pass(2)
        return both(request)

    async def revoke_often() -> None:
        for _ in range(8):
            await push.disconnect(slot_key="k")
            await let_pass(1)

    push = LivePush(MemoryBroker(), authorize)
    async with push.lifespan(), Client(push, deadline=20) as client:
        async with later(revoke_often), client.open("/") as stream:
            event = await stream.next_event(name="livepush.refused")
        assert json.loads(event.data)["reason"] == "revoked"
        assert calls == 3
        assert push.statistics()["refused"][RefusalCause.REVOKED] == 1


async def test_an_authorize_that_ends_the_older_streams_of_its_client_lets_the_new_one_in() -> None:
    push: LivePush

    async def authorize(request: StreamRequest) -> Grant:
        await push.disconnect(slot_key="k")
        return both(request)

    push = LivePush(MemoryBroker(), authorize)
    async with push.lifespan(), Client(push) as client, AsyncExitStack() as stack:
        older = await opened(stack, client)
        newer = await opened(stack, client)
        assert await older.wait_ended() == "revoked"
        await push.publish("news", "x")
        assert (await newer.next_event()).data == "x"
        assert push.statistics()["opened"] == 2


async def test_an_authorize_that_revokes_does_not_hide_the_revocation_of_another_process() -> None:
    class Busy(MemoryBroker):
        async def publish(self, channel: str, payload: str | bytes) -> int:
            count = await super().publish(channel, payload)
            if "another" in str(payload):
                await super().publish(
                    channel, str(payload).replace("another", "k").replace('"id": "', '"id": "-')
                )
            return count

    calls = []

    async def authorize(request: StreamRequest) -> Grant:
        calls.append(request)
        if len(calls) == 1:
            await push.disconnect(slot_key="another")
        return both(request)

    push = LivePush(Busy(), authorize)
    async with push.lifespan(), Client(push) as client, client.open("/") as stream:
        await stream.next_event(name="livepush.open")
        assert len(calls) == 2


async def test_a_route_whose_stream_is_revoked_while_it_is_opened_gets_none() -> None:
    slots = SlowSlots(1)
    service = SSEStreamService(MemoryBroker(), slots)

    async def revoke() -> None:
        await let_pass(0.5)
        await service.push.disconnect(channel="news")

    async with service.push.lifespan(), later(revoke):
        with pytest.raises(GrantRevokedError):
            await service.open_stream(channel="news", slot_key="k")
        assert slots.held("k") == 0
        assert service.statistics()["refused"][RefusalCause.REVOKED] == 1


async def test_one_process_waits_for_nobody() -> None:
    push = LivePush(MemoryBroker(), both)
    async with push.lifespan(), Client(push) as client, AsyncExitStack() as stack:
        assert await push.disconnect(slot_key="k") == (0, 1, 0)
        streams = [await opened(stack, client) for _ in range(3)]
        start = anyio.current_time()
        done = await push.disconnect(slot_key="k")
        assert (done.streams, done.processes) == (3, 1)
        assert push.statistics()["streams"] == 0
        assert anyio.current_time() == start
        for stream in streams:
            assert await stream.wait_ended() == "revoked"
    assert push.statistics()["ended"][EndReason.REVOKED] == 3


async def test_a_program_without_streams_is_told_who_confirmed() -> None:
    broker = MemoryBroker()
    push, script = LivePush(broker, both), LivePush(broker, both)
    async with push.lifespan(), Client(push) as client, AsyncExitStack() as stack:
        stream = await opened(stack, client)
        assert await script.disconnect(channel="user") == (1, 1, 0)
        assert push.statistics()["streams"] == 0
        assert await stream.wait_ended() == "revoked"


@pytest.mark.parametrize("kind", [MemoryBroker, MockBroker])
async def test_the_streams_of_all_processes_have_ended_when_it_returns(kind: Callable[[], Broker]) -> None:
    broker = kind()
    houses = [LivePush(broker, both) for _ in range(3)]
    async with AsyncExitStack() as stack:
        for push in houses:
            await stack.enter_async_context(push.lifespan())
            await opened(stack, Client(push))
        start = anyio.current_time()
        assert await houses[0].disconnect(slot_key="k") == (3, 3, 0)
        assert anyio.current_time() == start
        assert [push.statistics()["streams"] for push in houses] == [0, 0, 0]
        assert [push.statistics()["ended"][EndReason.REVOKED] for push in houses] == [1, 1, 1]


async def test_a_stream_that_another_process_is_authorizing_is_authorized_again() -> None:
    broker, door = MemoryBroker(), Door()
    here, there = LivePush(broker, both), LivePush(broker, door)
    async with here.lifespan(), there.lifespan(), Client(there) as client:

        async def revoke() -> None:
            await door.called.wait()
            door.decision = Refusal(403)
            assert await here.disconnect(slot_key="k") == (0, 2, 0)
            door.open.set()

        async with later(revoke):
            assert (await client.request("GET", "/")).status == 403
        assert door.calls == 2


async def test_a_process_that_does_not_answer_is_waited_for_once() -> None:
    """A subscriber that is counted and never confirms: a process that hangs."""
    broker = MemoryBroker()
    push = LivePush(broker, both)
    async with push.lifespan(), Client(push) as client, AsyncExitStack() as stack:
        hanging = await broker.subscribe("livepush.commands")
        await opened(stack, client)
        start = anyio.current_time()
        assert await push.disconnect(slot_key="k", timeout=1.5) == (1, 1, 1)
        assert anyio.current_time() - start == pytest.approx(1.5)
        await hanging.close()
        start = anyio.current_time()
        await push.disconnect(slot_key="k")
        assert anyio.current_time() == start


async def test_where_the_broker_does_not_count_known_processes_are_waited_for() -> None:
    broker = Uncounted()
    here, there = LivePush(broker, both), LivePush(broker, both)
    async with here.lifespan(), AsyncExitStack() as stack:
        async with there.lifespan(), Client(there) as client:
            await opened(stack, Client(here))
            async with client.open("/") as stream:
                await stream.next_event(name="livepush.open")
                start = anyio.current_time()
                assert await here.disconnect(slot_key="k") == (2, 2, 0)
                # Nobody can know that there is no third.
                assert anyio.current_time() - start == pytest.approx(0.2)
        start = anyio.current_time()
        # It has said that it ends, so nobody waits for it.
        assert await here.disconnect(slot_key="k") == (0, 1, 0)
        assert anyio.current_time() - start == pytest.approx(0.2)


class Standing:
    """A process's way to a broker. While the process stands still nothing leaves it."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self.moves = anyio.Event()
        self.moves.set()

    async def publish(self, channel: str, payload: str | bytes) -> int:
        await self.moves.wait()
        return await self._broker.publish(channel, payload)

    async def subscribe(self, channel: str) -> Subscription:
        return await self._broker.subscribe(channel)

    async def stand_still(self, seconds: float) -> None:
        self.moves = anyio.Event()
        await let_pass(seconds)
        self.moves.set()


async def test_a_new_process_waits_for_an_older_one_that_stands_still() -> None:
    broker = Uncounted()
    way = Standing(broker)
    old, new = LivePush(way, both), LivePush(broker, both)
    async with AsyncExitStack() as stack:
        for push in (old, new):
            await stack.enter_async_context(push.lifespan())
            await opened(stack, Client(push))
        # It has not heard the older one say hello, but asked who is there.
        await let_pass(1)
        async with later(lambda: way.stand_still(1)):
            assert await new.disconnect(slot_key="k") == (2, 2, 0)


async def test_a_program_waits_for_a_process_that_others_know() -> None:
    broker = Uncounted()
    way = Standing(broker)
    houses = [LivePush(broker, both), LivePush(way, both)]
    script = LivePush(broker, both)
    async with AsyncExitStack() as stack:
        for push in houses:
            await stack.enter_async_context(push.lifespan())
            await opened(stack, Client(push))
        await let_pass(1)
        async with later(lambda: way.stand_still(1)):
            assert await script.disconnect(slot_key="k") == (2, 2, 0)


async def test_a_program_that_hears_nobody_waits_until_its_time_is_over() -> None:
    """Where the broker counts nobody may be there, or one process that stands still."""
    broker = Uncounted()
    way = Standing(broker)
    push, script = LivePush(way, both), LivePush(broker, both)
    async with push.lifespan():
        await opened_once(push)
        async with later(lambda: way.stand_still(1)):
            assert await script.disconnect(slot_key="k") == (0, 1, 0)
    start = anyio.current_time()
    assert await script.disconnect(slot_key="k") == (0, 0, 0)
    assert anyio.current_time() - start == pytest.approx(2)


async def opened_once(push: LivePush) -> None:
    async with AsyncExitStack() as stack:
        await opened(stack, Client(push))


async def test_a_program_does_not_wait_where_the_broker_counts_nobody() -> None:
    script = LivePush(MemoryBroker(), both)
    start = anyio.current_time()
    assert await script.disconnect(slot_key="k") == (0, 0, 0)
    assert anyio.current_time() == start


async def test_a_process_that_has_not_confirmed_is_waited_for_by_nobody_until_it_is_heard_of() -> None:
    broker = Uncounted()
    way = Standing(broker)
    houses = [LivePush(broker, both), LivePush(broker, both), LivePush(way, both)]
    async with AsyncExitStack() as stack:
        for push in houses:
            await stack.enter_async_context(push.lifespan())
            await opened_once(push)
        await let_pass(1)
        first, second, _ = houses
        async with later(lambda: way.stand_still(5)):
            assert (await first.disconnect(slot_key="k")).processes == 2
            start = anyio.current_time()
            assert (await second.disconnect(slot_key="k")).processes == 2
            assert anyio.current_time() - start < 0.5
        await let_pass(1)
        # It has heard that it was given up, and said that it is there.
        async with later(lambda: way.stand_still(1)):
            assert (await second.disconnect(slot_key="k")).processes == 3


@pytest.mark.parametrize("kind", [MemoryBroker, Uncounted])
async def test_a_process_that_stands_still_is_missing_in_each_call_and_costs_one_of_them_its_timeout(
    kind: Callable[[], Broker], caplog: pytest.LogCaptureFixture
) -> None:
    broker = kind()
    way = Standing(broker)
    here, there, still = LivePush(broker, both), LivePush(broker, both), LivePush(way, both)
    script = LivePush(broker, both)
    async with AsyncExitStack() as stack:
        for push in (here, there, still):
            await stack.enter_async_context(push.lifespan())
            await opened_once(push)
        await let_pass(1)
        async with later(lambda: way.stand_still(10)):
            assert await here.disconnect(slot_key="k") == (0, 2, 1)
            for each in (here, there, script):
                start = anyio.current_time()
                assert await each.disconnect(slot_key="k") == (0, 2, 1)
                assert anyio.current_time() - start < 0.5
        lines = [record.message for record in caplog.records if "did not confirm" in record.message]
        # One of each that called.
        assert len(lines) == 3
        assert lines[0].startswith("1 of the processes")
        await let_pass(1)
        for each in (here, there, script):
            assert await each.disconnect(slot_key="k") == (0, 3, 0)


async def test_a_process_that_was_killed_is_missing_for_a_while_where_the_broker_does_not_count() -> None:
    broker = Uncounted()
    way = Standing(broker)
    push, killed = LivePush(broker, both), LivePush(way, both)
    async with push.lifespan(), killed.lifespan():
        await opened_once(push)
        await opened_once(killed)
        await let_pass(1)
        way.moves = anyio.Event()
        assert await push.disconnect(slot_key="k") == (0, 1, 1)
        await let_pass(30)
        assert await push.disconnect(slot_key="k") == (0, 1, 1)
        await let_pass(60)
        assert await push.disconnect(slot_key="k") == (0, 1, 0)


async def test_a_process_that_ends_meanwhile_is_not_missing() -> None:
    """A broker has counted it, and it has no streams any more."""
    broker = MemoryBroker()
    way = Standing(broker)
    push, ending = LivePush(broker, both), LivePush(way, both)
    async with push.lifespan():
        await opened_once(push)
        async with ending.lifespan():
            await opened_once(ending)
            await let_pass(1)
            # What it confirms does not come through, and then it says that it ends.
            start = anyio.current_time()

            async def end() -> None:
                way.moves = anyio.Event()
                await let_pass(0.5)
                async with later(ending.stop):
                    await let_pass(0.1)
                    way.moves.set()

            async with later(end):
                await let_pass(0.1)
                done = await push.disconnect(slot_key="k")
                assert done.missing == 0
                assert anyio.current_time() - start < 1.5


async def test_a_process_that_one_gives_up_early_is_still_waited_for_by_others() -> None:
    broker = Uncounted()
    way = Standing(broker)
    slow, hasty, patient = LivePush(way, both), LivePush(broker, both), LivePush(broker, both)
    async with slow.lifespan(), hasty.lifespan(), patient.lifespan():
        for push in (slow, hasty, patient):
            await opened_once(push)
        await let_pass(2)
        async with (
            later(lambda: way.stand_still(1.5)),
            later(lambda: hasty.disconnect(slot_key="other", timeout=0.5)),
        ):
            assert (await patient.disconnect(slot_key="k")).processes == 3


async def test_processes_that_start_together_do_not_answer_each_other_one_by_one() -> None:
    broker = Uncounted()
    said = await broker.subscribe("livepush.commands")
    count = 30
    async with AsyncExitStack() as stack:
        houses = [LivePush(broker, both) for _ in range(count)]
        for push in houses:
            await stack.enter_async_context(push.lifespan())
            await opened_once(push)
        await let_pass(5)
        texts = []
        while (payload := await said.get_message(timeout=0)) is not None:
            texts.append(payload)
        assert sum(b"hello" in text for text in texts) == count
        assert sum(b"here" in text for text in texts) <= 2 * count
        assert (await houses[-1].disconnect(slot_key="k")).processes == count
    await said.close()


async def test_what_was_published_before_goes_out_and_nothing_after() -> None:
    push = LivePush(MemoryBroker(), both)
    async with push.lifespan(), Client(push) as client, AsyncExitStack() as stack:
        stream = await opened(stack, client)
        await push.publish("user", 0)
        await push.publish("news", 1)
        await push.disconnect(slot_key="k")
        await push.publish("news", 2)
        assert await stream.wait_ended() == "revoked"
        assert [event.data for event in stream.received if event.event == "message"] == ["0", "1"]
        assert json.loads(stream.received[-1].data)["reason"] == "revoked"


class HangingOrFailing(MemoryBroker):
    """A broker whose server may stop answering, or refuse to take a command."""

    def __init__(self) -> None:
        super().__init__()
        self.hangs = self.refuses = False

    async def subscribe(self, channel: str) -> Subscription:
        if self.hangs:
            await let_pass(3600)
        return await super().subscribe(channel)

    async def publish(self, channel: str, payload: str | bytes) -> int:
        if self.refuses:
            raise BrokerUnavailableError("as the test wants it")
        return await super().publish(channel, payload)


async def test_the_streams_here_end_also_when_the_caller_gives_up_on_a_broker_that_hangs() -> None:
    broker = HangingOrFailing()
    push = LivePush(broker, both)
    async with push.lifespan(), Client(push) as client, AsyncExitStack() as stack:
        stream = await opened(stack, client)
        broker.hangs = True
        with anyio.move_on_after(0.5):
            await push.disconnect(slot_key="k")
        await let_pass(1)
        assert push.statistics()["streams"] == 0
        assert await stream.wait_ended() == "revoked"


async def test_a_client_that_takes_nothing_is_cut_also_when_no_other_process_can_be_told() -> None:
    broker = HangingOrFailing()
    push = LivePush(broker, both)
    async with push.lifespan(), Client(push) as client, client.open("/", window=0) as stream:
        await stream.next_event(name="livepush.open")
        await push.publish("news", "nobody takes this")
        await anyio.wait_all_tasks_blocked()
        broker.refuses = True
        with pytest.raises(BrokerUnavailableError):
            await push.disconnect(channel="news")
        assert push.statistics()["streams"] == 0
        broker.refuses = False


class ReplacingSlots(MemorySlotCap):
    """A cap of which each take replaces a lease of another process."""

    async def acquire_lease(self, slot_key: str, on_replaced: Callable[[], None] | None = None) -> Lease:
        lease = await super().acquire_lease(slot_key, on_replaced)
        lease.replaced = ("elsewhere",)
        return lease


async def test_replaced_slots_that_cannot_be_announced_are_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker = HangingOrFailing()
    push = LivePush(broker, both, slots=ReplacingSlots(100))
    async with push.lifespan(), Client(push) as client, AsyncExitStack() as stack:
        for broker.refuses in (True, True, False, True, True):
            await opened(stack, client)
            await anyio.wait_all_tasks_blocked()
        broker.refuses = False
    assert len(caplog.records) == 2


async def test_a_client_that_takes_nothing_is_cut_and_not_waited_for() -> None:
    push = LivePush(MemoryBroker(), both)
    async with push.lifespan(), Client(push) as client, client.open("/", window=0) as stream:
        await stream.next_event(name="livepush.open")
        await push.publish("news", "nobody takes this")
        await anyio.wait_all_tasks_blocked()
        start = anyio.current_time()
        assert await push.disconnect(channel="news") == (1, 1, 0)
        assert anyio.current_time() - start == pytest.approx(1)
        assert push.statistics()["streams"] == 0
        assert push.statistics()["ended"][EndReason.REVOKED] == 1


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({}, TypeError),
        ({"slot_key": 5}, TypeError),
        ({"channel": 5}, TypeError),
        ({"slot_key": ""}, InvalidGrantError),
        ({"channel": ""}, InvalidGrantError),
        ({"channel": "livepush.commands"}, ValueError),
        ({"slot_key": "\ud800"}, ValueError),
    ],
)
async def test_what_no_grant_can_name_raises(arguments: dict[str, object], error: type[Exception]) -> None:
    push = LivePush(MemoryBroker(), both)
    async with push.lifespan():
        with pytest.raises(error):
            await push.disconnect(**arguments)  # type: ignore[arg-type]


async def test_the_streams_of_this_process_end_though_the_others_cannot_be_told() -> None:
    broker = MockBroker()
    push = LivePush(broker, both)
    async with push.lifespan(), Client(push) as client, AsyncExitStack() as stack:
        stream = await opened(stack, client)
        broker.fail_publish(BrokerUnavailableError("away"))
        with pytest.raises(BrokerUnavailableError):
            await push.disconnect(slot_key="k")
        assert await stream.wait_ended() == "revoked"


async def test_the_error_says_that_streams_elsewhere_were_not_ended() -> None:
    broker = HangingOrFailing()
    push, script = LivePush(broker, both), LivePush(broker, both)
    broker.refuses = True
    async with push.lifespan():
        for each in (push, script):
            with pytest.raises(
                BrokerUnavailableError, match=r"^cannot end streams in other processes: as the test wants it$"
            ):
                await each.disconnect(slot_key="k")
        broker.refuses = False


async def test_a_revocation_is_sent_again_while_the_broker_is_away() -> None:
    broker = HangingOrFailing()
    houses = [LivePush(broker, both) for _ in range(2)]
    async with AsyncExitStack() as stack:
        for push in houses:
            await stack.enter_async_context(push.lifespan())
        streams = [await opened(stack, Client(push)) for push in houses]
        broker.refuses = True

        async def come_back() -> None:
            # The streams of this process do not wait for the others.
            assert await streams[0].wait_ended() == "revoked"
            await let_pass(5)
            assert houses[1].statistics()["streams"] == 1
            broker.refuses = False

        async with later(come_back):
            done = await houses[0].disconnect(slot_key="k", retry_for=20)
        assert done.processes == 2
        assert await streams[1].wait_ended() == "revoked"


async def test_a_program_sends_its_revocation_again_too() -> None:
    broker = HangingOrFailing()
    push, script = LivePush(broker, both), LivePush(broker, both)
    async with push.lifespan(), Client(push) as client, AsyncExitStack() as stack:
        stream = await opened(stack, client)
        broker.refuses = True
        start = anyio.current_time()
        with pytest.raises(BrokerUnavailableError):
            await script.disconnect(slot_key="k", retry_for=3)
        assert 1 < anyio.current_time() - start <= 3

        async def come_back() -> None:
            await let_pass(5)
            broker.refuses = False

        async with later(come_back):
            assert (await script.disconnect(slot_key="k", retry_for=20)).processes == 1
        assert await stream.wait_ended() == "revoked"


async def test_a_command_that_is_lost_on_its_way_is_read_from_the_log() -> None:
    server = FaultyServer(History())
    brokers = [FaultyBroker(server) for _ in range(2)]
    houses = [LivePush(broker, both) for broker in brokers]
    async with AsyncExitStack() as stack:
        for push in houses:
            await stack.enter_async_context(push.lifespan())
            stream = await opened(stack, Client(push))
        await anyio.wait_all_tasks_blocked()
        brokers[1].losing = 1
        done = await houses[0].disconnect(slot_key="k")
        assert done.processes == 1
        # The other one learns at its next look that its way was cut.
        assert await stream.wait_ended(120) == "revoked"


async def test_streams_are_authorized_again_where_a_revocation_may_be_lost(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker, door = MockBroker(), Door()
    door.open.set()
    decisions = {"/stays": both, "/goes": both, "/moves": both, "/ends": both, "/breaks": both}
    decisions["/sooner"] = both
    asked: list[str] = []

    async def authorize(request: StreamRequest) -> Grant | Refusal:
        asked.append(request.path)
        await door(request)
        return decisions[request.path](request)

    def broken(request: StreamRequest) -> Grant:
        raise OSError("the database is away")

    push = LivePush(broker, authorize)
    async with push.lifespan(), Client(push) as client, AsyncExitStack() as stack:
        streams = {path: await opened(stack, client, path) for path in decisions}
        asked.clear()
        decisions["/goes"] = lambda request: Refusal(403)  # type: ignore[assignment, return-value]
        decisions["/moves"] = lambda request: Grant(channels="news", slot_key="k")
        decisions["/ends"] = lambda request: Grant(
            channels=["news", "user"], slot_key="k", expires_at=time.time() - 1
        )
        decisions["/sooner"] = lambda request: Grant(
            channels=["news", "user"], slot_key="k", expires_at=time.time() + 60
        )
        decisions["/breaks"] = broken
        caplog.clear()
        broker.drop()
        for path in ("/goes", "/moves", "/ends", "/sooner", "/breaks"):
            assert await streams[path].wait_ended() == "revoked"
        # Once more where it has failed.
        assert sorted(asked) == sorted([*decisions, "/breaks"])
        await push.publish("news", "still here")
        assert (await streams["/stays"].next_event()).data == "still here"
        lines = [record for record in caplog.records if "revocations may have been lost" in record.message]
        assert len(lines) == 1
        assert push.statistics()["refused"][RefusalCause.AUTHORIZE] == 0


@pytest.mark.parametrize("failures", [1, 2])
async def test_an_authorize_that_fails_once_for_an_open_stream_is_called_again(
    failures: int, caplog: pytest.LogCaptureFixture
) -> None:
    """As when Redis and the database were away together."""
    broker, calls = MockBroker(), 0

    def authorize(request: StreamRequest) -> Grant:
        nonlocal calls
        calls += 1
        if 1 < calls <= 1 + failures:
            raise OSError("the database is away")
        return both(request)

    push = LivePush(broker, authorize)
    async with push.lifespan(), Client(push) as client, AsyncExitStack() as stack:
        stream = await opened(stack, client)
        caplog.clear()
        broker.drop()
        await let_pass(3)
        assert calls == 3
        lines = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
        if failures == 1:
            await push.publish("news", "still here")
            assert (await stream.next_event()).data == "still here"
            assert lines == []
        else:
            assert await stream.wait_ended() == "revoked"
            assert lines == ["authorize failed twice for an open stream, so the stream ends"]
            assert "the database is away" in caplog.text
        assert "the client got" not in caplog.text


async def test_many_streams_whose_authorize_fails_are_one_line_and_one_moment(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker, away = MockBroker(), False

    def authorize(request: StreamRequest) -> Grant:
        if away:
            raise OSError("the database is away")
        return both(request)

    push = LivePush(broker, authorize)
    async with push.lifespan(), Client(push) as client, AsyncExitStack() as stack:
        for _ in range(60):
            await opened(stack, client)
        caplog.clear()
        away = True
        broker.drop()
        await let_pass(1.5)
        assert push.statistics()["streams"] == 0
        assert sum(record.levelno == logging.ERROR for record in caplog.records) == 1


async def test_a_few_streams_are_authorized_again_at_a_time() -> None:
    broker, door = MockBroker(), Door()
    door.open.set()
    push = LivePush(broker, door)
    async with push.lifespan(), Client(push) as client, AsyncExitStack() as stack:
        for _ in range(60):
            await opened(stack, client)
        door.open = anyio.Event()
        door.busiest = 0
        broker.drop()
        await anyio.wait_all_tasks_blocked()
        assert door.busy == door.busiest == 20
        door.open.set()
        await let_pass(1)
        assert door.calls == 120
        assert door.busiest == 20
        assert push.statistics()["streams"] == 60


async def test_streams_of_routes_end_spread_over_time_where_a_revocation_may_be_lost() -> None:
    broker = MockBroker()
    service = SSEStreamService(broker)
    async with service.push.lifespan():
        streams = [await service.open_stream(channel="news") for _ in range(40)]
        for stream in streams:
            await anext(stream.body)
        broker.drop()
        ended_at: list[float] = []
        start = anyio.current_time()

        async def read(stream: object) -> None:
            async for _ in stream.body:  # type: ignore[attr-defined]
                pass
            ended_at.append(anyio.current_time() - start)

        async with anyio.create_task_group() as tasks:
            for stream in streams:
                tasks.start_soon(read, stream)
        assert max(ended_at) < 6
        assert max(ended_at) - min(ended_at) > 1
        assert service.statistics()["ended"][EndReason.REVOKED] == 40


class LateBroker(MemoryBroker):
    """Subscribes the channel of the commands when it is told to."""

    in_process = False

    def __init__(self) -> None:
        super().__init__()
        self.away = True
        self.ready = anyio.Event()
        self.subscribed: list[str] = []

    async def subscribe(self, channel: str) -> Subscription:
        if channel == "livepush.commands":
            if self.away:
                raise BrokerUnavailableError("away")
            await self.ready.wait()
        self.subscribed.append(channel)
        return await super().subscribe(channel)


async def test_a_process_hears_commands_before_it_decides_about_its_first_stream() -> None:
    broker, calls = LateBroker(), []

    def authorize(request: StreamRequest) -> Grant:
        calls.append(list(broker.subscribed))
        return both(request)

    push = LivePush(broker, authorize)
    broker.away = False
    async with push.lifespan(), Client(push) as client:

        async def go_on() -> None:
            await let_pass(1)
            assert calls == []
            broker.ready.set()

        async with later(go_on), client.open("/") as stream:
            await stream.next_event(name="livepush.open")
        assert calls == [["livepush.commands"]]


@pytest.mark.parametrize("still_granted", [True, False])
async def test_a_stream_that_opened_without_commands_is_authorized_when_they_are_heard(
    still_granted: bool,
) -> None:
    """In a broker with history, too, whose log is known from the subscription on."""
    broker = LateBroker()
    granted = True
    push = LivePush(broker, lambda request: both(request) if granted else Refusal(403))
    async with push.lifespan(), Client(push) as client, client.open("/") as stream:
        await stream.next_event(name="livepush.open")
        assert not push.healthy
        granted = still_granted
        broker.away = False
        broker.ready.set()
        await let_pass(10)
        assert push.healthy
        if not still_granted:
            assert await stream.wait_ended() == "revoked"
        else:
            await push.publish("news", "x")
            assert (await stream.next_event()).data == "x"


async def test_a_decision_that_began_without_commands_is_made_again_when_they_are_heard() -> None:
    """Another process may have revoked it meanwhile."""
    broker, door = LateBroker(), Door()
    push = LivePush(broker, door)
    async with push.lifespan(), Client(push) as client:

        async def hear() -> None:
            await door.called.wait()
            broker.away = False
            broker.ready.set()
            await let_pass(3)
            door.decision = Refusal(403)
            door.open.set()

        async with later(hear):
            assert (await client.request("GET", "/")).status == 403
        assert door.calls == 2


async def test_a_broker_that_hangs_holds_the_first_stream_up_for_the_subscribe_timeout_only() -> None:
    broker = LateBroker()
    broker.away = False
    push = LivePush(broker, both, timing=Timing(subscribe_timeout=1.5))
    async with push.lifespan(), Client(push) as client:
        start = anyio.current_time()
        async with client.open("/") as stream:
            await stream.next_event(name="livepush.open")
            assert anyio.current_time() - start == pytest.approx(1.5, abs=0.2)
            broker.ready.set()


async def test_what_processes_tell_each_other_is_not_counted_and_not_shown() -> None:
    broker = MockBroker()
    push = LivePush(broker, both)
    async with push.lifespan(), Client(push) as client, AsyncExitStack() as stack:
        await opened(stack, client)
        await push.disconnect(slot_key="nobody")
        await push.publish("news", "x")
        assert [name for name, _ in broker.published] == ["news"]
        assert push.statistics()["delivered"] == 1
        assert push.statistics()["channels"] == 2


async def test_a_message_that_cannot_be_read_is_logged_once_and_the_next_one_is_obeyed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker = MemoryBroker()
    push = LivePush(broker, both)
    async with push.lifespan(), Client(push) as client, AsyncExitStack() as stack:
        stream = await opened(stack, client)
        for text in ("no json", "[]", '{"command": "disconnect"}', '{"command": "from the future"}'):
            await broker.publish("livepush.commands", text)
        await anyio.wait_all_tasks_blocked()
        assert push.statistics()["streams"] == 1
        assert [record.levelno for record in caplog.records] == [logging.ERROR]
        await push.disconnect(slot_key="k")
        assert await stream.wait_ended() == "revoked"


class HangingBroker(MemoryBroker):
    """Takes no more commands when it is told to: each publish of one waits for ever."""

    hangs = False

    async def append(self, channel: str, payload: bytes, **arguments: Any) -> Position:
        if self.hangs:
            await anyio.sleep_forever()
        return await super().append(channel, payload, **arguments)


async def test_disconnect_gives_up_a_broker_that_hangs_when_its_time_is_over() -> None:
    broker = HangingBroker()
    push = LivePush(broker, both)
    async with push.lifespan(), Client(push) as client, client.open("/") as stream:
        await stream.next_event(name="livepush.open")
        broker.hangs = True
        start = anyio.current_time()
        with pytest.raises(BrokerUnavailableError, match="did not take the revocation in time"):
            await push.disconnect(channel="news", timeout=3)
        assert anyio.current_time() - start <= 4.1
        assert await stream.wait_ended() == "revoked"


async def test_a_script_gives_up_a_broker_that_hangs_too() -> None:
    broker = HangingBroker()
    broker.hangs = True
    push = LivePush(broker, both)
    start = anyio.current_time()
    with pytest.raises(BrokerUnavailableError, match="did not take the revocation in time"):
        await push.disconnect(channel="news", timeout=3)
    assert anyio.current_time() - start <= 3.1
