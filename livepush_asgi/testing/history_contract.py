"""HistoryBrokerContract: the rules of the history port, as tests that an adapter's author runs."""

import anyio

from ..brokers import HistoryBroker, Page, Record
from ..errors import PositionConflictError
from ..wire.cursor import MOST_OFFSET, Position
from ..wire.event import positioned, split_position
from .checks import (
    BYTES,
    LiveReader,
    check_equal,
    concurrently,
    hostile_channels,
    new_channel,
    next_payload,
    subscribed,
)
from .contract import BrokerContract


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
        check_equal(await broker.read(channel, MOST_OFFSET, 0), empty)
        check_equal(await broker.append(channel, b"x"), Position(empty.epoch, 1))

    async def test_a_log_is_read_page_by_page(self, broker: HistoryBroker) -> None:
        """A page has at most `limit` events, those after offset `after`, and the bounds of the whole log."""
        channel = new_channel()
        (epoch,) = {position.epoch for position in await fill(broker, channel, 9)}
        records = tuple(Record(number, b"%d" % number) for number in range(1, 10))
        for after, limit in [(0, 100), (0, 9), (0, 4), (4, 4), (8, 4), (8, 1), (0, 0), (5, 0)]:
            wanted = Page(epoch, 1, 9, records[after : after + limit])
            check_equal(await broker.read(channel, after, limit), wanted)
        for after in (9, 10, MOST_OFFSET):
            check_equal(await broker.read(channel, after, 10), Page(epoch, 1, 9, ()))

    async def test_a_page_is_bounded_in_bytes(self, broker: HistoryBroker) -> None:
        """A page has at most `max_bytes` of payload, or one event; pages leave no event out."""
        channel = new_channel()
        sizes = [10, 20, 5000, 30, 40, 10_000, 10_000, 1, 1, 1, 1, 0, 70]
        for size in sizes:
            await broker.append(channel, bytes(size))
        for max_bytes in (1, 30, 100, 10_000, 15_000, 1_000_000):
            found: list[Record] = []
            while len(found) < len(sizes):
                page = await broker.read(channel, len(found), 100, max_bytes=max_bytes)
                records = page.records
                check_equal((page.first, page.last, bool(records)), (1, len(sizes), True))
                size = sum(len(record.payload) for record in records)
                check_equal(len(records) == 1 or size <= max_bytes, True)
                found += records
            check_equal(found, [Record(number, bytes(size)) for number, size in enumerate(sizes, 1)])

    async def test_bytes_are_kept_unchanged(self, broker: HistoryBroker) -> None:
        """A log keeps every byte of a payload, and live subscribers get the same bytes."""
        channel = new_channel()
        async with subscribed(broker, channel) as subscription:
            live = LiveReader(subscription)
            positions = [await broker.append(channel, payload) for payload in BYTES]
            heard = [split_position(await live.next()) for _ in BYTES]
        check_equal(heard, list(zip(positions, BYTES, strict=True)))
        check_equal([record.payload for record in (await broker.read(channel, 0, 100)).records], BYTES)

    async def test_what_is_delivered_is_in_the_log(self, broker: HistoryBroker) -> None:
        """An event is in the log before any subscription gets it: a subscriber that gets it can read it."""
        channel = new_channel()
        async with subscribed(broker, channel) as subscription, anyio.create_task_group() as tasks:
            live = LiveReader(subscription)
            tasks.start_soon(fill, broker, channel, 30)
            for number in range(1, 31):
                position, payload = split_position(await live.next())
                page = await broker.read(channel, number - 1, 1)
                check_equal((position, payload), (Position(page.epoch, number), b"%d" % number))
                check_equal(page.records, (Record(number, payload),))

    async def test_every_subscription_gets_the_positions(self, broker: HistoryBroker) -> None:
        """Each subscription of a channel gets appended and published events, with the same positions."""
        channel = new_channel()
        async with subscribed(broker, channel) as first, subscribed(broker, channel) as second:
            both = LiveReader(first), LiveReader(second)
            position = await broker.append(channel, b"appended")
            await broker.publish(channel, b"published")
            after = Position(position.epoch, 2)
            for live in both:
                for wanted in ((position, b"appended"), (after, b"published")):
                    check_equal(split_position(await live.next()), wanted)

    async def test_get_message_and_forward_hand_out_the_same(self, broker: HistoryBroker) -> None:
        """A subscription gives the same positioned payload through `get_message` as to a sink."""
        channel = new_channel()
        async with subscribed(broker, channel) as asked, subscribed(broker, channel) as forwarding:
            live = LiveReader(forwarding)
            position = await broker.append(channel, b"appended")
            await broker.publish(channel, b"published")
            for wanted in ((position, b"appended"), (position.at(2), b"published")):
                payload = await next_payload(asked)
                check_equal(payload, positioned(*wanted))
                check_equal(await live.next(), payload)

    async def test_concurrent_appends_are_contiguous(self, broker: HistoryBroker) -> None:
        """Concurrent appends get distinct offsets without a hole, and each offset names its event."""
        channel = new_channel()
        told: dict[int, bytes] = {}

        async def add(number: int) -> None:
            payload = b"%d" % number
            told[(await broker.append(channel, payload)).offset] = payload

        await concurrently(50, add)
        records = (await broker.read(channel, 0, 100)).records
        check_equal([record.offset for record in records], list(range(1, 51)))
        check_equal(dict(records), told)

    async def test_the_oldest_events_go(self, bounded_broker: HistoryBroker) -> None:
        """A log keeps the newest events, as many as it may; offsets and epoch go on as if all were kept."""
        channel = new_channel()
        (epoch,) = {position.epoch for position in await fill(bounded_broker, channel, 25)}
        records = tuple(Record(number, b"%d" % number) for number in range(16, 26))
        for after, limit, wanted in [
            (0, 100, records),
            (3, 4, records[:4]),
            (20, 2, records[5:7]),
            (7, 0, ()),
        ]:
            check_equal(await bounded_broker.read(channel, after, limit), Page(epoch, 16, 25, wanted))
        check_equal(await conflicts(bounded_broker, channel, Position(epoch, 0)), True)

    async def test_a_key_adds_one_event(self, broker: HistoryBroker) -> None:
        """A second append to a channel with the same key adds nothing and returns the first's position."""
        channel, other = new_channel(), new_channel()
        first = await broker.append(channel, b"x", idempotency_key="a b.*\u00e9")
        second = await broker.append(channel, b"y", idempotency_key="another")
        check_equal(await broker.append(channel, b"x", idempotency_key="a b.*\u00e9"), first)
        check_equal(
            await broker.append(channel, b"x", idempotency_key="a b.*\u00e9", expected_position=second), first
        )
        elsewhere = await broker.append(other, b"x", idempotency_key="a b.*\u00e9")
        check_equal((first.offset, second.offset), (1, 2))
        check_equal(await broker.read(other, 0, 10), Page(elsewhere.epoch, 1, 1, (Record(1, b"x"),)))
        check_equal((await broker.read(channel, 0, 10)).records, (Record(1, b"x"), Record(2, b"y")))

    async def test_a_key_adds_one_event_however_often_at_once(self, broker: HistoryBroker) -> None:
        """Of concurrent appends with one idempotency key, one adds the event, and all return its position."""
        channel = new_channel()
        told: list[Position] = []

        async def add(number: int) -> None:
            told.append(await broker.append(channel, b"x", idempotency_key="key"))

        await concurrently(20, add)
        page = await broker.read(channel, 0, 100)
        check_equal(page.records, (Record(1, b"x"),))
        check_equal(told, [Position(page.epoch, 1)] * 20)

    async def test_an_append_adds_behind_the_expected_position_alone(self, broker: HistoryBroker) -> None:
        """An event is added right after `expected_position` or not at all; offset 0 is an empty log."""
        channel = new_channel()
        first = await broker.append(channel, b"1", expected_position=Position("any", 0))
        second = await broker.append(channel, b"2", expected_position=first)
        check_equal((first.offset, second.offset), (1, 2))
        epoch = second.epoch
        wrong = [Position("any", 0), Position(epoch, 0), first, Position(epoch, 3), Position("another", 2)]
        for position in wrong:
            check_equal(await conflicts(broker, channel, position), True)
        check_equal((await broker.read(channel, 0, 10)).records, (Record(1, b"1"), Record(2, b"2")))
        check_equal(await broker.append(channel, b"3", expected_position=second), Position(epoch, 3))

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

    async def test_no_two_channels_share_a_log(self, broker: HistoryBroker) -> None:
        """Each channel has a log and an epoch of its own, whatever its name contains."""
        names = hostile_channels()
        positions = [await broker.append(name, name.encode()) for name in names]
        check_equal([position.offset for position in positions], [1] * len(names))
        check_equal(len({position.epoch for position in positions}), len(names))
        for name, position in zip(names, positions, strict=True):
            check_equal(
                await broker.read(name, 0, 10), Page(position.epoch, 1, 1, (Record(1, name.encode()),))
            )


async def fill(broker: HistoryBroker, channel: str, count: int) -> list[Position]:
    """Append the numbers from 1 to `count`."""
    return [await broker.append(channel, b"%d" % number) for number in range(1, count + 1)]


async def conflicts(broker: HistoryBroker, channel: str, expected_position: Position) -> bool:
    """Append with `expected_position` and return whether there was a conflict."""
    try:
        await broker.append(channel, b"conflicting", expected_position=expected_position)
    except PositionConflictError:
        return True
    return False
