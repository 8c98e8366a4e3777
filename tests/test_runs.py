"""Runs in memory: started once, read by many, cancelled, lost, continued, and what each of them is told."""

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial

import anyio
import anyio.to_thread
import pytest

from livepush_asgi import (
    READ_BYTES,
    BrokerUnavailableError,
    DrainPolicy,
    Gap,
    GapReason,
    Grant,
    History,
    InvalidGrantError,
    Limits,
    LivePush,
    MemoryBroker,
    MockBroker,
    NotRunningError,
    Page,
    Position,
    PositionConflictError,
    Received,
    Refusal,
    RunExistsError,
    RunFailedError,
    RunNotFoundError,
    RunState,
    RunStatus,
    StreamRequest,
    Subscription,
)
from livepush_asgi.dialects import Dialect, ai_sdk, livepush
from livepush_asgi.runs.log import RunLog
from livepush_asgi.testing import Client, EventStreamParser
from livepush_asgi.wire.cursor import event_id
from livepush_asgi.wire.run_record import RunRecord, record_in

pytestmark = pytest.mark.virtual_time

LEASE = 15.0


class Counting:
    """Yields numbers, and knows whether it has begun and was closed."""

    def __init__(self, first: int, last: int, pace: float = 1.0) -> None:
        self.begun = False
        self.closed = anyio.Event()
        self._range = range(first, last + 1)
        self._pace = pace

    async def __call__(self) -> AsyncIterator[object]:
        self.begun = True
        try:
            for number in self._range:
                await anyio.sleep(self._pace)
                yield number
        finally:
            self.closed.set()


def serving(
    broker: MemoryBroker | None = None,
    *,
    control_events: bool = True,
    drain: DrainPolicy | None = None,
    limits: Limits | None = None,
) -> LivePush:
    async def authorize(request: StreamRequest) -> Grant | Refusal:
        return await push.run(request.path[1:]).grant(request)

    push = LivePush(
        broker or MemoryBroker(), authorize, control_events=control_events, drain=drain, limits=limits
    )
    return push


async def text_of(push: LivePush, last_event_id: str | None = None) -> list[str]:
    """Return what a reader gets, and how the run has ended."""
    async with push.run("a").read(last_event_id=last_event_id) as items:
        found = [item.data if isinstance(item, Received) else f"gap {item.reason}" async for item in items]
        return [*found, items.state]


async def status_of(push: LivePush) -> RunStatus:
    status = await push.run("a").status()
    assert status is not None
    return status


async def test_readers_at_any_time_get_the_whole_output_and_its_end() -> None:
    push = serving()
    texts: dict[int, list[str]] = {}

    async def read_after(seconds: int) -> None:
        await anyio.sleep(seconds)
        texts[seconds] = await text_of(push)

    async with push.lifespan():
        assert await push.run("a").start(Counting(1, 5)())
        async with anyio.create_task_group() as readers:
            for seconds in (0, 3, 5, 60):
                readers.start_soon(read_after, seconds)
        assert set(map(tuple, texts.values())) == {("1", "2", "3", "4", "5", "done")}
        status = await push.run("a").wait()
        assert (status.state, status.count, status.ended) == (RunState.DONE, 5, True)


async def test_a_reader_goes_on_after_the_id_of_an_item() -> None:
    push = serving()
    async with push.lifespan():
        await push.run("a").start(Counting(1, 5)())
        async with push.run("a").read() as items:
            item = await anext(items)
        assert await text_of(push, item.id) == ["2", "3", "4", "5", "done"]


@pytest.mark.parametrize("control_events", [True, False])
async def test_a_page_gets_the_end_and_then_a_204(control_events: bool) -> None:
    push = serving(control_events=control_events)
    async with push.lifespan(), Client(push) as client:
        async with client.open("/a") as page:
            assert page.status == 204
        await push.run("a").start(Counting(1, 3)())
        async with client.open("/a") as page:
            parser = EventStreamParser()
            events = parser.feed(await page.read_body(timeout=60))
        names = ["livepush.open"] if control_events else []
        end = ["livepush.end", "livepush.close"] if control_events else []
        assert [event.event for event in events] == [*names, "message", "message", "message", *end]
        if control_events:
            assert events[-2].data == '{"state":"done","count":3,"error":null}'
        assert not [comment for comment in parser.comments if comment]
        async with client.open("/a", last_event_id=parser.last_event_id) as page:
            assert page.status == 204
        async with client.open("/a") as page:
            assert b"data: 3" in await page.read_body(timeout=60)


