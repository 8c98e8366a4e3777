"""Runs of workers: known before they begin, cancelled while they wait, and finished by whoever is there."""

import time
from collections.abc import AsyncIterator, Sequence

import anyio
import anyio.lowlevel
import pytest

from livepush_asgi import (
    BrokerUnavailableError,
    DrainPolicy,
    Gap,
    History,
    LivePush,
    MemoryBroker,
    Position,
    Received,
    Refusal,
    RunState,
)
from livepush_asgi.runs.log import RunLog
from livepush_asgi.runs.watch import Watch
from livepush_asgi.testing import Client
from livepush_asgi.wire.run_record import RunRecord

pytestmark = pytest.mark.virtual_time

LEASE = 15.0


def pushes(count: int) -> list[LivePush]:
    """Return the LivePush of so many processes, over one broker."""
    broker = MemoryBroker()
    return [LivePush(broker, lambda request: Refusal(404), drain=DrainPolicy(runs=0)) for _ in range(count)]


async def numbers(count: int, last: int) -> AsyncIterator[object]:
    """Yield what follows the first `count` of the numbers up to `last`, one a second."""
    for number in range(count + 1, last + 1):
        await anyio.sleep(1)
        yield number


async def text_of(push: LivePush, id: str = "a") -> list[str]:
    async with push.run(id).read() as items:
        found = [item.data if isinstance(item, Received) else f"gap {item.reason}" async for item in items]
        return [*found, items.state]


async def state_of(push: LivePush, id: str = "a") -> RunState | None:
    status = await push.run(id).status()
    return None if status is None else status.state


async def append(push: LivePush, state: RunState, *, lease: float, at: float) -> None:
    """Append the record of a process that does nothing after it."""
    record = RunRecord(kind="start", attempt="x", begin=1, lease=lease, at=at, count=0, state=state)
    assert isinstance(push.broker, MemoryBroker)
    await push.broker.append("run:a", record.encode())


async def test_a_reader_waits_for_a_run_that_is_queued() -> None:
    web, worker = pushes(2)
    texts: list[list[str]] = []

    async def read() -> None:
        texts.append(await text_of(web))

    async with web.lifespan(), worker.lifespan(), anyio.create_task_group() as tasks:
        assert await web.run("a").queue()
        assert not await web.run("a").queue(restart=True)
        assert await state_of(web) is RunState.QUEUED
        tasks.start_soon(read)
        await anyio.sleep(100)
        assert await worker.run("a").start(numbers(0, 3))
        assert await state_of(web) is RunState.RUNNING
        await worker.run("a").wait()
    assert texts == [["1", "2", "3", "done"]]


async def test_a_page_of_a_run_that_is_queued_is_open() -> None:
    async def authorize(request: object) -> object:
        return await push.run("a").grant(request)  # type: ignore[arg-type]

    push = LivePush(MemoryBroker(), authorize)  # type: ignore[arg-type]
    async with push.lifespan(), Client(push) as client:
        await push.run("a").queue()
        async with client.open("/") as page:
            await push.run("a").start(numbers(0, 1))
            assert (await page.next_event(timeout=10)).data == "1"
            end = await page.next_event(name="livepush.end")
            assert (end.json()["state"], end.json()["count"]) == ("done", 1)


async def test_a_run_that_is_cancelled_while_it_is_queued_is_not_started() -> None:
    web, worker = pushes(2)
    async with web.lifespan(), worker.lifespan():
        await web.run("a").queue()
        status = await web.run("a").cancel()
        assert status is not None
        assert status.state is RunState.CANCELLED
        assert not await worker.run("a").start(numbers(0, 3))
        assert (await worker.run("a").finish(lambda count: numbers(count, 3))).state is RunState.CANCELLED
        assert await text_of(web) == ["cancelled"]
        assert await web.run("a").queue(restart=True)
        assert await worker.run("a").start(numbers(0, 1))
        assert await text_of(web) == ["1", "done"]


