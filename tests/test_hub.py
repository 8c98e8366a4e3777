"""The hub: what it keeps subscribed, for how long, and in which order it asks the broker."""

from collections import Counter

import anyio
import pytest

from livepush_asgi import LivePush, MemoryBroker, Timing, public
from livepush_asgi.brokers import READ_BYTES, Page, Subscription
from livepush_asgi.errors import BrokerUnavailableError
from livepush_asgi.testing import Client, MockBroker

from .virtual_clock import let_pass, live_timers


class StrictBroker:
    """A broker that insists on what the port promises: a channel is closed before it is subscribed again."""

    def __init__(self, close_takes: float) -> None:
        self.inner = MockBroker()
        self.close_takes = close_takes
        self.held = Counter[str]()
        self.broken: list[str] = []

    async def publish(self, channel: str, payload: str | bytes) -> int:
        return await self.inner.publish(channel, payload)

    async def subscribe(self, channel: str) -> Subscription:
        if self.held[channel]:
            self.broken.append(channel)
        self.held[channel] += 1
        return StrictSubscription(self, channel, await self.inner.subscribe(channel))


class StrictSubscription:
    def __init__(self, broker: StrictBroker, channel: str, inner: Subscription) -> None:
        self._broker = broker
        self._channel = channel
        self._inner = inner

    async def get_message(self, *, timeout: float) -> bytes | None:
        return await self._inner.get_message(timeout=timeout)

    async def close(self) -> None:
        await anyio.sleep(self._broker.close_takes)
        self._broker.held[self._channel] -= 1
        await self._inner.close()


@pytest.mark.parametrize("rounds", [1, 5])
async def test_a_channel_is_subscribed_again_when_the_old_subscription_is_closed(rounds: int) -> None:
    broker = StrictBroker(close_takes=1)
    push = LivePush(broker, public("c"), timing=Timing(linger=0))
    async with push.lifespan(), Client(push) as client:
        for _ in range(rounds):
            async with client.open("/") as stream:
                await stream.next_event(control=True)
            await let_pass(0.2)
        async with client.open("/") as stream:
            await stream.next_event(control=True)
            await let_pass(3)
            await push.publish("c", "x")
            assert (await stream.next_event()).data == "x"
    assert not broker.broken
    assert not +broker.held


async def test_a_subscription_that_cannot_be_closed_is_not_waited_for_for_ever() -> None:
    broker = StrictBroker(close_takes=1000)
    push = LivePush(broker, public("c"), timing=Timing(linger=0, subscribe_timeout=0.5))
    async with push.lifespan(), Client(push) as client:
        async with client.open("/") as stream:
            await stream.next_event(control=True)
        await let_pass(0.2)
        async with client.open("/") as stream:
            await let_pass(5)
            await push.publish("c", "x")
            assert (await stream.next_event()).data == "x"


async def test_a_channel_lingers_for_its_whole_time_after_its_last_stream() -> None:
    broker = MockBroker()
    push = LivePush(broker, public("c"), timing=Timing(linger=10))
    async with push.lifespan(), Client(push) as client:
        for _ in range(3):
            # The one before has six seconds left of its time.
            async with client.open("/") as stream:
                await stream.next_event(control=True)
            await let_pass(4)
        # Twelve seconds after the first stream has gone, and four after the last.
        assert broker.subscriptions("c") == 1
        await let_pass(5)
        assert broker.subscriptions("c") == 1
        await let_pass(2)
        assert broker.subscriptions("c") == 0


async def test_channels_that_come_and_go_leave_no_live_timers() -> None:
    before = live_timers()
    push = LivePush(MemoryBroker(), public("c"), timing=Timing(linger=1000))
    async with push.lifespan(), Client(push) as client:
        for _ in range(200):
            async with client.open("/") as stream:
                await stream.next_event(control=True)
        assert live_timers() - before <= 100


class UnreadableBroker(MemoryBroker):
    """Its log can be read until it is told otherwise; then a read takes a while and fails."""

    def __init__(self) -> None:
        super().__init__()
        self.unreadable = False

    async def read(self, channel: str, after: int, limit: int, *, max_bytes: int = READ_BYTES) -> Page:
        if self.unreadable:
            await anyio.sleep(10)
            raise BrokerUnavailableError("the log is away")
        return await super().read(channel, after, limit, max_bytes=max_bytes)


async def test_a_channel_that_was_given_up_makes_nothing_unhealthy() -> None:
    """Its log is still being read when a new stream has subscribed it again."""
    broker = UnreadableBroker()
    push = LivePush(broker, public("c"), timing=Timing(linger=0))
    async with push.lifespan(), Client(push) as client:
        async with client.open("/") as stream:
            await stream.next_event(control=True)
            broker.unreadable = True
            await let_pass(45)
            # The log is looked into while nothing comes: a read is on its way.
        broker.unreadable = False
        await let_pass(1)
        async with client.open("/") as stream:
            await stream.next_event(control=True)
            await let_pass(30)
            assert push.healthy