async def test_of_many_starts_one_runs() -> None:
    push, other = serving(broker := MemoryBroker()), serving(broker)
    jobs = [Counting(1, 3) for _ in range(8)]
    results: list[bool] = []

    async def start(number: int) -> None:
        results.append(await (push, other)[number % 2].run("a").start(jobs[number]()))

    async with push.lifespan(), other.lifespan():
        async with anyio.create_task_group() as starts:
            for number in range(8):
                starts.start_soon(start, number)
        assert sorted(results) == [False] * 7 + [True]
        with pytest.raises(RunExistsError, match="running"):
            await push.run("a").start(jobs[0](), join=False)
        assert await text_of(other) == ["1", "2", "3", "done"]
        assert sum(job.begun for job in jobs) == 1
        with pytest.raises(RunExistsError, match="done"):
            await push.run("a").start(lambda _: jobs[0](), join=False, resume=True)


async def test_an_iterator_that_raises_has_failed() -> None:
    async def failing() -> AsyncIterator[object]:
        yield "one"
        raise ZeroDivisionError("a password")

    push = serving()
    async with push.lifespan():
        await push.run("a").start(failing())
        assert await text_of(push) == ["one", "failed"]


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        ("The model is busy.", "The model is busy."),
        ("", None),
        ("two\nlines \ud800 & <b>", "two\nlines ? & <b>"),
        ("x" * 5000, "x" * 999 + "…"),
    ],
    ids=["text", "empty", "hostile", "long"],
)
async def test_the_text_of_a_failure_is_for_the_readers(
    raised: str, told: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    # pytest-xdist cannot pass on a log with a lone surrogate.
    caplog.set_level("CRITICAL", "livepush_asgi")

    async def failing() -> AsyncIterator[object]:
        yield "one"
        raise RunFailedError(raised) from ZeroDivisionError("a password")

    push, other = serving(broker := MemoryBroker()), serving(broker)
    async with push.lifespan(), other.lifespan(), Client(other) as client:
        await push.run("a").start(failing())
        async with other.run("a").read() as items:
            assert [item.data async for item in items if isinstance(item, Received)] == ["one"]
        assert (items.state, items.error) == (RunState.FAILED, told)
        status = await status_of(other)
        assert (status.state, status.error) == (RunState.FAILED, told)
        async with client.open("/a") as page:
            *_, end, _ = EventStreamParser().feed(await page.read_body(timeout=60))
        assert (end.event, end.json()) == ("livepush.end", {"state": "failed", "count": 1, "error": told})
        # Another attempt has an end of its own.
        assert await push.run("a").start(lambda _: Counting(2, 3)(), resume=True)
        assert await text_of(other) == ["one", "2", "3", "done"]
        assert (await status_of(other)).error is None


async def test_cancel_ends_the_readers_and_closes_the_iterator() -> None:
    push, other = serving(broker := MemoryBroker()), serving(broker)
    job = Counting(1, 100, pace=3.0)
    async with push.lifespan(), other.lifespan():
        assert await other.run("a").cancel() is None
        await push.run("a").start(job())
        async with other.run("a").read() as items:
            await anext(items)
            status = await other.run("a").cancel()
            assert status is not None
            assert (status.state, status.count) == (RunState.CANCELLED, 1)
            with anyio.fail_after(0.1):
                assert [item async for item in items] == []
                await job.closed.wait()
        assert await push.run("a").cancel() == status
        assert await text_of(push) == ["1", "cancelled"]


async def test_cancelling_a_run_that_is_done_changes_nothing() -> None:
    push = serving()
    async with push.lifespan():
        await push.run("a").start(Counting(1, 2)())
        await push.run("a").wait()
        status = await push.run("a").cancel()
        assert status is not None
        assert status.state is RunState.DONE


async def test_a_process_that_stops_lets_its_runs_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "livepush_asgi")
    push, other = serving(broker := MemoryBroker()), serving(broker)
    async with other.lifespan():
        async with push.lifespan():
            await push.run("a").start(Counting(1, 6)())
            await push.run("b").start(Counting(1, 100)())
            await anyio.sleep(3.5)
        assert await text_of(other) == ["1", "2", "3", "4", "5", "6", "done"]
        status = await other.run("b").status()
    assert status is not None
    assert (status.state, status.count) == (RunState.LOST, 8)
    assert push.statistics()["runs_ended"] == {"done": 1, "failed": 0, "cancelled": 0, "lost": 1}
    line = "of 2 runs of this process, 1 have ended within 5.0 s, and 1 were stopped and are lost"
    assert line in caplog.messages


