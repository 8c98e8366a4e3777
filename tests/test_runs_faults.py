"""Runs whose broker is away, or whose caller is cancelled, at the worst moment."""

from collections.abc import AsyncIterator, Callable, Sequence

import anyio
import pytest

from livepush_asgi import (
    BrokerUnavailableError,
    History,
    LivePush,
    MemoryBroker,
    Position,
    Received,
    Refusal,
    RunState,
)
from livepush_asgi.brokers import Page
from livepush_asgi.dialects import ai_sdk, parsed
from livepush_asgi.runs.host import send_cancelled
from livepush_asgi.runs.log import RunLog
from livepush_asgi.runs.watch import Watch
from livepush_asgi.wire.run_record import Kind, RunFollower, RunRecord, record_of

pytestmark = pytest.mark.virtual_time

LEASE = 15.0


class Faulty(MemoryBroker):
    """A broker that is away while `away`, and that loses the answer to the next append for `forgets`."""

    def __init__(self, history: History | None = None) -> None:
        super().__init__(history)
        self.away = self.cannot_read = False
        self.forgets: bytes | None = None
        self.forgot = anyio.Event()
        self.answers_late = 0.0
        # How often it was read, and which of these reads fails.
        self.reads = self.fails_at = 0

    async def append(
        self,
        channel: str,
        payload: bytes,
        *,
        idempotency_key: str | None = None,
        expected_position: Position | None = None,
    ) -> Position:
        self._check(self.away)
        position = await super().append(
            channel, payload, idempotency_key=idempotency_key, expected_position=expected_position
        )
        if self.forgets is not None and self.forgets in payload:
            self.forgets = None
            self.forgot.set()
            await anyio.sleep(self.answers_late)
            raise BrokerUnavailableError("the answer is lost")
        return position

    async def append_batch(
        self, channel: str, payloads: Sequence[bytes], *, expected_position: Position
    ) -> Position:
        self._check(self.away)
        return await super().append_batch(channel, payloads, expected_position=expected_position)

    async def read(self, channel: str, after: int, limit: int, *, max_bytes: int = 2**20) -> Page:
        self.reads += 1
        self._check(self.away or self.cannot_read or self.reads == self.fails_at)
        return await super().read(channel, after, limit, max_bytes=max_bytes)

    def _check(self, away: bool) -> None:
        if away:
            raise BrokerUnavailableError("away")


def serving(broker: MemoryBroker) -> LivePush:
    return LivePush(broker, lambda request: Refusal(404))


async def numbers(last: int, first: int = 1) -> AsyncIterator[object]:
    """Yield numbers, one a second."""
    for number in range(first, last + 1):
        await anyio.sleep(1)
        yield number


async def text_of(push: LivePush) -> list[str]:
    async with push.run("a").read() as items:
        found = [item.data async for item in items if isinstance(item, Received)]
        return [*found, items.state]


async def test_what_a_look_at_the_log_finds_is_not_appended_again() -> None:
    """The answer to an append in memory is lost, and in the same turn of the loop a command comes."""

    class Forgetting(MemoryBroker):
        forgets = True

        def append_nowait(
            self, channel: str, payloads: Sequence[bytes], *, expected_position: Position
        ) -> Position:
            position = super().append_nowait(channel, payloads, expected_position=expected_position)
            if self.forgets and payloads[0].endswith(b"data: 2\n\n"):
                self.forgets = False
                with pytest.raises(StopIteration):
                    # In memory it waits for nothing.
                    send_cancelled(self, channel).send(None)
                raise BrokerUnavailableError("the answer is lost")
            return position

    push = serving(Forgetting())
    async with push.lifespan():
        await push.run("a").start(numbers(3))
        assert await text_of(push) == ["1", "2", "3", "done"]


