"""Requests that arrive together proceed in groups, in their order, whatever becomes of one of them."""

from collections import Counter

import anyio
import pytest

from livepush_asgi import Grant, LivePush, MemoryBroker, MemorySlotCap
from livepush_asgi.process.arrivals import AT_ONCE, WINDOW, Arrivals
from livepush_asgi.testing import Client

from .virtual_clock import VirtualClockLoop


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualClockLoop}


class Wave:
    """Requests, and when each has proceeded, in seconds since the first."""

    def __init__(self) -> None:
        self._start = anyio.current_time()
        self._arrivals = Arrivals(anyio.current_time)
        self.proceeded: dict[int, float] = {}

    async def request(self, number: int) -> None:
        if not self._arrivals.proceeds():
            await self._arrivals.wait()
        self.proceeded[number] = round(anyio.current_time() - self._start, 6)


async def test_few_requests_proceed_at_once_and_the_rest_of_a_wave_at_the_end_of_the_window() -> None:
    wave = Wave()
    async with anyio.create_task_group() as tasks:
        for number in range(AT_ONCE + 20):
            tasks.start_soon(wave.request, number)
    assert list(wave.proceeded) == list(range(AT_ONCE + 20))
    assert Counter(wave.proceeded.values()) == {0: AT_ONCE, WINDOW: 20}


async def test_a_wave_goes_on_until_a_window_is_empty() -> None:
    wave = Wave()
    async with anyio.create_task_group() as tasks:
        for number in range(40):
            tasks.start_soon(wave.request, number)
            await anyio.sleep(WINDOW / 10)
        await anyio.sleep(2 * WINDOW)
        tasks.start_soon(wave.request, 40)
    assert list(wave.proceeded) == list(range(41))
    # Eight at once, and then no more than the windows of four milliseconds.
    assert len(set(wave.proceeded.values())) <= AT_ONCE + 5
    assert wave.proceeded[40] == pytest.approx(6 * WINDOW)


async def test_requests_that_come_one_after_the_other_never_wait() -> None:
    wave = Wave()
    for number in range(100):
        await wave.request(number)
        await anyio.sleep(WINDOW / AT_ONCE)
    assert list(wave.proceeded.values()) == [round(number * WINDOW / AT_ONCE, 6) for number in range(100)]


@pytest.mark.parametrize("cancelled", [AT_ONCE, AT_ONCE + 1])
async def test_a_request_that_is_cancelled_holds_up_no_other(cancelled: int) -> None:
    wave, scope = Wave(), anyio.CancelScope()

    async def request(number: int) -> None:
        with scope if number == cancelled else anyio.CancelScope():
            await wave.request(number)

    async with anyio.create_task_group() as tasks:
        for number in range(AT_ONCE + 3):
            tasks.start_soon(request, number)
        await anyio.wait_all_tasks_blocked()
        scope.cancel()
    assert sorted(wave.proceeded) == [number for number in range(AT_ONCE + 3) if number != cancelled]
    assert max(wave.proceeded.values()) <= WINDOW


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_a_wave_of_clients_of_which_some_leave_at_once_leaves_nothing_behind() -> None:
    slots = MemorySlotCap(1000)
    push = LivePush(MemoryBroker(), lambda request: Grant(channels="c", slot_key="k"), slots=slots)

    live, all_live = Counter[str](), anyio.Event()

    async def come(client: Client, number: int) -> None:
        with anyio.move_on_after(0 if number % 3 else 60):
            async with client.open("/") as stream:
                await stream.next_event(name="livepush.open")
                live["clients"] += 1
                if live["clients"] == 20:
                    all_live.set()
                assert (await stream.next_event(name="end")).data == "1"

    async with push.lifespan(), Client(push) as client:
        async with anyio.create_task_group() as tasks:
            for number in range(60):
                tasks.start_soon(come, client, number)
            await all_live.wait()
            await push.publish("c", 1, event="end")
        assert push.statistics()["streams"] == slots.held("k") == 0
