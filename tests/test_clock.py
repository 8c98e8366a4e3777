"""The clock: appointments are kept in their order, shortly after their time, in virtual time."""

import logging
import math
from functools import partial

import anyio
import pytest

from livepush_asgi.clock import RESOLUTION, Clock

from .virtual_clock import let_pass


async def test_functions_are_called_in_the_order_of_their_times() -> None:
    clock, called, start = Clock(), list[tuple[float, float]](), anyio.current_time()

    def note(delay: float) -> None:
        called.append((delay, anyio.current_time() - start))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(clock.run)
        await anyio.lowlevel.checkpoint()
        for delay in (30.0, 10.0, 20.0):
            clock.call_later(delay, partial(note, delay))
        await let_pass(60)
        tasks.cancel_scope.cancel()
    assert [delay for delay, _ in called] == [10.0, 20.0, 30.0]
    for delay, at in called:
        assert delay <= at <= delay + 2 * RESOLUTION


async def test_a_cancelled_timer_is_not_called() -> None:
    clock, called = Clock(), []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(clock.run)
        timer = clock.call_later(1, lambda: called.append("cancelled"))
        clock.call_later(2, lambda: called.append("kept"))
        timer.cancel()
        await let_pass(5)
        tasks.cancel_scope.cancel()
    assert called == ["kept"]


async def test_a_function_that_raises_does_not_stop_the_clock(caplog: pytest.LogCaptureFixture) -> None:
    clock, called = Clock(), []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(clock.run)
        clock.call_later(1, lambda: called.append(1 // 0))
        clock.call_later(2, lambda: called.append(2))
        await let_pass(5)
        tasks.cancel_scope.cancel()
    assert called == [2]
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


async def test_a_function_may_make_further_appointments() -> None:
    clock, called = Clock(), []

    def again() -> None:
        called.append(anyio.current_time())
        clock.call_later(10, again)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(clock.run)
        clock.call_later(10, again)
        await let_pass(55)
        tasks.cancel_scope.cancel()
    assert len(called) == 5


async def test_a_time_that_rounding_would_move_forward_is_still_kept() -> None:
    """k * 0.05 may be smaller than the time it was rounded from; then the clock would turn on the spot."""
    clock, called = Clock(), list[int]()
    times = [math.nextafter(number * RESOLUTION, math.inf) for number in range(1, 200)]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(clock.run)
        await anyio.lowlevel.checkpoint()
        for number, moment in enumerate(times):
            clock.call_later(moment - anyio.current_time(), partial(called.append, number))
        await let_pass(20)
        tasks.cancel_scope.cancel()
    assert called == list(range(len(times)))