async def test_the_end_of_a_run_waits_for_the_broker() -> None:
    """Catches an end that is tried for as long as one of a process that stops."""
    broker = Faulty()
    push = serving(broker)

    async def going_away() -> AsyncIterator[object]:
        yield 1
        await anyio.sleep(1)
        broker.away = True

    async with push.lifespan():
        await push.run("a").start(going_away())
        await anyio.sleep(11)
        broker.away = False
        with anyio.fail_after(5):
            assert await text_of(push) == ["1", "done"]


async def test_finish_goes_on_when_the_broker_was_away_at_the_end() -> None:
    broker = Faulty()
    push = serving(broker)

    async def unreadable_at_the_end(given: int) -> AsyncIterator[object]:
        yield 1
        await anyio.sleep(5)
        broker.cannot_read = True

    async def come_back() -> None:
        await anyio.sleep(6)
        broker.cannot_read = False

    async with push.lifespan(), anyio.create_task_group() as tasks:
        tasks.start_soon(come_back)
        assert (await push.run("a").finish(unreadable_at_the_end)).state is RunState.DONE


@pytest.mark.parametrize("goes_on", [{"restart": True}, {"resume": True}])
async def test_a_start_that_was_cancelled_before_its_answer_came_can_be_cancelled_again(
    goes_on: dict[str, bool],
) -> None:
    """An attempt ends once: the next try has another name."""
    broker = Faulty()
    push = serving(broker)
    async with push.lifespan(), anyio.create_task_group() as tasks:
        broker.forgets = b'"start"'
        tasks.start_soon(lambda: push.run("a").start(lambda given: numbers(1000), **goes_on))
        await broker.forgot.wait()
        status = await push.run("a").cancel()
        assert status is not None
        assert status.state is RunState.CANCELLED
        await anyio.sleep(5)
        found = await push.run("a").status()
        assert found is not None
        assert found.state is RunState.RUNNING
        status = await push.run("a").cancel()
        assert status is not None
        assert status.state is RunState.CANCELLED
        assert (await text_of(push))[-1] == "cancelled"


async def test_a_start_that_is_cancelled_leaves_no_run_without_a_producer() -> None:
    broker = Faulty()
    push = serving(broker)
    async with push.lifespan():
        broker.forgets, broker.answers_late = b'"start"', 10
        with anyio.move_on_after(1):
            await push.run("a").start(numbers(3))
        assert broker.forgot.is_set()
        assert await push.run("a").start(lambda given: numbers(3, given + 1), resume=True)
        assert await text_of(push) == ["1", "2", "3", "done"]


async def test_a_watch_that_could_not_read_looks_again() -> None:
    """Catches a worker that begins, and whose shorter lease is never seen."""
    broker = Faulty()
    push = serving(broker)
    async with push.lifespan(), anyio.create_task_group() as tasks:
        await push.run("a").queue(start_within=3600)
        log = RunLog(broker, "run:a")
        queued, end = await log.state()
        assert queued is not None
        tasks.start_soon(Watch(log, queued, lambda: None).run)
        await anyio.sleep(1)
        begun = RunRecord(kind="start", attempt="x", begin=1, lease=LEASE, at=1e9, count=0)
        await log.append(begun, end)
        # The first read shows that the log has grown, and the second one would show why.
        broker.fails_at = broker.reads + 2
        await anyio.sleep(6 * LEASE)
        found, _ = await log.state()
        assert found is not None
        assert found.state is RunState.LOST
        tasks.cancel_scope.cancel()


async def test_a_run_that_was_queued_and_never_begun_can_be_queued_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    push = serving(MemoryBroker())
    times = [1e9]
    monkeypatch.setattr("time.time", lambda: times[0])
    async with push.lifespan():
        assert await push.run("a").queue(start_within=60)
        assert not await push.run("a").queue(restart=True)
        times[0] += 63
        assert not await push.run("a").queue()
        assert await push.run("a").queue(restart=True)