async def test_a_run_is_lost_when_its_process_stops_and_another_goes_on() -> None:
    push, other = serving(broker := MemoryBroker(), drain=DrainPolicy(runs=0)), serving(broker)
    job = Counting(1, 100)
    async with other.lifespan():
        async with push.lifespan():
            await push.run("a").start(job())
            await anyio.sleep(3.5)
        assert job.closed.is_set()
        assert await text_of(other) == ["1", "2", "3", "lost"]
        status = await status_of(other)
        assert await other.run("a").start(lambda count: Counting(count + 1, 5)(), resume=True)
        assert await text_of(other) == ["1", "2", "3", "4", "5", "done"]
        assert await text_of(other, status.last_event_id) == ["4", "5", "done"]


async def test_a_run_that_is_started_again_is_read_from_its_new_start() -> None:
    push = serving()
    async with push.lifespan():
        await push.run("a").start(Counting(1, 2)())
        async with push.run("a").read() as items:
            first = await anext(items)
        await push.run("a").wait()
        old = await status_of(push)
        assert not await push.run("a").start(Counting(8, 9)())
        assert await push.run("a").start(Counting(8, 9)(), restart=True)
        assert await text_of(push) == ["8", "9", "done"]
        # The old output, or a part of it, is in the reader's text.
        for id in (first.id, old.last_event_id):
            assert await text_of(push, id) == ["gap epoch", "8", "9", "done"]
        assert (await status_of(push)).count == 2


class StoppingBroker(MemoryBroker):
    """The connection of a process to a broker in memory. While it is stopped, nothing gets through.

    As often as `cut` says, it appends and then says that the broker is away, or does not append. It may be
    cut in the middle of a batch.
    """

    def __init__(self, broker: MemoryBroker, cut: Callable[[], bool] = lambda: False) -> None:
        super().__init__()
        self._broker = broker
        self._cut = cut
        self.going = anyio.Event()
        self.going.set()

    async def append(
        self,
        channel: str,
        payload: bytes,
        *,
        idempotency_key: str | None = None,
        expected_position: Position | None = None,
    ) -> Position:
        await self.going.wait()
        if self._cut():
            raise BrokerUnavailableError("cut before the append")
        position = await self._broker.append(
            channel, payload, idempotency_key=idempotency_key, expected_position=expected_position
        )
        if self._cut():
            raise BrokerUnavailableError("cut after the append")
        return position

    async def append_batch(
        self, channel: str, payloads: Sequence[bytes], *, expected_position: Position
    ) -> Position:
        await self.going.wait()
        end = expected_position
        for payload in payloads:
            if self._cut():
                raise BrokerUnavailableError("cut within a batch")
            try:
                end = await self._broker.append(channel, payload, expected_position=end)
            except PositionConflictError:
                if end is expected_position:
                    raise
                break
        if self._cut():
            raise BrokerUnavailableError("cut after a batch")
        return end

    async def subscribe(self, channel: str) -> Subscription:
        return await self._broker.subscribe(channel)

    async def read(self, channel: str, after: int, limit: int, *, max_bytes: int = READ_BYTES) -> Page:
        await self.going.wait()
        return await self._broker.read(channel, after, limit, max_bytes=max_bytes)


async def test_a_silent_producer_is_lost_after_its_lease_and_fenced_when_it_wakes() -> None:
    broker = MemoryBroker()
    stopping = StoppingBroker(broker)
    push, other = serving(stopping), serving(broker)
    job = Counting(1, 100, pace=2.0)
    async with push.lifespan(), other.lifespan():
        await push.run("a").start(job(), lease=LEASE)
        await anyio.sleep(3)
        stopping.going = anyio.Event()
        began = anyio.current_time()
        assert await text_of(other) == ["1", "lost"]
        assert LEASE <= anyio.current_time() - began <= LEASE * 4 / 3
        assert await other.run("a").start(lambda _: Counting(2, 60)(), resume=True)
        stopping.going.set()
        await anyio.sleep(1)
        assert job.closed.is_set()
        assert await text_of(other) == [*map(str, range(1, 61)), "done"]


