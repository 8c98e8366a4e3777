"""The clock: appointments are kept in their order, shortly after their time, in virtual time."""

import asyncio
import logging
import math
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial

import anyio
import pytest

from livepush_asgi import DrainPolicy, Grant, LivePush, MemoryBroker, Timing
from livepush_asgi.runtime.scheduler import RESOLUTION, Scheduler
from livepush_asgi.testing import Client

from .virtual_clock import VirtualClockLoop, let_pass, live_timers


async def test_functions_are_called_in_the_order_of_their_times() -> None:
    clock, called, start = Scheduler(), list[tuple[float, float]](), anyio.current_time()

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
    clock, called = Scheduler(), []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(clock.run)
        timer = clock.call_later(1, lambda: called.append("cancelled"))
        clock.call_later(2, lambda: called.append("kept"))
        timer.cancel()
        await let_pass(5)
        tasks.cancel_scope.cancel()
    assert called == ["kept"]


async def test_a_function_that_raises_does_not_stop_the_clock(caplog: pytest.LogCaptureFixture) -> None:
    clock, called = Scheduler(), []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(clock.run)
        clock.call_later(1, lambda: called.append(1 // 0))
        clock.call_later(2, lambda: called.append(2))
        await let_pass(5)
        tasks.cancel_scope.cancel()
    assert called == [2]
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


async def test_a_function_may_make_further_appointments() -> None:
    clock, called = Scheduler(), []

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
    clock, called = Scheduler(), list[int]()
    times = [math.nextafter(number * RESOLUTION, math.inf) for number in range(1, 200)]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(clock.run)
        await anyio.lowlevel.checkpoint()
        for number, moment in enumerate(times):
            clock.call_later(moment - anyio.current_time(), partial(called.append, number))
        await let_pass(20)
        tasks.cancel_scope.cancel()
    assert called == list(range(len(times)))


async def test_cancelled_timers_leave_the_clock_at_once_and_not_when_they_are_due() -> None:
    clock, month = Scheduler(), 30 * 86400.0
    kept = [clock.call_later(month, lambda: None) for _ in range(10)]
    for _ in range(1000):
        clock.call_later(month, lambda: None).cancel()
        assert len(clock) <= 100
    for timer in kept:
        timer.cancel()
        timer.cancel()
    assert len(clock) <= 100


async def test_what_is_left_after_many_were_cancelled_is_called_in_order() -> None:
    clock, called = Scheduler(), list[int]()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(clock.run)
        timers = [clock.call_later(500 - number, partial(called.append, number)) for number in range(500)]
        for number, timer in enumerate(timers):
            if number % 5:
                timer.cancel()
        await let_pass(600)
        tasks.cancel_scope.cancel()
    assert called == list(range(495, -1, -5))
    assert not len(clock)


async def test_a_timer_may_cancel_another_one_that_is_due_as_well() -> None:
    clock, called = Scheduler(), list[str]()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(clock.run)
        # One turn of the clock finds both.
        clock.call_later(RESOLUTION / 4, lambda: second.cancel())
        second = clock.call_later(RESOLUTION / 2, lambda: called.append("second"))
        await let_pass(5)
        tasks.cancel_scope.cancel()
    assert not called
    assert not len(clock)


async def test_two_hundred_streams_with_a_login_of_a_month_leave_nothing_behind() -> None:
    before = live_timers()
    push = LivePush(MemoryBroker(), lambda request: Grant(channels="c", expires_at=time.time() + 30 * 86400))
    async with push.lifespan(), Client(push) as client:
        for _ in range(200):
            async with client.open("/") as stream:
                await stream.next_event(control=True)
        assert live_timers() - before <= 100


class CoarseLoop(VirtualClockLoop):
    """A loop whose clock stands still for a second at a time."""

    def time(self) -> float:
        return float(math.floor(super().time()))


@pytest.mark.parametrize("delay", [1e-16, 0.0, -1.0])
@pytest.mark.parametrize("loop", [VirtualClockLoop, CoarseLoop])
def test_a_timer_that_is_due_again_at_once_does_not_stop_the_loop(
    loop: Callable[[], asyncio.AbstractEventLoop], delay: float
) -> None:
    called = 0

    async def main() -> None:
        clock = Scheduler()

        def again() -> None:
            nonlocal called
            called += 1
            assert called < 1000, "the clock calls the same timer for ever"
            clock.call_later(delay, again)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(clock.run)
            again()
            await asyncio.sleep(10)
            tasks.cancel_scope.cancel()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(asyncio.wait_for(main(), 20))
    assert 5 <= called <= 10 / RESOLUTION + 5


@pytest.mark.parametrize("delay", [math.inf, 1e308, 1e18, math.nan])
async def test_a_time_that_no_process_lives_to_see_never_comes(delay: float) -> None:
    clock, called = Scheduler(), list[str]()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(clock.run)
        await anyio.lowlevel.checkpoint()
        never = clock.call_later(delay, lambda: called.append("never"))
        clock.call_later(5, lambda: called.append("soon"))
        await let_pass(100_000)
        never.cancel()
        tasks.cancel_scope.cancel()
    assert called == ["soon"]


@pytest.mark.parametrize(
    "timing",
    [
        Timing(
            linger=3600, max_lifetime=2.6e6, send_timeout=3600, heartbeat_interval=3600, subscribe_timeout=600
        ),
        Timing(linger=1e-300, max_lifetime=None, send_timeout=1e-3, heartbeat_interval=1e-300),
        Timing(max_lifetime=1e-300),
    ],
    ids=["longest", "shortest", "over at once"],
)
async def test_no_value_of_a_user_ends_the_run(timing: Timing, caplog: pytest.LogCaptureFixture) -> None:
    expiries = iter([datetime.max.replace(tzinfo=UTC), time.time() + 1e-9, 253402300800, None])
    push = LivePush(
        MemoryBroker(),
        lambda request: Grant(channels="c", expires_at=next(expiries)),
        timing=timing,
        drain=DrainPolicy(window=3600),
    )
    async with push.lifespan():
        for _ in range(4):
            async with Client(push) as client, client.open("/", window=10_000):
                await let_pass(3)
        assert push.statistics()["streams"] == 0
        assert not push.statistics()["draining"]
        await push.publish("c", "still here")
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
