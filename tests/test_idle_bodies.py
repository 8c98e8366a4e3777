"""The bodies that routes give to their frameworks: what idle ones cost, and when they are given up."""

import asyncio
import selectors

import anyio
import pytest

from livepush_asgi import EndReason, LivePush, MemoryBroker, SSEStreamService, Timing, public
from livepush_asgi.app.service import IsDisconnected, StreamBody

from .virtual_clock import SkippingSelector, VirtualClockLoop, let_pass


class CountingSelector(SkippingSelector):
    """Counts the turns of its loop."""

    turns = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.turns += 1
        return super().select(timeout)


class CountingLoop(VirtualClockLoop):
    def __init__(self) -> None:
        self.selector = CountingSelector()
        asyncio.SelectorEventLoop.__init__(self, self.selector)
        self._clock = self.selector


async def alive() -> bool:
    return False


async def read(body: StreamBody) -> None:
    async for _ in body:
        pass


# The clock looks after all channels once a second, and after each stream at each send timeout.
@pytest.mark.parametrize(("ask", "most"), [(None, 5), (alive, 50)])
def test_idle_bodies_wake_the_loop_few_times_a_second(ask: IsDisconnected | None, most: int) -> None:
    with asyncio.Runner(loop_factory=CountingLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, CountingLoop)

        async def main() -> None:
            push = LivePush(MemoryBroker(), public("c"), timing=Timing(heartbeat_interval=None))
            service = SSEStreamService.of(push)
            async with push.lifespan(), anyio.create_task_group() as tasks:
                for _ in range(100):
                    stream = await service.open_stream(channel="c", is_disconnected=ask)
                    tasks.start_soon(read, stream.body)
                    await let_pass(0.0123)
                before = loop.selector.turns
                await let_pass(100)
                assert (loop.selector.turns - before) / 100 <= most
                assert push.statistics()["streams"] == 100
                tasks.cancel_scope.cancel()

        runner.run(main())


@pytest.mark.parametrize("ask", [None, alive])
async def test_a_body_that_is_not_read_any_more_is_given_up(ask: IsDisconnected | None) -> None:
    push = LivePush(MemoryBroker(), public("c"), timing=Timing(send_timeout=30))
    service = SSEStreamService.of(push)
    async with push.lifespan():
        stream = await service.open_stream(channel="c", is_disconnected=ask)
        await anext(stream.body)
        await let_pass(25)
        assert push.statistics()["streams"] == 1
        await let_pass(10)
        assert push.statistics()["ended"][EndReason.SLOW] == 1
        assert push.statistics()["streams"] == 0


@pytest.mark.parametrize("ask", [None, alive])
async def test_a_body_that_waits_longer_than_the_send_timeout_is_kept(ask: IsDisconnected | None) -> None:
    push = LivePush(MemoryBroker(), public("c"), timing=Timing(heartbeat_interval=None, send_timeout=30))
    service = SSEStreamService.of(push)
    async with push.lifespan(), anyio.create_task_group() as tasks:
        stream = await service.open_stream(channel="c", is_disconnected=ask)
        await anext(stream.body)
        got: list[bytes] = []

        async def take() -> None:
            got.append(await anext(stream.body))

        tasks.start_soon(take)
        await let_pass(300)
        await push.publish("c", "x")
        await let_pass(1)
        assert b"data: x\n" in got[0]
        await stream.body.aclose()
