"""BrokerContract: the rules of the broker port, as tests that an adapter's author runs.

Nothing here imports pytest: a subclass in a test module makes tests of a plain class.
"""

from contextlib import AsyncExitStack

import anyio

from ..brokers import Broker, ForwardingSubscription, Subscription
from ..wire.event import split_position
from .checks import (
    BYTES,
    DEADLINE,
    QUIET,
    LiveReader,
    check_equal,
    concurrently,
    hostile_channels,
    new_channel,
    nothing_more,
    pause,
    payload_after_close,
    payloads,
    subscribed,
)


class BrokerContract:
    """The rules of the `Broker` port. Each test is one rule; its docstring states it.

    Subclass it in a test module, with the adapter as the fixture `broker`:

        class TestMyBroker(BrokerContract):
            @pytest.fixture
            async def broker(self):
                yield MyBroker(...)

    The tests are asynchronous functions for the pytest plugin of anyio: mark the module with
    `pytest.mark.anyio`, or set `anyio_mode = "auto"`. They use new channel names, so they may run on a
    server that is in use.
    """

    async def test_payloads_come_in_the_order_of_their_publisher(self, broker: Broker) -> None:
        """The payloads of one publisher come in its order, each once."""
        channel = new_channel()

        async def publish(name: str) -> None:
            for number in range(50):
                await broker.publish(channel, f"{name} {number}")

        async with subscribed(broker, channel) as subscription, anyio.create_task_group() as tasks:
            tasks.start_soon(publish, "one")
            tasks.start_soon(publish, "two")
            found = await payloads(subscription, 100)
        for name in ("one", "two"):
            own = [payload for payload in found if payload.startswith(name.encode())]
            check_equal(own, [f"{name} {number}".encode() for number in range(50)])

    async def test_every_subscription_of_a_channel_gets_every_payload(self, broker: Broker) -> None:
        """A payload goes to every subscription that the channel has."""
        channel = new_channel()
        wanted = [b"%d" % number for number in range(10)]
        async with subscribed(broker, channel) as one, subscribed(broker, channel) as two:
            for payload in wanted:
                await broker.publish(channel, payload)
            check_equal(await payloads(one, 10), wanted)
            check_equal(await payloads(two, 10), wanted)
            await nothing_more([one, two])

    async def test_no_channel_hears_another_one(self, broker: Broker) -> None:
        """A channel name is taken literally: it is never a pattern, and no two channels share payloads."""
        names = hostile_channels()
        async with AsyncExitStack() as stack:
            listening = [await stack.enter_async_context(subscribed(broker, name)) for name in names]
            for name in names:
                await broker.publish(name, name)
            for name, subscription in zip(names, listening, strict=True):
                check_equal(await payloads(subscription, 1), [name.encode()])
            await nothing_more(listening)

    async def test_a_subscription_gets_what_is_published_after_it_was_returned(self, broker: Broker) -> None:
        """A subscription gets every payload published after `subscribe` returned, and none from before."""
        channel = new_channel()
        for number in range(20):
            await broker.publish(channel, f"before {number}")
            async with subscribed(broker, channel) as subscription:
                await broker.publish(channel, f"after {number}")
                check_equal(await payloads(subscription, 1), [f"after {number}".encode()])

    async def test_nothing_comes_after_close(self, broker: Broker) -> None:
        """A closed subscription gives nothing, not even waiting payloads. Others of its channel go on."""
        channel = new_channel()
        async with subscribed(broker, channel) as other:
            closed = await broker.subscribe(channel)
            await broker.publish(channel, b"waiting")
            check_equal(await payloads(other, 1), [b"waiting"])
            await closed.close()
            await broker.publish(channel, b"late")
            check_equal(await payloads(other, 1), [b"late"])
            check_equal(await payload_after_close(closed), None)

    async def test_closing_twice_is_harmless(self, broker: Broker) -> None:
        """A second `close` does nothing, even if the channel has another subscription by then."""
        channel = new_channel()
        first = await broker.subscribe(channel)
        await first.close()
        async with subscribed(broker, channel) as second:
            await first.close()
            await broker.publish(channel, b"x")
            check_equal(await payloads(second, 1), [b"x"])

    async def test_a_str_arrives_as_utf_8(self, broker: Broker) -> None:
        """A str is sent as UTF-8."""
        channel, text = new_channel(), "\u00e9 \u96ea \U0001f600 \u2028 \0 \r\n"
        async with subscribed(broker, channel) as subscription:
            await broker.publish(channel, text)
            check_equal(await payloads(subscription, 1), [text.encode()])

    async def test_bytes_arrive_unchanged(self, broker: Broker) -> None:
        """A payload is opaque: every byte arrives unchanged, and an empty payload arrives too."""
        channel = new_channel()
        async with subscribed(broker, channel) as subscription:
            for payload in BYTES:
                await broker.publish(channel, payload)
            check_equal(await payloads(subscription, len(BYTES)), BYTES)

    async def test_get_message_returns_none_after_the_timeout(self, broker: Broker) -> None:
        """`get_message` waits for its timeout, returns None, and can be called again."""
        channel = new_channel()
        async with subscribed(broker, channel) as subscription:
            for number in range(3):
                begun = anyio.current_time()
                with anyio.fail_after(DEADLINE):
                    check_equal(await subscription.get_message(timeout=QUIET), None)
                # Timers are coarse; half of the timeout tells waiting from not waiting.
                check_equal(anyio.current_time() - begun >= QUIET / 2, True)
                await broker.publish(channel, b"%d" % number)
                check_equal(await payloads(subscription, 1), [b"%d" % number])

    async def test_a_cancelled_get_message_loses_nothing(self, broker: Broker) -> None:
        """A cancelled `get_message` loses nothing: the next call returns the payload."""
        channel = new_channel()

        async def read(subscription: Subscription, scope: anyio.CancelScope, found: list[bytes]) -> None:
            with scope:
                found += await payloads(subscription, 1)

        async with subscribed(broker, channel) as subscription:
            for number in range(40):
                found: list[bytes] = []
                async with anyio.create_task_group() as tasks:
                    scope = anyio.CancelScope()
                    tasks.start_soon(read, subscription, scope, found)
                    await pause(number % 4)
                    await broker.publish(channel, b"%d" % number)
                    await pause(number // 4)
                    scope.cancel()
                check_equal(found or await payloads(subscription, 1), [b"%d" % number])

    async def test_a_cancelled_subscribe_leaves_nothing(self, broker: Broker) -> None:
        """A cancelled `subscribe` leaves no subscription behind, and the next one gets each payload once."""
        channel = new_channel()

        async def begin(scope: anyio.CancelScope, found: list[Subscription]) -> None:
            with scope:
                found.append(await broker.subscribe(channel))

        # Trio runs its tasks in random order, so one try at each step would not do.
        for steps in [*range(20), *[0, 1, 2, 3] * 10]:
            found: list[Subscription] = []
            async with anyio.create_task_group() as tasks:
                scope = anyio.CancelScope()
                tasks.start_soon(begin, scope, found)
                await pause(steps)
                scope.cancel()
            for subscription in found:
                await subscription.close()
        async with subscribed(broker, channel) as subscription:
            await broker.publish(channel, b"once")
            check_equal(await payloads(subscription, 1), [b"once"])
            await nothing_more([subscription])
        with anyio.fail_after(DEADLINE):
            # A server may hear a little later that a connection has no subscription any more.
            while await broker.publish(channel, b"nobody"):  # noqa: ASYNC110
                await anyio.sleep(QUIET)

    async def test_many_can_subscribe_at_once(self, broker: Broker) -> None:
        """Subscriptions may be made and closed concurrently, on one channel and on many."""
        names = [new_channel() for _ in range(20)]
        listening: list[tuple[str, Subscription]] = []

        async def come(number: int) -> None:
            name = names[number % 20]
            subscription = await broker.subscribe(name)
            if number % 3 == 0:
                listening.append((name, subscription))
            else:
                await subscription.close()

        await concurrently(200, come)
        for name in names:
            await broker.publish(name, name)
        for name, subscription in listening:
            check_equal(await payloads(subscription, 1), [name.encode()])
        await nothing_more([subscription for _, subscription in listening])
        for _, subscription in listening:
            await subscription.close()

    async def test_what_is_forwarded_is_everything(self, broker: Broker) -> None:
        """`forward` delivers what waits, then what arrives, in order, until `close`."""
        channel = new_channel()
        subscription = await broker.subscribe(channel)
        if isinstance(subscription, ForwardingSubscription):
            for number in range(5):
                await broker.publish(channel, b"%d" % number)
            live = LiveReader(subscription)
            for number in range(5, 10):
                await broker.publish(channel, b"%d" % number)
            found = [split_position(await live.next())[1] for _ in range(10)]
            check_equal(found, [b"%d" % number for number in range(10)])
            await subscription.close()
            await broker.publish(channel, b"late")
            with anyio.move_on_after(QUIET):
                check_equal(await live.next(), None)
        await subscription.close()