def test_a_reader_forgets_what_its_log_has_lost() -> None:
    """Catches a reader that waits for the end of an attempt whose start was lost."""

    def take(kind: Kind, attempt: str, offset: int, count: int | None = None) -> None:
        state = RunState.LOST if kind == "end" else RunState.RUNNING
        record = RunRecord(kind=kind, attempt=attempt, begin=1, lease=15, at=0, count=count, state=state)
        follower.take(record, offset)

    follower = RunFollower("first", 1, met=True)
    take("end", "first", 24)
    take("start", "second", 25, count=4)
    follower.meet_gap(20)
    take("end", "first", 21)
    assert follower.end is not None


class Closable:
    """An iterator that holds something, such as the response of a model."""

    def __init__(self) -> None:
        self.closed = 0

    def __aiter__(self) -> "Closable":
        return self

    async def __anext__(self) -> str:
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self.closed += 1


@pytest.mark.parametrize(
    "wrap", [lambda source: source, ai_sdk().text, parsed], ids=["items", "text", "parsed"]
)
async def test_who_joins_a_run_closes_the_iterator_that_is_not_needed(
    wrap: Callable[[Closable], AsyncIterator[object]],
) -> None:
    push, source = serving(MemoryBroker()), Closable()
    run = push.run("a", dialect=ai_sdk())
    async with push.lifespan():
        await run.start(ai_sdk().text(Closable()))
        assert not await run.start(wrap(source))
    assert source.closed


async def test_the_statistics_have_how_a_run_has_ended() -> None:
    """Catches an iterator that returns while its run is cancelled."""
    push = serving(MemoryBroker())

    async def cancelling() -> AsyncIterator[object]:
        yield 1
        await push.run("a").cancel()

    async with push.lifespan():
        await push.run("a").start(cancelling())
        assert (await text_of(push))[-1] == "cancelled"
        await anyio.sleep(1)
        ended = push.statistics()["runs_ended"]
        assert (ended["cancelled"], sum(ended.values())) == (1, 1)


async def test_an_iterator_runs_ahead_in_bytes_no_further_than_it_may() -> None:
    broker, yielded = Faulty(), 0
    push = serving(broker)

    async def large() -> AsyncIterator[object]:
        nonlocal yielded
        for _ in range(100):
            yielded += 1
            yield "x" * 300_000

    async with push.lifespan():
        await push.run("a").start(large())
        broker.away = True
        await anyio.sleep(30)
        assert yielded <= 6
        broker.away = False
        assert (await push.run("a").wait()).count == 100


@pytest.mark.parametrize("has_lifespan", [True, False])
async def test_a_run_that_nothing_will_stop_is_logged(
    has_lifespan: bool, caplog: pytest.LogCaptureFixture
) -> None:
    push = serving(MemoryBroker())
    if has_lifespan:
        await push.start()
    for id in ("a", "b"):
        await push.run(id).start(numbers(1))
        await push.run(id).wait()
    told = [record.livepush_event for record in caplog.records]  # type: ignore[attr-defined]
    assert told == ([] if has_lifespan else ["run_unstopped"])
    await push.stop()


def test_a_large_record_is_not_kept() -> None:
    """Another program may publish records as large as a log."""
    block = RunRecord(kind="end", attempt="x" * 10_000, begin=1, lease=15, at=0).encode()[2:]
    small = RunRecord(kind="end", attempt="x", begin=1, lease=15, at=0).encode()[2:]
    assert record_of(block) is not record_of(block)
    assert record_of(small) is record_of(small)


@pytest.mark.parametrize(("last", "is_told"), [(9_800, False), (9_950, True), (10_050, True)])
async def test_an_output_that_is_a_little_too_long_is_logged(
    last: int, is_told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    push = serving(MemoryBroker())

    async def items() -> AsyncIterator[object]:
        for number in range(last):
            yield number

    async with push.lifespan():
        await push.run("a").start(items())
        await push.run("a").wait()
        found = await text_of(push)
    assert (found[0] != "0") == is_told
    assert [record.livepush_event for record in caplog.records] == ["run_outgrown"] * is_told  # type: ignore[attr-defined]