async def burst(count: int) -> AsyncIterator[object]:
    for number in range(count):
        yield number


class BatchFaults(MemoryBroker):
    """A broker whose first batches of several events meet the named faults, and each other one none."""

    def __init__(self, *faults: str, history: History | None = None) -> None:
        super().__init__(history)
        self.sizes: list[int] = []
        self._faults = list(faults)
        self._late: Callable[[], Awaitable[object]] | None = None

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
        # The producer goes on in the meantime, as over a network.
        await anyio.sleep(0.01)
        await self.arrive()
        self.sizes.append(len(payloads))
        fault = self._faults.pop(0) if len(payloads) > 1 and self._faults else "none"
        half = payloads[: len(payloads) // 2]
        match fault:
            case "half appended, and cut":
                await super().append_batch(channel, half, expected_position=expected_position)
            case "all appended, and cut":
                await super().append_batch(channel, payloads, expected_position=expected_position)
            case "late":
                self._late = partial(
                    super().append_batch, channel, payloads, expected_position=expected_position
                )
            case "half late":
                await super().append_batch(channel, half[:1], expected_position=expected_position)
                self._late = partial(
                    super().append_batch,
                    channel,
                    half[1:],
                    expected_position=expected_position.at(expected_position.offset + 1),
                )
            case "half appended, and another":
                end = await super().append_batch(channel, half, expected_position=expected_position)
                await self.publish(channel, "other")
                return end
            case "another":
                await self.publish(channel, "other")
                return await super().append_batch(channel, payloads, expected_position=expected_position)
            case _:
                return await super().append_batch(channel, payloads, expected_position=expected_position)
        raise BrokerUnavailableError(fault)

    async def arrive(self) -> None:
        """Append what was late, unless something else was appended there."""
        late, self._late = self._late, None
        if late is not None:
            with suppress(PositionConflictError):
                await late()


FAULTS = (
    "half appended, and cut",
    "all appended, and cut",
    "late",
    "half late",
    "half appended, and another",
    "another",
)


@pytest.mark.parametrize("faults", [*[(fault,) for fault in FAULTS], FAULTS, FAULTS[::-1]], ids="+".join)
async def test_a_batch_is_in_the_log_once(faults: tuple[str, ...]) -> None:
    push = serving(broker := BatchFaults(*faults))
    async with push.lifespan():
        await push.run("a").start(burst(500))
        text = await text_of(push)
        others = sum("another" in fault for fault in faults)
        assert text.count("other") == others
        assert [item for item in text if item != "other"] == [*map(str, range(500)), "done"]
        assert (await status_of(push)).count == 500
        assert push.statistics()["published"] == 500
        # No batch is larger than from record to record. The processor's time decides how large they are.
        assert 10 < max(broker.sizes) <= 101
        assert len(broker.sizes) < 100


async def test_a_batch_is_found_in_a_log_that_has_dropped_its_beginning() -> None:
    push = serving(BatchFaults("all appended, and cut", history=History(events=30)))
    async with push.lifespan():
        await push.run("a").start(burst(50))
        status = await push.run("a").wait()
        assert (status.state, status.count) == (RunState.DONE, 50)
        assert (await text_of(push))[1:] == [*map(str, range(23, 50)), "done"]


async def test_a_cancelled_run_appends_no_batch_after_its_end() -> None:
    closed = anyio.Event()

    async def endless() -> AsyncIterator[object]:
        try:
            while True:
                yield "x"
        finally:
            closed.set()

    push = serving(BatchFaults("half late"))
    async with push.lifespan():
        await push.run("a").start(endless())
        await anyio.sleep(0.1)
        status = await push.run("a").cancel()
        with anyio.fail_after(1):
            await closed.wait()
        assert status == await status_of(push)
        assert status is not None
        assert status.count + 1 == len(await text_of(push))


async def test_an_iterator_runs_no_further_ahead_than_it_may() -> None:
    yielded = 0

    async def counting() -> AsyncIterator[object]:
        nonlocal yielded
        while True:
            yielded += 1
            yield yielded

    push = serving(link := StoppingBroker(MemoryBroker()))
    async with push.lifespan():
        assert await push.run("a").start(counting(), ahead=7)
        link.going = anyio.Event()
        await anyio.sleep(1)
        before = yielded
        await anyio.sleep(1)
        # One more is in the source, and one is yielded when that is full.
        assert yielded == before <= push.statistics()["published"] + 7 + 2


@pytest.mark.parametrize("cuts", [[True], [False, True], [True] * 5, [False, True, True]], ids=str)
async def test_a_start_is_tried_again(cuts: list[bool]) -> None:
    """The broker is away for the first appends, or their answers are lost."""
    push = serving(StoppingBroker(MemoryBroker(), lambda: bool(cuts) and cuts.pop(0)))
    async with push.lifespan():
        assert await push.run("a").start(Counting(1, 3)())
        assert await text_of(push) == ["1", "2", "3", "done"]
        assert not cuts


async def test_a_start_gives_up_after_its_time() -> None:
    push = serving(StoppingBroker(MemoryBroker(), lambda: True))
    async with push.lifespan():
        job, began = Counting(1, 3), anyio.current_time()
        with pytest.raises(BrokerUnavailableError, match="cut before"):
            await push.run("a").start(job(), retry_for=20)
        assert 15 < anyio.current_time() - began <= 20
        assert not job.begun


async def test_a_quiet_producer_keeps_its_lease() -> None:
    push = serving()
    async with push.lifespan():
        await push.run("a").start(Counting(1, 2, pace=20 * LEASE)(), lease=LEASE)
        assert await text_of(push) == ["1", "2", "done"]


async def test_who_asks_for_a_run_that_was_killed_long_ago_is_told_that_it_is_lost() -> None:
    push = serving(broker := MemoryBroker())
    log = RunLog(broker, "run:a")
    _, end = await log.state()
    start = RunRecord(kind="start", attempt="x", begin=1, lease=LEASE, at=1e9, count=0)
    await log.append(start, end)
    async with push.lifespan():
        began = anyio.current_time()
        assert (await status_of(push)).state is RunState.LOST
        assert LEASE <= anyio.current_time() - began <= LEASE * 4 / 3
        assert await push.run("a").start(Counting(1, 2)(), restart=True)
        assert await text_of(push) == ["1", "2", "done"]


async def test_what_others_publish_to_the_channel_does_not_stop_it() -> None:
    push = serving()
    async with push.lifespan():
        await push.run("a").start(Counting(1, 4)())
        await anyio.sleep(1.5)
        for _ in range(300):
            await push.publish("run:a", "x")
        assert (await status_of(push)).count == 301
        assert [text for text in await text_of(push) if text != "x"] == ["1", "2", "3", "4", "done"]
        await push.publish("run:a", "x")
        with anyio.fail_after(5):
            assert (await text_of(push))[-2:] == ["4", "done"]


async def test_a_reader_of_one_item_a_second_loses_nothing_and_slows_nobody() -> None:
    push = serving(MemoryBroker(History(events=5000)), limits=Limits(outbox_events=10, message_bytes=200))
    numbers = list(map(str, range(1, 2001)))
    async with push.lifespan(), Client(push) as client:
        await push.run("a").start(Counting(1, 2000, pace=0.001)())
        async with push.run("a").read() as items, client.open("/a", window=1) as page:
            found, shown = [await anext(items)], [await page.next_event()]
            await anyio.sleep(2.1)
            status = await status_of(push)
            assert (status.state, status.count) == (RunState.DONE, 2000)
            while len(found) < 2000:
                found.append(await anext(items))
                shown.append(await page.next_event())
                await anyio.sleep(1)
                assert push.statistics()["outbox_bytes"] < 1000
            assert [item async for item in items] == []
            assert (items.state, items.count) == (RunState.DONE, 2000)
        assert [item.data for item in found if isinstance(item, Received)] == numbers
        assert [event.data for event in shown] == numbers


@pytest.mark.parametrize("history", [History(events=50), History(size=500)])
async def test_a_history_that_is_too_short_is_a_gap_and_not_a_loss_of_the_state(
    history: History, caplog: pytest.LogCaptureFixture
) -> None:
    push = serving(MemoryBroker(history))
    async with push.lifespan():
        await push.run("a").start(Counting(1, 500, pace=0.01)())
        status = await push.run("a").wait()
        assert (status.state, status.count) == (RunState.DONE, 500)
        async with push.run("a").read() as items:
            first = await anext(items)
            assert isinstance(first, Gap)
            assert first.reason is GapReason.EXPIRED
            assert [item.data async for item in items if isinstance(item, Received)][-1] == "500"
    told = [record.livepush_channel for record in caplog.records if record.livepush_event == "run_outgrown"]  # type: ignore[attr-defined]
    assert told == ["run:a"]


async def test_an_output_that_the_history_holds_is_not_complained_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    push = serving(MemoryBroker())
    async with push.lifespan():
        await push.run("a").start(Counting(1, 9_000, pace=0.01)())
        assert (await push.run("a").wait()).count == 9_000
        async with push.run("a").read() as items:
            first = await anext(items)
            assert isinstance(first, Received)
            assert first.data == "1"
    assert not caplog.records


@pytest.mark.parametrize("read", [ai_sdk(), livepush()], ids=lambda dialect: dialect.name)
async def test_a_run_that_is_served_in_another_dialect_is_logged(
    read: Dialect, caplog: pytest.LogCaptureFixture
) -> None:
    push = serving()
    async with push.lifespan():
        await push.run("a", dialect=read).queue()
        # Nobody has written anything.
        await push.run("a").grant()
        assert not caplog.records
        await push.run("a").start(Counting(1, 3)())
        await push.run("a").wait()
        for _ in range(2):
            await push.run("a", dialect=read).grant()
    told = [(record.livepush_written, record.livepush_read) for record in caplog.records]  # type: ignore[attr-defined]
    assert told == ([] if read.name == "livepush" else [("livepush", "ai-sdk")])


@pytest.mark.parametrize("lease", [0, -1.0, float("inf"), float("nan")])
def test_a_record_with_an_impossible_lease_is_none(lease: float) -> None:
    """Another program may publish anything: nobody watches a run for ever, or without a pause."""
    record = RunRecord(kind="start", attempt="x", begin=1, lease=lease, at=1e9, count=0)
    assert record_in(record.encode()) is None


async def test_what_is_no_run() -> None:
    with pytest.raises(TypeError, match="MockBroker keeps no history"):
        LivePush(MockBroker(), lambda request: Refusal()).run("a")
    push = serving()
    with pytest.raises(ValueError, match="not empty"):
        push.run("")
    with pytest.raises(InvalidGrantError):
        push.run("\ud800")
    async with push.lifespan():
        with pytest.raises(TypeError, match="async iterator"):
            await push.run("a").start([1])  # type: ignore[arg-type]
        for lease in (0.05, 0, -1, 3601, float("nan")):
            with pytest.raises(ValueError, match=r"lease is in seconds, at least 0\.1"):
                await push.run("a").start(Counting(1, 1)(), lease=lease)
        for retry_for in (-1, float("nan"), "5", "", None, True):
            with pytest.raises(ValueError, match="retry_for is in seconds, from 0 up"):
                await push.run("a").start(Counting(1, 1)(), retry_for=retry_for)  # type: ignore[arg-type]
            with pytest.raises(ValueError, match="retry_for is in seconds, from 0 up"):
                await push.publish("news", "one", retry_for=retry_for)  # type: ignore[arg-type]
        with pytest.raises(RunNotFoundError, match="never started"):
            await text_of(push)
        assert await push.run("a").status() is None


async def test_a_process_with_runs_revokes_as_any_other() -> None:
    """Both listen to the commands of other processes."""
    push = serving()
    async with push.lifespan(), Client(push) as client:
        await push.run("a").start(Counting(1, 100)())
        async with client.open("/a") as page:
            await page.next_event(timeout=5)
            done = await push.disconnect(channel="run:a")
            assert (done.streams, done.processes, done.missing) == (1, 1, 0)
            assert await page.wait_ended() == "revoked"
        assert push.statistics()["published"] == 1


async def test_each_namespace_has_its_runs() -> None:
    broker = MemoryBroker()
    one, two = (LivePush(broker, lambda request: Refusal(), namespace=name) for name in ("one", "two"))
    async with one.lifespan(), two.lifespan():
        assert await one.run("a").start(Counting(1, 1)())
        assert await two.run("a").start(Counting(2, 2)())
        assert (await text_of(one), await text_of(two)) == (["1", "done"], ["2", "done"])
        await one.drain()
        with pytest.raises(NotRunningError):
            await one.run("b").start(Counting(1, 1)())


@pytest.mark.real_time
async def test_threads_ask_and_cancel() -> None:
    push = serving()
    async with push.lifespan():
        assert await anyio.to_thread.run_sync(push.run("a").status_sync) is None
        await push.run("a").start(Counting(1, 100)())
        status = await anyio.to_thread.run_sync(push.run("a").cancel_sync)
        assert status == await anyio.to_thread.run_sync(push.run("a").status_sync)
        assert status is not None
        assert status.state is RunState.CANCELLED
        with pytest.raises(RuntimeError, match="await run"):
            push.run("a").cancel_sync()


# run_stories.py has many more, on asyncio.
@pytest.mark.parametrize("seed", range(3))
async def test_random_interleavings(seed: int) -> None:
    """Processes start, continue, cancel and read a run, stand still and wake, in any order."""
    chance = random.Random(seed)
    broker = MemoryBroker(History(events=10_000))
    links = [StoppingBroker(broker, lambda: chance.random() < 0.1) for _ in range(2)]
    pushes = [serving(link) for link in links]
    reader = serving(broker)
    texts: list[list[str]] = []

    async def act(push: LivePush) -> None:
        for _ in range(4):
            await anyio.sleep(chance.uniform(0, 40))
            with suppress(BrokerUnavailableError):
                if chance.random() < 0.3:
                    await push.run("a").cancel()
                    continue
                await push.run("a").start(lambda count: Counting(count + 1, 60)(), resume=True)

    async def stand_still(link: StoppingBroker) -> None:
        for _ in range(3):
            await anyio.sleep(chance.uniform(0, 30))
            link.going = anyio.Event()
            await anyio.sleep(chance.choice([0.5, 10, 50]))
            link.going.set()

    async def read() -> None:
        last_event_id, text = None, list[str]()
        while True:
            await anyio.sleep(chance.uniform(0, 20))
            try:
                async with reader.run("a").read(last_event_id=last_event_id) as items:
                    with anyio.move_on_after(chance.uniform(0, 60)):
                        async for item in items:
                            assert isinstance(item, Received)
                            text.append(item.data)
                    last_event_id = items.last_event_id
            except RunNotFoundError:
                continue
            if anyio.current_time() - began > 400 and (await status_of(reader)).ended:
                break
        texts.append(text)

    async with reader.lifespan(), pushes[0].lifespan(), pushes[1].lifespan():
        began = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            for push, link in zip(pushes, links, strict=True):
                tasks.start_soon(act, push)
                tasks.start_soon(stand_still, link)
            tasks.start_soon(read)
            tasks.start_soon(read)
        whole = (await text_of(reader))[:-1]
        records = (await broker.read("run:a", 0, 10_000)).records
    # One text: nobody has produced what another has, and nothing follows an end but a start.
    assert whole == list(map(str, range(1, len(whole) + 1)))
    assert texts == [whole, whole]
    ended = True
    for record in records:
        found = record_in(record.payload)
        if found is not None and found.kind != "alive":
            assert found.kind == "end" or ended
            ended = found.kind == "end"
        else:
            assert not ended


async def test_a_reader_passes_a_long_output_that_was_restarted_without_a_pause() -> None:
    """Catches a reader that stops at pages of which it is sent nothing, until the next heartbeat."""
    push = LivePush(MemoryBroker(), lambda request: push.run("a").grant(request))
    async with push.lifespan(), Client(push) as client:
        await push.run("a").start(Counting(1, 1500, pace=0)())
        assert len(await text_of(push)) == 1501
        await push.run("a").start(Counting(1, 2, pace=0)(), restart=True)
        began = anyio.current_time()
        # Of a log that was lost: the reader begins with the first event of this one.
        id = event_id("run:a", Position("lost", 9999))
        async with client.open("/", last_event_id=id) as stream:
            assert [(await stream.next_event()).data for _ in range(2)] == ["1", "2"]
        assert anyio.current_time() - began < 5