async def test_a_run_that_nobody_starts_is_lost() -> None:
    (web,) = pushes(1)
    async with web.lifespan():
        await web.run("read").queue(start_within=60)
        with anyio.fail_after(120):
            assert await text_of(web, "read") == ["lost"]
        # Who asks for the state waits for nobody, and does not end it by a clock that may be wrong.
        for at in (time.time() - 63, time.time() + 1e6):
            await append(web, RunState.QUEUED, lease=60, at=at)
            with anyio.fail_after(1):
                assert await state_of(web) is RunState.QUEUED
        assert await web.run("a").start(numbers(0, 1))
        assert await text_of(web) == ["1", "done"]


async def test_a_reader_from_the_queue_on_is_told_when_the_worker_is_killed() -> None:
    """Catches a watch that goes on with the time of the queue."""
    (web,) = pushes(1)
    async with web.lifespan():
        await web.run("a").queue(start_within=3600)
        async with web.run("a").read() as items:
            # The worker has begun, and does nothing any more.
            await append(web, RunState.RUNNING, lease=LEASE, at=time.time())
            with anyio.fail_after(4 * LEASE):
                assert [item async for item in items] == []
            assert items.state is RunState.LOST


async def test_a_watch_over_a_queued_run_begins_after_its_worker() -> None:
    """Catches a watch that takes what the process was told for what the state was read from."""
    (web,) = pushes(1)
    async with web.lifespan(), anyio.create_task_group() as tasks:
        await web.run("a").queue(start_within=3600)
        log = RunLog(web.broker, "run:a")  # type: ignore[arg-type]
        queued, _ = await log.state()
        assert queued is not None
        await append(web, RunState.RUNNING, lease=LEASE, at=time.time())
        _, end = await log.state()
        tasks.start_soon(Watch(log, queued, lambda: end).run)
        await anyio.sleep(4 * LEASE)
        found, _ = await log.state()
        assert found is not None
        assert found.state is RunState.LOST
        tasks.cancel_scope.cancel()


async def test_a_worker_finishes_what_another_has_begun() -> None:
    web, first, second = pushes(3)
    ends: list[RunState] = []

    async def work(push: LivePush) -> None:
        ends.append((await push.run("a").finish(lambda count: numbers(count, 6), lease=LEASE)).state)

    async with web.lifespan(), second.lifespan(), anyio.create_task_group() as tasks:
        async with first.lifespan():
            await first.run("a").start(numbers(0, 6), lease=LEASE)
            tasks.start_soon(work, second)
            await anyio.sleep(3.5)
        await web.run("a").wait()
        status = await web.run("a").status()
        while status is not None and status.state is RunState.LOST:
            await anyio.sleep(1)
            status = await web.run("a").status()
        assert (await web.run("a").wait()).state is RunState.DONE
        assert await text_of(web) == ["1", "2", "3", "4", "5", "6", "done"]
    assert ends == [RunState.DONE]


async def test_two_workers_finish_a_run_once() -> None:
    one, two = pushes(2)
    async with one.lifespan(), two.lifespan(), anyio.create_task_group() as tasks:
        for push in (one, two):
            tasks.start_soon(push.run("a").finish, lambda count: numbers(count, 3))
        await anyio.sleep(10)
        assert await text_of(one) == ["1", "2", "3", "done"]


async def test_a_run_whose_log_was_lost_begins_anew() -> None:
    """Catches an output that goes on behind nothing: readers of the lost one would join the two."""
    old, new = pushes(1)[0], pushes(1)[0]
    async with old.lifespan(), new.lifespan():
        await old.run("a").start(numbers(0, 3))
        async with old.run("a").read() as items:
            item = await anext(items)
        # All that a process with readers has appended to the new log.
        record = RunRecord(kind="end", attempt="x", begin=1, lease=LEASE, at=time.time(), state=RunState.LOST)
        assert isinstance(new.broker, MemoryBroker)
        await new.broker.append("run:a", record.encode())
        async with new.run("a").read(last_event_id=item.id) as items:
            assert [type(each) async for each in items] == [Gap]
        status = await new.run("a").status()
        assert status is not None
        given: list[int] = []

        def rest(count: int) -> AsyncIterator[object]:
            given.append(count)
            return numbers(count, 2)

        assert (await new.run("a").finish(rest)).state is RunState.DONE
        assert given == [0]
        async with new.run("a").read(last_event_id=status.last_event_id) as items:
            found = [each.data if isinstance(each, Received) else each.reason async for each in items]
        assert found == ["epoch", "1", "2"]


