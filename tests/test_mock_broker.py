"""MockBroker: what it delivers, records and counts, and how it fails when it is told to."""

import traceback

import anyio
import pytest

from livepush_asgi.brokers import Broker, ForwardingSubscription, Subscription
from livepush_asgi.errors import BrokerUnavailableError, MessagesLostError, SubscriptionClosedError
from livepush_asgi.testing import MockBroker, ParsedEvent
from livepush_asgi.wire.event import Event, to_payload


class Recorder:
    """A sink that keeps what it is given; None stands for a loss."""

    def __init__(self) -> None:
        self.taken: list[bytes | None] = []

    def deliver(self, payload: bytes, /) -> None:
        self.taken.append(payload)

    def lost(self) -> None:
        self.taken.append(None)


async def test_it_keeps_to_the_port() -> None:
    broker = MockBroker()
    assert isinstance(broker, Broker)
    subscription = await broker.subscribe("a")
    assert isinstance(subscription, Subscription)
    assert isinstance(subscription, ForwardingSubscription)


async def test_publish_reaches_every_subscription_of_the_channel_and_counts_them() -> None:
    broker = MockBroker()
    first, second, other = [await broker.subscribe(name) for name in ("a", "a", "b")]
    assert await broker.publish("a", "grün") == 2
    assert await first.get_message(timeout=1) == await second.get_message(timeout=1) == "grün".encode()
    assert await other.get_message(timeout=1) is None


async def test_publish_to_nobody_reaches_nobody_then_or_later() -> None:
    broker = MockBroker()
    assert await broker.publish("a", b"early") == 0
    subscription = await broker.subscribe("a")
    assert await subscription.get_message(timeout=1) is None


async def test_payloads_come_in_order_and_once() -> None:
    broker = MockBroker()
    subscription = await broker.subscribe("a")
    for number in range(5):
        await broker.publish("a", str(number))
    assert [await subscription.get_message(timeout=1) for _ in range(6)] == [
        b"0",
        b"1",
        b"2",
        b"3",
        b"4",
        None,
    ]


async def test_get_message_waits_for_what_comes() -> None:
    broker = MockBroker()
    subscription = await broker.subscribe("a")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(broker.publish, "a", b"later")
        assert await subscription.get_message(timeout=1) == b"later"


async def test_a_closed_subscription_no_longer_counts_and_gets_nothing() -> None:
    broker = MockBroker()
    kept, closed = await broker.subscribe("a"), await broker.subscribe("a")
    assert broker.subscriptions("a") == 2
    await closed.close()
    await closed.close()
    assert broker.subscriptions("a") == 1
    assert await broker.publish("a", b"x") == 1
    with pytest.raises(SubscriptionClosedError):
        await closed.get_message(timeout=1)
    await kept.close()
    assert broker.subscriptions("a") == broker.subscriptions("never") == 0


async def test_a_subscription_that_nobody_reads_is_bounded_and_says_what_it_lost() -> None:
    broker = MockBroker(limit=2)
    subscription = await broker.subscribe("a")
    for number in range(5):
        await broker.publish("a", str(number))
    with pytest.raises(MessagesLostError):
        await subscription.get_message(timeout=1)
    assert [await subscription.get_message(timeout=1) for _ in range(3)] == [b"3", b"4", None]


async def test_a_forwarding_subscription_hands_over_what_waits_and_what_comes() -> None:
    broker, sink = MockBroker(), Recorder()
    subscription = await broker.subscribe("a")
    await broker.publish("a", b"before")
    subscription.forward(sink)
    await broker.publish("a", b"after")
    broker.drop()
    await subscription.close()
    await broker.publish("a", b"too late")
    assert sink.taken == [b"before", b"after", None]


async def test_what_was_published_is_recorded_as_it_went_out() -> None:
    broker = MockBroker()
    await broker.publish("a", "text")
    await broker.publish("b", b"bytes")
    assert broker.published == [("a", b"text"), ("b", b"bytes")]


async def test_what_was_published_can_be_seen_as_events() -> None:
    broker = MockBroker()
    await broker.publish("a", to_payload(Event({"n": 1}, event="order", id=7, retry=5).encode()))
    await broker.publish("b", "two\nlines")
    order, plain = ParsedEvent("order", '{"n":1}', "7", "7", 5), ParsedEvent(data="two\nlines")
    assert broker.events() == [order, plain]
    assert broker.events("a") == [order]
    assert broker.events("c") == []


async def test_publish_fails_as_told_and_delivers_nothing_until_told_back() -> None:
    broker = MockBroker()
    subscription = await broker.subscribe("a")
    broker.fail_publish(BrokerUnavailableError("away"))
    for _ in range(2):
        with pytest.raises(BrokerUnavailableError, match="away"):
            await broker.publish("a", b"x")
    assert broker.published == []
    broker.fail_publish(None)
    assert await broker.publish("a", b"y") == 1
    assert await subscription.get_message(timeout=1) == b"y"


async def test_subscribe_fails_as_told_and_leaves_nothing_behind() -> None:
    broker = MockBroker()
    broker.fail_subscribe(ConnectionError("refused"))
    with pytest.raises(ConnectionError, match="refused"):
        await broker.subscribe("a")
    assert broker.subscriptions("a") == 0
    broker.fail_subscribe(None)
    await broker.subscribe("a")
    assert broker.subscriptions("a") == 1


async def test_an_error_that_is_raised_again_and_again_does_not_grow() -> None:
    broker, error, depths = MockBroker(), OSError("away"), []
    broker.fail_publish(error)
    for _ in range(3):
        with pytest.raises(OSError, match="away"):
            await broker.publish("a", b"x")
        depths.append(len(traceback.extract_tb(error.__traceback__)))
    assert len(set(depths)) == 1


async def test_a_dropped_connection_is_told_to_every_subscription_which_goes_on() -> None:
    broker = MockBroker()
    subscriptions = [await broker.subscribe(name) for name in ("a", "a", "b")]
    broker.drop()
    for subscription in subscriptions:
        with pytest.raises(MessagesLostError):
            await subscription.get_message(timeout=1)
        assert await subscription.get_message(timeout=1) is None
    assert await broker.publish("a", b"x") == 2
    assert await subscriptions[0].get_message(timeout=1) == b"x"


async def test_a_dropped_connection_is_told_between_what_came_before_and_after() -> None:
    broker, sink = MockBroker(), Recorder()
    (await broker.subscribe("a")).forward(sink)
    await broker.publish("a", b"before")
    broker.drop()
    await broker.publish("a", b"after")
    assert sink.taken == [b"before", None, b"after"]


async def test_a_publish_that_is_cancelled_has_published_nothing() -> None:
    broker = MockBroker()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await broker.publish("a", b"x")
    assert broker.published == []
