"""A run is cancelled at the worst moments: its iterator is closed, its readers end, and all agree how."""

from collections.abc import AsyncIterator

import anyio
import pytest

from livepush_asgi import History, LivePush, Refusal, RunState
from livepush_asgi.wire.event import RESERVED_PREFIX

from .run_stories import RUN, Link, Server

pytestmark = pytest.mark.virtual_time

LEASE = 15.0


class Waiting:
    """Yields so many items, one a second, and then waits for ever unless it `ends`."""

    def __init__(self, count: int, *, ends: bool = False) -> None:
        self.closed = anyio.Event()
        self._count = count
        self._ends = ends

    async def __call__(self) -> AsyncIterator[object]:
        try:
            for number in range(self._count):
                await anyio.sleep(1)
                yield str(number)
            if not self._ends:
                await anyio.sleep_forever()
        finally:
            self.closed.set()


class Two:
    """Two processes with a server, whose answers take 5 ms each way."""

    def __init__(self) -> None:
        self.server = Server(History())
        self.links = [Link(self.server, latency=0.005) for _ in range(2)]
        self.producing, self.other = [LivePush(link, lambda request: Refusal()) for link in self.links]

    def ends(self) -> list[RunState]:
        """Return the ends in the log, and check that no event is after the first."""
        records = [entry.record for entry in self.server.ledger.entries]
        ends = [number for number, record in enumerate(records) if record and record.kind == "end"]
        assert all(record is not None for record in records[ends[0] :])
        return [record.state for record in records if record is not None and record.kind == "end"]


@pytest.fixture
async def two() -> AsyncIterator[Two]:
    two = Two()
    async with two.producing.lifespan(), two.other.lifespan():
        yield two


async def cancel(two: Two) -> RunState | None:
    status = await two.other.run(RUN).cancel()
    return None if status is None else status.state


@pytest.mark.parametrize("count", [0, 3])
async def test_it_waits_for_its_first_item_or_another(two: Two, count: int) -> None:
    job = Waiting(count)
    await two.producing.run(RUN).start(job(), lease=LEASE)
    await anyio.sleep(count + 0.5)
    began = anyio.current_time()
    assert await cancel(two) is RunState.CANCELLED
    await job.closed.wait()
    assert anyio.current_time() - began < 0.1
    assert two.ends() == [RunState.CANCELLED]


async def test_the_command_is_lost(two: Two) -> None:
    job = Waiting(1)
    await two.producing.run(RUN).start(job(), lease=LEASE)
    await anyio.sleep(2)
    two.links[0].faults[RESERVED_PREFIX].cut = True
    began = anyio.current_time()
    assert await cancel(two) is RunState.CANCELLED
    await job.closed.wait()
    assert 0.1 < anyio.current_time() - began < LEASE / 3 + 0.1


async def test_its_process_does_not_reach_the_broker(two: Two) -> None:
    job = Waiting(30)
    await two.producing.run(RUN).start(job(), lease=LEASE)
    await anyio.sleep(2.5)
    two.links[0].going = anyio.Event()
    async with two.other.run(RUN).read() as items:
        assert await cancel(two) is RunState.CANCELLED
        with anyio.fail_after(0.1):
            assert len([item async for item in items]) == 2
    await anyio.sleep(10)
    assert not job.closed.is_set()
    two.links[0].going.set()
    with anyio.fail_after(0.1):
        await job.closed.wait()
    assert two.ends() == [RunState.CANCELLED]


async def test_it_is_cancelled_twice_at_once(two: Two) -> None:
    job = Waiting(1)
    await two.producing.run(RUN).start(job(), lease=LEASE)
    states = list[RunState | None]()

    async def note() -> None:
        states.append(await cancel(two))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(note)
        tasks.start_soon(note)
    assert states == 2 * [RunState.CANCELLED]
    assert two.ends() == [RunState.CANCELLED]
    with anyio.fail_after(0.1):
        await job.closed.wait()


@pytest.mark.parametrize("ahead", [0.0, 0.004, 0.008, 0.012, 0.016, 0.02, 0.03])
async def test_it_ends_by_itself_at_the_same_time(two: Two, ahead: float) -> None:
    """It is done or cancelled, and who has cancelled it, who reads it and who asks later hear the same."""
    await two.producing.run(RUN).start(Waiting(2, ends=True)(), lease=LEASE)
    async with two.other.run(RUN).read() as items:
        await anyio.sleep(2.012 - ahead)
        state = await cancel(two)
        with anyio.fail_after(1):
            async for _ in items:
                pass
        assert items.state is state
    await anyio.sleep(1)
    for push in (two.producing, two.other):
        status = await push.run(RUN).status()
        assert status is not None
        assert status.state is state
    assert two.ends()[0] is state


async def test_it_is_cancelled_while_it_starts(two: Two) -> None:
    job = Waiting(1)
    states = list[RunState | None]()

    async def note() -> None:
        while not states or states[-1] is None:
            states.append(await cancel(two))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(note)
        await two.producing.run(RUN).start(job(), lease=LEASE)
    assert states[-1] is RunState.CANCELLED
    await anyio.sleep(LEASE)
    assert two.ends() == [RunState.CANCELLED]


async def test_the_attempt_that_it_meets_has_ended_and_another_runs(two: Two) -> None:
    """The one that runs when `cancel` returns is cancelled."""
    await two.producing.run(RUN).start(Waiting(1, ends=True)(), lease=LEASE)
    await anyio.sleep(0.999)
    job = Waiting(1)

    async def start_again() -> None:
        while not await two.producing.run(RUN).start(job(), restart=True):
            pass

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(start_again)
        while await cancel(two) is not RunState.CANCELLED:
            pass
    with anyio.fail_after(0.1):
        await job.closed.wait()