async def test_a_worker_gives_up_what_the_broker_refuses() -> None:
    class Refusing(MemoryBroker):
        def append_nowait(
            self, channel: str, payloads: Sequence[bytes], *, expected_position: Position
        ) -> Position:
            if payloads[0].endswith(b"data: 3\n\n"):
                raise BrokerUnavailableError("too large")
            return super().append_nowait(channel, payloads, expected_position=expected_position)

    push = LivePush(Refusing(), lambda request: Refusal(404))
    made: list[int] = []

    def items(count: int) -> AsyncIterator[object]:
        made.append(count)
        return numbers(count, 5)

    async with push.lifespan():
        status = await push.run("a").finish(items, retry_for=1)
        assert (status.state, status.count, made) == (RunState.LOST, 2, [0, 2])


@pytest.mark.parametrize("wrong", [1e6, -1e6])
async def test_a_run_is_joined_whatever_the_clocks_say(wrong: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a start that waits for the end of a run, and then begins it again."""
    (push,) = pushes(1)
    async with push.lifespan():
        await push.run("a").start(numbers(0, 60), lease=LEASE)
        now = time.time
        monkeypatch.setattr(time, "time", lambda: now() + wrong)
        with anyio.fail_after(2 * LEASE):
            assert not await push.run("a").start(numbers(0, 3), restart=True)
        assert await state_of(push) is RunState.RUNNING


async def test_what_was_yielded_together_is_sent_before_the_next_item() -> None:
    async def busy() -> AsyncIterator[object]:
        for number in range(250):
            yield number
            await anyio.lowlevel.checkpoint()
        await anyio.sleep(1000)

    (push,) = pushes(1)
    async with push.lifespan():
        await push.run("a").start(busy(), lease=3600)
        async with push.run("a").read() as items:
            with anyio.fail_after(10):
                for number in range(250):
                    assert getattr(await anext(items), "data", None) == str(number)


async def test_an_item_that_the_log_cannot_hold_fails_the_run(caplog: pytest.LogCaptureFixture) -> None:
    async def items() -> AsyncIterator[object]:
        yield "x" * 400
        yield "x" * 600

    push = LivePush(MemoryBroker(History(size=1000)), lambda request: Refusal(404))
    async with push.lifespan():
        await push.run("a").start(items())
        status = await push.run("a").wait()
    assert (status.state, status.count) == (RunState.FAILED, 1)
    assert "an item of 608 bytes is too large for a log of 1000 bytes" in caplog.text
    assert "the run on 'run:a' has failed, since its iterator raised" in caplog.messages


async def test_a_function_that_fails_leaves_the_run_as_lost() -> None:
    def broken(count: int) -> AsyncIterator[object]:
        raise OSError("no model")

    (push,) = pushes(1)
    async with push.lifespan():
        with pytest.raises(OSError, match="no model"):
            await push.run("a").start(broken)
        assert await state_of(push) is RunState.LOST
        assert await push.run("a").start(lambda count: numbers(count, 1), resume=True)
        assert await text_of(push) == ["1", "done"]


async def test_what_a_run_does_not_take_is_refused_before_it_begins() -> None:
    async def answer() -> AsyncIterator[object]:
        yield 1

    (push,) = pushes(1)
    async with push.lifespan():
        with pytest.raises(TypeError, match=r"such as answer\(\), or a function .*: lambda count: "):
            await push.run("a").start(answer)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="finish takes a function"):
            await push.run("a").finish(answer())  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="start with resume=True takes a function"):
            await push.run("a").start(answer(), resume=True)
        with pytest.raises(TypeError, match="a source is an async iterator"):
            await push.run("a").start([1, 2])  # type: ignore[arg-type]
        assert await state_of(push) is None
