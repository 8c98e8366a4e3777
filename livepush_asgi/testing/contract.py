"""BrokerContract and HistoryBrokerContract: the rules of the broker ports, for an adapter's author to run.

Each rule is a test. Nothing here imports pytest: a subclass in a test module makes tests of a plain class.
"""

from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from secrets import token_hex
from typing import Any

import anyio
import anyio.lowlevel

from ..brokers import (
    Broker,
    ForwardingSubscription,
    HistoryBroker,
    Page,
    Record,
    Subscription,
    append_in_order,
)
from ..brokers.mailbox import Mailbox
from ..errors import MessagesLostError, PositionConflictError
from ..wire.cursor import MAX_OFFSET, Position
from ..wire.event import positioned, split_position, to_payload

#: How long a payload that has to come may take, in seconds. A busy machine must not fail a test.
DEADLINE = 10.0
#: How long a test waits for a payload that must not come, in seconds.
QUIET = 0.05

# Ends of channel names that some backends read as a pattern, a separator, a path, an escape or a hash tag.
_ENDS = ". .a .a.b a..b * .* > .> ? [a-z] a* {a} {b}a { } /a /../a %20a % _ a A :a # + $ ' \" \\"
_OTHER_ENDS = ["", " ", " a", "a ", "a b", "\n", "\t", "\u00e9", "e\u0301", "\u96ea", "\U0001f600", "\u2028"]
#: Every byte, no byte at all, and the marks that the component puts in front of an event.
BYTES = [bytes(range(256)), b"", b"\0", b"\xff", b"\xff\xff", b"\r\n\r\n", to_payload(b"data: \xc3\xa9\n\n")]


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
        sent = {name: [b"%s %d" % (name, number) for number in range(50)] for name in (b"one", b"two")}
        async with subscribed(broker) as (channel, subscription), anyio.create_task_group() as tasks:
            for own in sent.values():
                tasks.start_soon(publish, broker, channel, own)
            found = await payloads(subscription, 100)
        for name, own in sent.items():
            check_equal([payload for payload in found if payload.startswith(name)], own)

    async def test_every_subscription_of_a_channel_gets_every_payload(self, broker: Broker) -> None:
        """A payload goes to every subscription that the channel has."""
        async with subscribed(broker) as (channel, one), subscribed(broker, channel) as (_, two):
            await publish(broker, channel, numbers(10))
            check_equal(await payloads(one, 10), numbers(10))
            check_equal(await payloads(two, 10), numbers(10))
            await nothing_more([one, two])

    async def test_no_channel_hears_another_one(self, broker: Broker) -> None:
        """A channel name is taken literally: it is never a pattern, and no two channels share payloads."""
        names = hostile_channels()
        async with AsyncExitStack() as stack:
            listening = [await stack.enter_async_context(subscribed(broker, name)) for name in names]
            for name in names:
                await broker.publish(name, name)
            for name, subscription in listening:
                check_equal(await payloads(subscription, 1), [name.encode()])
            await nothing_more(subscription for _, subscription in listening)

    async def test_a_subscription_gets_what_is_published_after_it_was_returned(self, broker: Broker) -> None:
        """A subscription gets every payload published after `subscribe` returned, and none from before."""
        channel = new_channel()
        for number in range(20):
            await broker.publish(channel, f"before {number}")
            async with subscribed(broker, channel) as (_, subscription):
                await broker.publish(channel, f"after {number}")
                check_equal(await payloads(subscription, 1), [f"after {number}".encode()])

    async def test_nothing_comes_after_close(self, broker: Broker) -> None:
        """A closed subscription gives nothing, not even waiting payloads. Others of its channel go on."""
        async with subscribed(broker) as (channel, other):
            closed = await broker.subscribe(channel)
            await broker.publish(channel, b"waiting")
            check_equal(await payloads(other, 1), [b"waiting"])
            await closed.close()
            await broker.publish(channel, b"late")
            check_equal(await payloads(other, 1), [b"late"])
            try:
                late = await closed.get_message(timeout=QUIET)
            except MessagesLostError:
                raise
            except Exception:
                late = None
            check_equal(late, None)

    async def test_closing_twice_is_harmless(self, broker: Broker) -> None:
        """A second `close` does nothing, even if the channel has another subscription by then."""
        channel = new_channel()
        first = await broker.subscribe(channel)
        await first.close()
        async with subscribed(broker, channel) as (_, second):
            await first.close()
            await broker.publish(channel, b"x")
            check_equal(await payloads(second, 1), [b"x"])

    async def test_a_str_arrives_as_utf_8(self, broker: Broker) -> None:
        """A str is sent as UTF-8."""
        text = "\u00e9 \u96ea \U0001f600 \u2028 \0 \r\n"
        async with subscribed(broker) as (channel, subscription):
            await broker.publish(channel, text)
            check_equal(await payloads(subscription, 1), [text.encode()])

    async def test_bytes_arrive_unchanged(self, broker: Broker) -> None:
        """A payload is opaque: every byte arrives unchanged, and an empty payload arrives too."""
        async with subscribed(broker) as (channel, subscription):
            await publish(broker, channel, BYTES)
            check_equal(await payloads(subscription, len(BYTES)), BYTES)

    async def test_get_message_returns_none_after_the_timeout(self, broker: Broker) -> None:
        """`get_message` waits for its timeout, returns None, and can be called again."""
        async with subscribed(broker) as (channel, subscription):
            for payload in numbers(3):
                begun = anyio.current_time()
                with anyio.fail_after(DEADLINE):
                    check_equal(await subscription.get_message(timeout=QUIET), None)
                # Timers are coarse; half of the timeout tells waiting from not waiting.
                check_equal(anyio.current_time() - begun >= QUIET / 2, True)
                await broker.publish(channel, payload)
                check_equal(await payloads(subscription, 1), [payload])

    async def test_a_cancelled_get_message_loses_nothing(self, broker: Broker) -> None:
        """A cancelled `get_message` loses nothing: the next call returns the payload."""

        async def read(subscription: Subscription, found: list[bytes]) -> None:
            found += await payloads(subscription, 1)

        async with subscribed(broker) as (channel, subscription):
            for number in range(40):
                found: list[bytes] = []
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(read, subscription, found)
                    await pause(number % 4)
                    await broker.publish(channel, b"%d" % number)
                    await pause(number // 4)
                    tasks.cancel_scope.cancel()
                check_equal(found or await payloads(subscription, 1), [b"%d" % number])

    async def test_a_cancelled_subscribe_leaves_nothing(self, broker: Broker) -> None:
        """A cancelled `subscribe` leaves no subscription behind, and the next one gets each payload once."""
        channel = new_channel()

        async def begin(found: list[Subscription]) -> None:
            found.append(await broker.subscribe(channel))

        # Trio runs its tasks in random order, so one try at each step would not do.
        for steps in [*range(20), *[0, 1, 2, 3] * 10]:
            found: list[Subscription] = []
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(begin, found)
                await pause(steps)
                tasks.cancel_scope.cancel()
            for subscription in found:
                await subscription.close()
        async with subscribed(broker, channel) as (_, subscription):
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
            subscription = await broker.subscribe(names[number % 20])
            if number % 3:
                await subscription.close()
            else:
                listening.append((names[number % 20], subscription))

        await concurrently(200, come)
        for name in names:
            await broker.publish(name, name)
        for name, subscription in listening:
            check_equal(await payloads(subscription, 1), [name.encode()])
        await nothing_more(subscription for _, subscription in listening)
        for _, subscription in listening:
            await subscription.close()

    async def test_what_is_forwarded_is_everything(self, broker: Broker) -> None:
        """`forward` delivers what waits, then what arrives, in order, until `close`."""
        async with subscribed(broker) as (channel, subscription):
            if isinstance(subscription, ForwardingSubscription):
                await publish(broker, channel, numbers(5))
                live = forwarded(subscription)
                await publish(broker, channel, numbers(10)[5:])
                check_equal(await payloads(live, 10), numbers(10))
                await subscription.close()
                await broker.publish(channel, b"late")
                await nothing_more([live])


class HistoryBrokerContract(BrokerContract):
    """The rules of the `HistoryBroker` port, and those of `Broker`.

    Subclass it like `BrokerContract`, with one more fixture: `bounded_broker`, a broker that keeps ten
    events of a channel, `History(events=10)`. The fixture `broker` has to keep a hundred.
    """

    async def test_offsets_are_contiguous_from_one(self, broker: HistoryBroker) -> None:
        """The offsets of a log are 1, 2, 3 ... in one epoch, for appended and for published events."""
        channel = new_channel()
        positions = await fill(broker, channel, 5)
        await broker.publish(channel, "\u00e9")
        positions.append(await broker.append(channel, b"7"))
        check_equal([position.offset for position in positions], [1, 2, 3, 4, 5, 7])
        check_equal(len({position.epoch for position in positions}), 1)
        records = (await broker.read(channel, 5, 10)).records
        check_equal(records, (Record(6, "\u00e9".encode()), Record(7, b"7")))

    async def test_a_log_that_is_read_has_an_epoch(self, broker: HistoryBroker) -> None:
        """Reading a channel without a log gives it an epoch, and its first event has that epoch."""
        channel = new_channel()
        empty = await broker.read(channel, 0, 10)
        check_equal((empty.first, empty.last, empty.records), (1, 0, ()))
        check_equal(await broker.read(channel, MAX_OFFSET, 0), empty)
        check_equal(await broker.append(channel, b"x"), Position(empty.epoch, 1))

    async def test_a_log_is_read_page_by_page(self, broker: HistoryBroker) -> None:
        """A page has at most `limit` events, those after offset `after`, and the bounds of the whole log."""
        channel = new_channel()
        (epoch,) = {position.epoch for position in await fill(broker, channel, 9)}
        everything = records(numbers(10)[1:])
        for after, limit in [(0, 100), (0, 9), (0, 4), (4, 4), (8, 4), (8, 1), (0, 0), (5, 0)]:
            wanted = Page(epoch, 1, 9, everything[after : after + limit])
            check_equal(await broker.read(channel, after, limit), wanted)
        for after in (9, 10, MAX_OFFSET):
            check_equal(await broker.read(channel, after, 10), Page(epoch, 1, 9, ()))

    async def test_a_page_is_bounded_in_bytes(self, broker: HistoryBroker) -> None:
        """A page has at most `max_bytes` of payload, or one event; pages leave no event out."""
        channel = new_channel()
        sizes = [10, 20, 5000, 30, 40, 10_000, 10_000, 1, 1, 1, 1, 0, 70]
        for size in sizes:
            await broker.append(channel, bytes(size))
        for max_bytes in (1, 30, 100, 10_000, 15_000, 1_000_000):
            found: tuple[Record, ...] = ()
            while len(found) < len(sizes):
                page = await broker.read(channel, len(found), 100, max_bytes=max_bytes)
                check_equal((page.first, page.last, bool(page.records)), (1, len(sizes), True))
                size = sum(len(record.payload) for record in page.records)
                check_equal(len(page.records) == 1 or size <= max_bytes, True)
                found += tuple(page.records)
            check_equal(found, records(map(bytes, sizes)))

    async def test_bytes_are_kept_unchanged(self, broker: HistoryBroker) -> None:
        """A log keeps every byte of a payload, and live subscribers get the same bytes."""
        async with subscribed(broker) as (channel, subscription):
            live = forwarded(subscription)
            positions = [await broker.append(channel, payload) for payload in BYTES]
            heard = [split_position(await next_payload(live)) for _ in BYTES]
        check_equal(heard, list(zip(positions, BYTES, strict=True)))
        check_equal((await broker.read(channel, 0, 100)).records, records(BYTES))

    async def test_what_is_delivered_is_in_the_log(self, broker: HistoryBroker) -> None:
        """An event is in the log before any subscription gets it: a subscriber that gets it can read it."""
        async with subscribed(broker) as (channel, subscription), anyio.create_task_group() as tasks:
            live = forwarded(subscription)
            tasks.start_soon(fill, broker, channel, 30)
            for number in range(1, 31):
                heard = split_position(await next_payload(live))
                page = await broker.read(channel, number - 1, 1)
                check_equal(heard, (Position(page.epoch, number), b"%d" % number))
                check_equal(page.records, (Record(number, b"%d" % number),))

    async def test_every_subscription_gets_the_positions(self, broker: HistoryBroker) -> None:
        """Each subscription of a channel gets appended and published events, with the same positions."""
        async with subscribed(broker) as (channel, first), subscribed(broker, channel) as (_, second):
            both = forwarded(first), forwarded(second)
            position = await broker.append(channel, b"appended")
            await broker.publish(channel, b"published")
            for live in both:
                for wanted in ((position, b"appended"), (position.at(2), b"published")):
                    check_equal(split_position(await next_payload(live)), wanted)

    async def test_get_message_and_forward_hand_out_the_same(self, broker: HistoryBroker) -> None:
        """A subscription gives the same positioned payload through `get_message` as to a sink."""
        async with subscribed(broker) as (channel, asked), subscribed(broker, channel) as (_, forwarding):
            live = forwarded(forwarding)
            position = await broker.append(channel, b"appended")
            await broker.publish(channel, b"published")
            for wanted in ((position, b"appended"), (position.at(2), b"published")):
                payload = await next_payload(asked)
                check_equal(payload, positioned(*wanted))
                check_equal(await next_payload(live), payload)

    async def test_concurrent_appends_are_contiguous(self, broker: HistoryBroker) -> None:
        """Concurrent appends get distinct offsets without a hole, and each offset names its event."""
        channel = new_channel()
        told: dict[int, bytes] = {}

        async def add(number: int) -> None:
            payload = b"%d" % number
            told[(await broker.append(channel, payload)).offset] = payload

        await concurrently(50, add)
        check_equal(sorted(told), list(range(1, 51)))
        check_equal((await broker.read(channel, 0, 100)).records, tuple(sorted(told.items())))

    async def test_the_oldest_events_go(self, bounded_broker: HistoryBroker) -> None:
        """A log keeps the newest events, as many as it may; offsets and epoch go on as if all were kept."""
        channel = new_channel()
        (epoch,) = {position.epoch for position in await fill(bounded_broker, channel, 25)}
        kept = records(numbers(26)[1:])[15:]
        for after, limit, wanted in [(0, 100, kept), (3, 4, kept[:4]), (20, 2, kept[5:7]), (7, 0, ())]:
            check_equal(await bounded_broker.read(channel, after, limit), Page(epoch, 16, 25, wanted))
        check_equal(await conflicts(bounded_broker, channel, Position(epoch, 0)), True)

    async def test_a_key_adds_one_event(self, broker: HistoryBroker) -> None:
        """A second append to a channel with the same key adds nothing and returns the first's position."""
        channel, other, key = new_channel(), new_channel(), "a b.*\u00e9"
        first = await broker.append(channel, b"x", idempotency_key=key)
        second = await broker.append(channel, b"y", idempotency_key="another")
        check_equal(await broker.append(channel, b"x", idempotency_key=key), first)
        again = await broker.append(channel, b"x", idempotency_key=key, expected_position=second)
        check_equal((again, first.offset, second.offset), (first, 1, 2))
        elsewhere = await broker.append(other, b"x", idempotency_key=key)
        check_equal(await broker.read(other, 0, 10), Page(elsewhere.epoch, 1, 1, records([b"x"])))
        check_equal((await broker.read(channel, 0, 10)).records, records([b"x", b"y"]))

    async def test_a_key_adds_one_event_however_often_at_once(self, broker: HistoryBroker) -> None:
        """Of concurrent appends with one idempotency key, one adds the event, and all return its position."""
        channel = new_channel()
        told: list[Position] = []

        async def add(number: int) -> None:
            told.append(await broker.append(channel, b"x", idempotency_key="key"))

        await concurrently(20, add)
        page = await broker.read(channel, 0, 100)
        check_equal(page.records, records([b"x"]))
        check_equal(told, [Position(page.epoch, 1)] * 20)

    async def test_an_append_adds_behind_the_expected_position_alone(self, broker: HistoryBroker) -> None:
        """An event is added right after `expected_position` or not at all; offset 0 is an empty log."""
        channel = new_channel()
        first = await broker.append(channel, b"1", expected_position=Position("any", 0))
        second = await broker.append(channel, b"2", expected_position=first)
        check_equal((first.offset, second.offset), (1, 2))
        for wrong in [Position("any", 0), second.at(0), first, second.at(3), Position("another", 2)]:
            check_equal(await conflicts(broker, channel, wrong), True)
        check_equal((await broker.read(channel, 0, 10)).records, records([b"1", b"2"]))
        check_equal(await broker.append(channel, b"3", expected_position=second), second.at(3))

    async def test_one_of_many_follows_the_expected_position(self, broker: HistoryBroker) -> None:
        """Of concurrent appends that expect the same position, one succeeds."""
        channel = new_channel()
        end = await broker.append(channel, b"begin")
        lost: list[bool] = []

        async def add(number: int) -> None:
            lost.append(await conflicts(broker, channel, end))

        await concurrently(20, add)
        check_equal(sorted(lost), [False] + [True] * 19)
        check_equal((await broker.read(channel, 0, 0)).last, 2)

    async def test_a_batch_is_appended_in_order(self, broker: HistoryBroker) -> None:
        """Several events of one call follow the expected position in order, and each is delivered."""
        async with subscribed(broker) as (channel, subscription):
            live, wanted = forwarded(subscription), [*numbers(30), *BYTES]
            end = await broker.append(channel, b"begin")
            await check_refused(broker, channel, [b"1", b"2"], end.at(end.offset + 1))
            positions = await append_all(broker, channel, wanted, end)
            check_equal([position.offset for position in positions], list(range(2, len(wanted) + 2)))
            await check_refused(broker, channel, [b"1", b"2"], end)
            heard = [split_position(await next_payload(live)) for _ in range(len(wanted) + 1)]
        check_equal(heard, list(zip([end, *positions], [b"begin", *wanted], strict=True)))
        check_equal((await broker.read(channel, 0, 100)).records, records([b"begin", *wanted]))

    async def test_batches_do_not_mix(self, broker: HistoryBroker) -> None:
        """No other event comes between those that one call has appended."""
        channel, told = new_channel(), dict[int, bytes]()

        async def add(number: int) -> None:
            left = [b"%d %d" % (number, place) for place in range(6)]
            while left:
                page = await broker.read(channel, MAX_OFFSET, 0)
                with suppress(PositionConflictError):
                    end = await append_in_order(broker, channel, left, Position(page.epoch, page.last))
                    added = end.offset - page.last
                    told.update(enumerate(left[:added], page.last + 1))
                    left = left[added:]

        await concurrently(8, add)
        check_equal(sorted(told), list(range(1, 49)))
        check_equal((await broker.read(channel, 0, 100)).records, records(told[key] for key in sorted(told)))

    async def test_no_two_channels_share_a_log(self, broker: HistoryBroker) -> None:
        """Each channel has a log and an epoch of its own, whatever its name contains."""
        positions = {name: await broker.append(name, name.encode()) for name in hostile_channels()}
        check_equal(len({position.epoch for position in positions.values()}), len(positions))
        for name, position in positions.items():
            wanted = Page(position.epoch, 1, 1, records([name.encode()]))
            check_equal((position.offset, await broker.read(name, 0, 10)), (1, wanted))


def new_channel() -> str:
    """Return a channel name that was never used."""
    return f"contract-{token_hex(8)}"


def hostile_channels() -> list[str]:
    """Return channel names that a careless adapter confuses with each other."""
    prefix = new_channel()
    similar = [f"*{prefix[1:]}", f" {prefix}", f"{{{prefix}}}"]
    return [*(f"{prefix}{end}" for end in [*_OTHER_ENDS, *_ENDS.split()]), *similar]


def numbers(count: int) -> list[bytes]:
    """Return the numbers below `count` as payloads."""
    return [b"%d" % number for number in range(count)]


def records(payloads: Iterable[bytes]) -> tuple[Record, ...]:
    """Return the records of a log that has these payloads."""
    return tuple(Record(*record) for record in enumerate(payloads, 1))


@asynccontextmanager
async def subscribed(broker: Broker, channel: str | None = None) -> AsyncIterator[tuple[str, Subscription]]:
    """Subscribe to a channel, or to a new one, for the time of a block."""
    channel = channel or new_channel()
    with anyio.fail_after(DEADLINE):
        subscription = await broker.subscribe(channel)
    try:
        yield channel, subscription
    finally:
        await subscription.close()


def forwarded(subscription: Subscription) -> Subscription:
    """Return what the subscription forwards, as a subscription; or itself if it does not forward."""
    if not isinstance(subscription, ForwardingSubscription):
        return subscription
    mailbox = Mailbox("forwarded", lambda closed: None)
    subscription.forward(mailbox)
    return mailbox


async def publish(broker: Broker, channel: str, payloads: Iterable[bytes]) -> None:
    """Publish the payloads one after the other."""
    for payload in payloads:
        await broker.publish(channel, payload)


async def fill(broker: HistoryBroker, channel: str, count: int) -> list[Position]:
    """Append the numbers from 1 to `count`."""
    return [await broker.append(channel, payload) for payload in numbers(count + 1)[1:]]


async def append_all(
    broker: HistoryBroker, channel: str, payloads: Sequence[bytes], end: Position
) -> list[Position]:
    """Append the payloads behind the end of the log, in as many calls as it takes."""
    found: list[Position] = []
    while len(found) < len(payloads):
        last = await append_in_order(broker, channel, payloads[len(found) :], end)
        found += [last.at(offset) for offset in range(end.offset + 1, last.offset + 1)]
        end = last
    return found


async def check_refused(
    broker: HistoryBroker, channel: str, payloads: Sequence[bytes], expected_position: Position
) -> None:
    """Raise AssertionError unless appending the payloads is a conflict, and adds nothing."""
    before = await broker.read(channel, 0, 1)
    try:
        await append_in_order(broker, channel, payloads, expected_position)
    except PositionConflictError:
        check_equal(await broker.read(channel, 0, 1), before)
    else:
        raise AssertionError(f"a batch was appended behind {expected_position}, where the log does not end")


async def conflicts(broker: HistoryBroker, channel: str, expected_position: Position) -> bool:
    """Append with `expected_position` and return whether there was a conflict."""
    try:
        await broker.append(channel, b"conflicting", expected_position=expected_position)
    except PositionConflictError:
        return True
    return False


async def next_payload(subscription: Subscription) -> bytes:
    """Return the next payload, with its position if it has one."""
    with anyio.fail_after(DEADLINE * 2):
        payload = await subscription.get_message(timeout=DEADLINE)
    if payload is None:
        raise AssertionError(f"no payload came within {DEADLINE:g} s")
    return payload


async def payloads(subscription: Subscription, count: int) -> list[bytes]:
    """Return the next payloads, without the positions that a broker with history gives them."""
    return [split_position(await next_payload(subscription))[1] for _ in range(count)]


async def nothing_more(subscriptions: Iterable[Subscription]) -> None:
    """Check that no further payload comes."""
    await anyio.sleep(QUIET)
    for subscription in subscriptions:
        check_equal(await subscription.get_message(timeout=QUIET / 10), None)


async def concurrently(count: int, act: Callable[[int], Coroutine[Any, Any, None]]) -> None:
    """Call a function concurrently with each number below `count`, and wait until all calls return."""
    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as tasks:
            for number in range(count):
                tasks.start_soon(act, number)


async def pause(turns: int) -> None:
    """Wait for this many turns of the event loop."""
    for _ in range(turns):
        await anyio.lowlevel.checkpoint()


def check_equal(found: object, wanted: object) -> None:
    """Raise AssertionError with both values unless they are equal, also where pytest rewrites no asserts."""
    if found != wanted:
        raise AssertionError(f"found {found!r}, wanted {wanted!r}")
