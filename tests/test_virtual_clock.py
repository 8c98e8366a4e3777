"""The clock that the in-memory tests stand on: an hour passes at once, and in the right order."""

import time

import anyio
import pytest

pytestmark = pytest.mark.virtual_time


async def test_an_hour_of_sleep_takes_no_time() -> None:
    began, virtual = time.monotonic(), anyio.current_time()
    await anyio.sleep(3600)
    assert 3600 <= anyio.current_time() - virtual < 3601
    assert time.monotonic() - began < 5


async def test_timers_come_in_their_order() -> None:
    woken: list[float] = []

    async def sleep(seconds: float) -> None:
        await anyio.sleep(seconds)
        woken.append(seconds)

    async with anyio.create_task_group() as tasks:
        for seconds in (3.0, 0.5, 60.0, 1.0):
            tasks.start_soon(sleep, seconds)
    assert woken == [0.5, 1.0, 3.0, 60.0]


async def test_a_cancelled_timer_moves_nothing() -> None:
    began = anyio.current_time()
    with anyio.fail_after(1000):
        await anyio.sleep(1)
    await anyio.sleep(1)
    assert anyio.current_time() - began < 3


async def test_a_deadline_passes_when_nothing_happens() -> None:
    with anyio.move_on_after(5) as deadline:
        await anyio.Event().wait()
    assert deadline.cancelled_caught
