"""JetStreamBroker on a real server: its logs, their bounds, and what is left of them after faults."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import nats
import pytest
from nats.js import JetStreamContext

from livepush_asgi import BrokerTimeouts, JetStreamBroker, NatsBroker
from livepush_asgi.brokers import ForwardingSubscription, HistoryBroker, Page, Record, Subscription
from livepush_asgi.brokers.history import History
from livepush_asgi.errors import BrokerUnavailableError, PositionConflictError
from livepush_asgi.wire.cursor import MAX_OFFSET, Position
from livepush_asgi.wire.event import positioned

from .fault_contract import by_way_of
from .nats_server import NatsProcess
from .relay import Relay
from .subscriptions import LONG, Transcript, transcript_of
from .valkey import until

pytestmark = pytest.mark.real_time


async def fill(broker: HistoryBroker, channel: str, count: int, text: str = "") -> list[Position]:
    return [await broker.append(channel, f"{text}{number}".encode()) for number in range(1, count + 1)]


async def everything(broker: HistoryBroker, channel: str, page: int = 100) -> list[Record]:
    """All that is kept of a log, read page by page."""
    found: list[Record] = []
    after = 0
    while records := (await broker.read(channel, after, page)).records:
        found += records
        after = found[-1].offset
    return found


@asynccontextmanager
async def jetstream_of(server: NatsProcess) -> AsyncIterator[JetStreamContext]:
    """A client as another program would use it."""
    async with await nats.connect(server.url) as client:
        yield client.jetstream()


# --- one log ----------------------------------------------------------------------------------------------


async def test_a_log_counts_its_events_from_one(nats_server: NatsProcess, prefix: str) -> None:
    broker = JetStreamBroker(nats_server.url, prefix=prefix)
    assert isinstance(broker, HistoryBroker)
    positions = await fill(broker, "news", 5)
    assert [position.offset for position in positions] == [1, 2, 3, 4, 5]
    (epoch,) = {position.epoch for position in positions}
    records = tuple(Record(number, str(number).encode()) for number in range(1, 6))
    assert await broker.read("news", 0, 10) == Page(epoch, 1, 5, records)
    assert await broker.read("news", 2, 2) == Page(epoch, 1, 5, records[2:4])
    assert await broker.read("news", 5, 10) == Page(epoch, 1, 5, ())
    assert await broker.read("news", MAX_OFFSET, 0) == Page(epoch, 1, 5, ())


async def test_a_log_that_is_read_first_keeps_its_epoch(nats_server: NatsProcess, prefix: str) -> None:
    broker = JetStreamBroker(nats_server.url, prefix=prefix)
    empty = await broker.read("news", MAX_OFFSET, 0)
    assert (empty.first, empty.last, empty.records) == (1, 0, ())
    other = JetStreamBroker(nats_server.url, prefix=prefix)
    assert await other.read("news", 0, 10) == empty
    assert await other.append("news", b"x") == Position(empty.epoch, 1)
    assert await broker.read("news", 0, 10) == Page(empty.epoch, 1, 1, (Record(1, b"x"),))
    assert (await broker.read("other", 0, 10)).epoch != empty.epoch


async def test_what_is_delivered_has_its_position_and_is_in_the_log(
    nats_server: NatsProcess, prefix: str
) -> None:
    broker = JetStreamBroker(nats_server.url, prefix=prefix)
    reader = JetStreamBroker(nats_server.url, prefix=prefix)
    ends: list[tuple[int, int]] = []

    class Reader(Transcript):
        def deliver(self, payload: bytes, /) -> None:
            super().deliver(payload)
            looks.start_soon(self.look, len(self.heard))

        async def look(self, number: int) -> None:
            ends.append((number, (await reader.read("news", MAX_OFFSET, 0)).last))

    async with anyio.create_task_group() as looks:
        subscription, transcript = await reader.subscribe("news"), Reader()
        assert isinstance(subscription, ForwardingSubscription)
        subscription.forward(transcript)
        # The mark that begins the log is no event.
        await broker.read("news", 0, 1)
        positions = await fill(broker, "news", 50)
        await until(lambda: len(ends) == 50)
    assert transcript.heard == [positioned(p, str(p.offset).encode()) for p in positions]
    assert all(last >= number for number, last in ends)
    await subscription.close()


async def test_publish_appends_and_a_plain_reader_gets_the_payload(
    nats_server: NatsProcess, prefix: str
) -> None:
    broker = JetStreamBroker(nats_server.url, prefix=prefix)
    plain = NatsBroker(nats_server.url, prefix=prefix)
    subscriptions = [await broker.subscribe("news"), await plain.subscribe("news")]
    await broker.read("news", 0, 1)
    assert await broker.publish("news", "é") == 0
    epoch = (await broker.read("news", 0, 0)).epoch
    wanted = [positioned(Position(epoch, 1), "é".encode()), "é".encode()]
    assert [await subscription.get_message(timeout=LONG) for subscription in subscriptions] == wanted
    for subscription in subscriptions:
        await subscription.close()
    assert await everything(broker, "news") == [Record(1, "é".encode())]


async def test_what_is_published_past_the_log_has_no_position(nats_server: NatsProcess, prefix: str) -> None:
    broker = JetStreamBroker(nats_server.url, prefix=prefix)
    subscription, transcript = await transcript_of(broker, "news")
    await NatsBroker(nats_server.url, prefix=prefix).publish("news", "plain")
    position = await broker.append("news", b"x")
    await until(lambda: transcript.heard == [b"plain", positioned(position, b"x")])
    assert await everything(broker, "news") == [Record(1, b"x")]
    await subscription.close()


HOSTILE = ["*", ">", "a.>", "a.*", "a.b", "a", "", ".", "a b", "é", "%2A", "$JS.>", "x" * 5000]


async def test_the_logs_of_hostile_names_do_not_meet(nats_server: NatsProcess, prefix: str) -> None:
    broker = JetStreamBroker(nats_server.url, prefix=prefix)
    for name in HOSTILE:
        assert (await broker.append(name, name.encode())).offset == 1
    for name in HOSTILE:
        assert await everything(broker, name) == [Record(1, name.encode())]


# --- many publishers --------------------------------------------------------------------------------------


async def test_8_publishers_on_connections_of_their_own_count_without_a_hole(
    nats_server: NatsProcess, prefix: str
) -> None:
    subscription, transcript = await transcript_of(JetStreamBroker(nats_server.url, prefix=prefix), "news")
    taken: dict[Position, bytes] = {}

    async def publish(name: int) -> None:
        broker = JetStreamBroker(nats_server.url, prefix=prefix)
        for number in range(40):
            payload = f"{name} {number}".encode()
            taken[await broker.append("news", payload)] = payload

    async with anyio.create_task_group() as tasks:
        for name in range(8):
            tasks.start_soon(publish, name)
    assert sorted(position.offset for position in taken) == list(range(1, 321))
    assert len({position.epoch for position in taken}) == 1
    in_order = sorted(taken.items(), key=lambda item: item[0].offset)
    await until(lambda: len(transcript.heard) == 320)
    assert transcript.heard == [positioned(*item) for item in in_order]
    await subscription.close()


async def test_500_at_once_in_one_process_count_without_a_hole(nats_server: NatsProcess, prefix: str) -> None:
    broker = JetStreamBroker(nats_server.url, prefix=prefix)
    positions = await asyncio.gather(*(broker.append("news", b"x") for _ in range(500)))
    assert [position.offset for position in positions] == list(range(1, 501))
    async with jetstream_of(nats_server) as jetstream:
        info = await jetstream.stream_info(prefix)
    assert info.state.messages == 500


async def test_one_connection_does_everything(own_nats: NatsProcess) -> None:
    broker = JetStreamBroker(own_nats.url, linger=0.05)

    async def use(channel: str) -> Subscription:
        subscription = await broker.subscribe(channel)
        position = await broker.append(channel, b"x")
        assert await subscription.get_message(timeout=LONG) == positioned(position, b"x")
        assert len((await broker.read(channel, 0, 10)).records) == 1
        return subscription

    subscriptions = await asyncio.gather(*(use(f"channel.{number}") for number in range(200)))
    assert own_nats.connections() == 1
    for subscription in subscriptions:
        await subscription.close()
    await until(lambda: own_nats.connections() == 0)


# --- reading by offset ------------------------------------------------------------------------------------


async def test_every_part_of_a_log_that_lies_scattered_among_others_is_found(
    nats_server: NatsProcess, prefix: str
) -> None:
    writer = JetStreamBroker(nats_server.url, prefix=prefix)
    chance = random.Random(1)
    # Unevenly: the middle of the log lies in a tenth of the stream.
    others = [0 if 100 < number < 300 else chance.randrange(8) for number in range(1, 401)]
    for number, count in enumerate(others, 1):
        await writer.append("news", str(number).encode())
        await asyncio.gather(*(writer.append(f"other {n}", b"x") for n in range(count)))
    for after in [0, 1, 16, 17, 99, 100, 101, 200, 299, 300, 383, 398, 399]:
        # One that knows nothing yet, and has to search.
        broker = JetStreamBroker(nats_server.url, prefix=prefix)
        page = await broker.read("news", after, 3)
        wanted = range(after + 1, min(after + 4, 401))
        assert page.records == tuple(Record(n, str(n).encode()) for n in wanted), after
        assert (page.first, page.last) == (1, 400)
    found = await everything(writer, "news", page=37)
    assert found == [Record(n, str(n).encode()) for n in range(1, 401)]


async def test_large_events_come_in_shorter_pages(nats_server: NatsProcess, prefix: str) -> None:
    broker = JetStreamBroker(nats_server.url, prefix=prefix)
    for number in range(8):
        await broker.append("news", bytes([number]) * 900_000)
    page = await broker.read("news", 0, 100)
    assert 1 <= len(page.records) < 8
    assert page.last == 8
    assert [record.offset for record in await everything(broker, "news")] == list(range(1, 9))


# --- bounds -----------------------------------------------------------------------------------------------


async def test_the_newest_events_are_kept(nats_server: NatsProcess, prefix: str) -> None:
    broker = JetStreamBroker(nats_server.url, prefix=prefix, history=History(events=10))
    await broker.read("news", 0, 0)
    (*_, end) = await fill(broker, "news", 25)
    records = tuple(Record(number, str(number).encode()) for number in range(16, 26))
    assert await broker.read("news", 0, 100) == Page(end.epoch, 16, 25, records)
    assert await broker.read("news", 3, 2) == Page(end.epoch, 16, 25, records[:2])
    assert await broker.read("news", 24, 2) == Page(end.epoch, 16, 25, records[-1:])
    async with jetstream_of(nats_server) as jetstream:
        assert (await jetstream.stream_info(prefix)).state.messages <= 14


async def test_old_events_go_and_the_log_goes_on_while_somebody_reads(
    nats_server: NatsProcess, prefix: str
) -> None:
    broker = JetStreamBroker(nats_server.url, prefix=prefix, history=History(age=0.3))
    (*_, end) = await fill(broker, "news", 5)
    started = time.monotonic()
    with anyio.fail_after(LONG):
        while (page := await broker.read("news", 0, 10)).records:
            assert page.epoch == end.epoch
            assert [record.offset for record in page.records] == list(range(page.first, 6))
    assert time.monotonic() - started > 0.2
    assert page == Page(end.epoch, 6, 5, ())
    # Three times as long as the server keeps any message.
    while time.monotonic() - started < 2.0:
        assert await broker.read("news", 0, 10) == page
    assert await broker.append("news", b"x") == Position(end.epoch, 6)
    assert await broker.read("news", 0, 10) == Page(end.epoch, 6, 6, (Record(6, b"x"),))


async def test_a_log_that_nobody_needs_is_forgotten_and_its_successor_is_another(
    nats_server: NatsProcess, prefix: str
) -> None:
    broker = JetStreamBroker(nats_server.url, prefix=prefix, history=History(age=0.2))
    (*_, end) = await fill(broker, "news", 5)
    async with jetstream_of(nats_server) as jetstream:
        with anyio.fail_after(LONG):
            while (await jetstream.stream_info(prefix)).state.messages:
                await anyio.lowlevel.checkpoint()
    position = await broker.append("news", b"x")
    assert position.offset == 1
    assert position.epoch != end.epoch


async def test_events_are_kept_without_end_if_no_age_is_given(nats_server: NatsProcess, prefix: str) -> None:
    broker = JetStreamBroker(nats_server.url, prefix=prefix, history=History(age=None))
    (*_, end) = await fill(broker, "news", 2)
    assert await broker.read("news", 1, 10) == Page(end.epoch, 1, 2, (Record(2, b"2"),))
    async with jetstream_of(nats_server) as jetstream:
        assert (await jetstream.stream_info(prefix)).config.max_age == 0


async def test_bytes_are_bounded_over_all_channels_together_and_not_for_each(
    nats_server: NatsProcess, prefix: str
) -> None:
    broker = JetStreamBroker(nats_server.url, prefix=prefix, history=History(size=1), max_size=64 * 1024)
    (*_, end) = await fill(broker, "quiet", 3)
    assert await broker.read("quiet", 2, 1) == Page(end.epoch, 1, 3, (Record(3, b"3"),))
    (*_, loud) = await fill(broker, "loud", 100, "x" * 1024)
    page = await broker.read("loud", 0, 100)
    assert (page.epoch, page.last) == (loud.epoch, 100)
    assert 40 < len(page.records) < 64
    # The oldest went, whosever they were. Who followed the quiet one is told that its log is another.
    assert (await broker.read("quiet", 0, 1)).locate(end) is None


# --- idempotency and expectations -------------------------------------------------------------------------


async def test_a_key_adds_one_event_however_often_it_comes(nats_server: NatsProcess, prefix: str) -> None:
    brokers = [JetStreamBroker(nats_server.url, prefix=prefix) for _ in range(4)]
    calls = [broker.append("news", b"x", idempotency_key="k 1") for broker in brokers for _ in range(5)]
    (first,) = set(await asyncio.gather(*calls))
    assert first.offset == 1
    after = await brokers[0].append("news", b"y")
    assert await brokers[1].append("news", b"x", idempotency_key="k 1", expected_position=after) == first
    assert (await brokers[1].append("news", b"x", idempotency_key="k 2")).offset == 3
    assert (await brokers[1].append("other", b"x", idempotency_key="k 1")).offset == 1
    assert [record.payload for record in await everything(brokers[0], "news")] == [b"x", b"y", b"x"]


async def test_a_key_is_forgotten_with_its_event(nats_server: NatsProcess, prefix: str) -> None:
    broker = JetStreamBroker(nats_server.url, prefix=prefix, history=History(events=1))
    await broker.append("news", b"x", idempotency_key="key")
    await fill(broker, "news", 10)
    assert (await broker.append("news", b"x", idempotency_key="key")).offset == 12


async def test_an_event_that_was_to_follow_another_follows_it_or_is_not_added(
    nats_server: NatsProcess, prefix: str
) -> None:
    one = JetStreamBroker(nats_server.url, prefix=prefix)
    other = JetStreamBroker(nats_server.url, prefix=prefix)
    first = await one.append("news", b"1", expected_position=Position("any", 0))
    with pytest.raises(PositionConflictError) as raised:
        await other.append("news", b"not", expected_position=Position("any", 0))
    assert raised.value.last == first
    second = await other.append("news", b"2", expected_position=first)
    with pytest.raises(PositionConflictError) as raised:
        await one.append("news", b"not", expected_position=first)
    assert raised.value.last == second
    with pytest.raises(PositionConflictError):
        await one.append("news", b"not", expected_position=Position("wrong", 2))
    with pytest.raises(PositionConflictError):
        await one.append("empty", b"not", expected_position=Position("any", 1))
    assert [record.payload for record in await everything(one, "news")] == [b"1", b"2"]


async def test_of_many_that_were_to_follow_the_same_one_does(nats_server: NatsProcess, prefix: str) -> None:
    brokers = [JetStreamBroker(nats_server.url, prefix=prefix) for _ in range(8)]
    first = await brokers[0].append("news", b"1")
    calls = (broker.append("news", b"2", expected_position=first) for broker in brokers)
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(result, PositionConflictError) for result in results) == 7
    assert [result for result in results if isinstance(result, Position)] == [Position(first.epoch, 2)]


# --- faults -----------------------------------------------------------------------------------------------


async def test_a_killed_server_keeps_the_logs_and_live_delivery_goes_on(own_nats: NatsProcess) -> None:
    broker = JetStreamBroker(own_nats.url)
    subscription, transcript = await transcript_of(broker, "news")
    (*_, end) = await fill(broker, "news", 3)
    own_nats.kill()
    with pytest.raises(BrokerUnavailableError, match="cannot publish"):
        await broker.append("news", b"nowhere")
    with pytest.raises(BrokerUnavailableError, match="cannot read"):
        await broker.read("news", 0, 1)
    own_nats.start()
    await until(lambda: broker.healthy)
    after = await broker.append("news", b"after")
    assert after == Position(end.epoch, 4)
    await until(lambda: transcript.heard[3:] == [None, positioned(after, b"after")])
    assert [record.offset for record in await everything(broker, "news")] == [1, 2, 3, 4]
    await subscription.close()


@pytest.mark.slow
async def test_publishers_under_kills_leave_no_hole_and_lose_nothing_that_was_confirmed(
    own_nats: NatsProcess,
) -> None:
    confirmed: dict[Position, bytes] = {}
    done = anyio.Event()

    async def publish(name: int) -> None:
        broker = JetStreamBroker(
            own_nats.url, timeouts=BrokerTimeouts(ping_interval=0.2, ping=0.2, publish=0.5)
        )
        number = 0
        while not done.is_set():
            payload = f"{name} {number}".encode()
            try:
                position = await broker.append("news", payload, idempotency_key=payload.decode())
            except BrokerUnavailableError:
                await anyio.lowlevel.checkpoint()
                continue
            confirmed[position] = payload
            number += 1

    async def progress() -> None:
        aim = len(confirmed) + 30
        await until(lambda: len(confirmed) > aim)

    async with anyio.create_task_group() as tasks:
        for name in range(4):
            tasks.start_soon(publish, name)
        for _ in range(3):
            await progress()
            own_nats.kill()
            own_nats.start()
            await progress()
            own_nats.pause()
            await anyio.sleep(0.6)
            own_nats.resume()
        await progress()
        done.set()
    found = await everything(JetStreamBroker(own_nats.url), "news")
    payloads = [record.payload for record in found]
    assert len({position.epoch for position in confirmed}) == 1
    assert [record.offset for record in found] == list(range(found[0].offset, found[-1].offset + 1))
    assert len(payloads) == len(set(payloads))
    kept = {p.offset: payload for p, payload in confirmed.items() if p.offset >= found[0].offset}
    assert kept.items() <= {record.offset: record.payload for record in found}.items()
    for name in range(4):
        mine = [int(payload.split()[1]) for payload in payloads if payload.startswith(b"%d " % name)]
        assert mine == list(range(mine[0], mine[-1] + 1))


@pytest.mark.parametrize("is_read_first", [True, False])
async def test_a_server_that_has_lost_its_data_has_another_epoch(
    own_nats: NatsProcess, is_read_first: bool
) -> None:
    broker = JetStreamBroker(own_nats.url)
    subscription = await broker.subscribe("news")
    (*_, end) = await fill(broker, "news", 5)
    own_nats.kill()
    await until(lambda: not broker.healthy)
    own_nats.lose_data()
    own_nats.start()
    await until(lambda: broker.healthy)
    if is_read_first:
        assert (await broker.read("news", 5, 10)).last == 0
    position = await broker.append("news", b"new")
    assert position.offset == 1
    assert position.epoch != end.epoch
    assert await broker.read("news", 5, 10) == Page(position.epoch, 1, 1, ())
    await subscription.close()


async def test_a_stream_that_is_removed_is_made_again(nats_server: NatsProcess, prefix: str) -> None:
    broker = JetStreamBroker(nats_server.url, prefix=prefix)
    (*_, end) = await fill(broker, "news", 5)
    async with jetstream_of(nats_server) as jetstream:
        await jetstream.delete_stream(prefix)
        position = await broker.append("news", b"new")
        assert position.offset == 1
        assert position.epoch != end.epoch
        await jetstream.delete_stream(prefix)
        assert (await broker.read("news", 0, 1)).last == 0


async def test_a_log_of_which_the_end_was_lost_begins_anew(nats_server: NatsProcess, prefix: str) -> None:
    broker = JetStreamBroker(nats_server.url, prefix=prefix)
    positions = await fill(broker, "news", 5)
    async with jetstream_of(nats_server) as jetstream:
        last = (await jetstream.stream_info(prefix)).state.last_seq
        await jetstream.delete_msg(prefix, last)
    # Another event would have the position that a client may have seen for the fifth.
    position = await broker.append("news", b"new")
    assert position.offset == 1
    assert position.epoch != positions[0].epoch
    assert await everything(broker, "news") == [Record(1, b"new")]


async def test_what_somebody_else_puts_into_a_log_begins_it_anew(
    nats_server: NatsProcess, prefix: str
) -> None:
    broker = JetStreamBroker(nats_server.url, prefix=prefix)
    for headers in (None, {"Livepush-Position": "no position"}):
        (*_, end) = await fill(broker, "news", 2)
        async with jetstream_of(nats_server) as jetstream:
            await jetstream.publish(f"{prefix}-log.news", b"foreign", headers=headers)
        page = await broker.read("news", 0, 10)
        assert page.epoch != end.epoch
        assert (page.first, page.last, page.records) == (1, 0, ())
        assert await broker.append("news", b"x") == Position(page.epoch, 1)


async def test_an_event_that_was_removed_is_gone_and_what_follows_is_found(
    nats_server: NatsProcess, prefix: str
) -> None:
    broker = JetStreamBroker(nats_server.url, prefix=prefix)
    (*_, end) = await fill(broker, "news", 5)
    async with jetstream_of(nats_server) as jetstream:
        first = (await jetstream.stream_info(prefix)).state.first_seq
        await jetstream.delete_msg(prefix, first + 2)
    assert await broker.read("news", 0, 10) == Page(end.epoch, 1, 5, (Record(1, b"1"), Record(2, b"2")))
    assert await broker.read("news", 2, 10) == Page(end.epoch, 4, 5, (Record(4, b"4"), Record(5, b"5")))


async def test_of_many_who_wait_for_a_silent_server_all_hear_of_it_together(own_nats: NatsProcess) -> None:
    broker = JetStreamBroker(own_nats.url, timeouts=BrokerTimeouts(publish=0.5))
    await broker.append("news", b"x")
    own_nats.pause()
    started = time.monotonic()
    calls = (broker.append("news", b"y") for _ in range(20))
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(results[-1], BrokerUnavailableError)
    assert time.monotonic() - started < 1.5
    own_nats.resume()
    with anyio.fail_after(LONG):
        last = await broker.append("news", b"z")
    # Whether the one that was under way has arrived is not known to anybody; a hole there is not.
    found = await everything(broker, "news")
    assert [record.offset for record in found] == list(range(1, last.offset + 1))


async def test_an_append_that_always_comes_second_raises_in_time(
    nats_server: NatsProcess, prefix: str
) -> None:
    near = JetStreamBroker(nats_server.url, prefix=prefix)
    relay = Relay(nats_server.port)
    # By then the log has gone on, so that the end which the answer names is never the end.
    relay.delay = 0.05

    async def append_for_ever() -> None:
        while True:
            await near.append("news", b"x")

    async with by_way_of(relay), anyio.create_task_group() as tasks:
        tasks.start_soon(append_for_ever)
        far = JetStreamBroker(
            f"nats://127.0.0.1:{relay.port}", prefix=prefix, timeouts=BrokerTimeouts(publish=0.5), linger=0.1
        )
        with anyio.fail_after(LONG), pytest.raises(BrokerUnavailableError, match=r"not done within 0\.5 s"):
            await far.append("news", b"late")
        tasks.cancel_scope.cancel()


# --- the server's settings --------------------------------------------------------------------------------


async def test_without_jetstream_the_error_says_so(tmp_path: Path) -> None:
    with NatsProcess(tmp_path) as server:
        broker = JetStreamBroker(server.url)
        with pytest.raises(BrokerUnavailableError, match="is JetStream enabled"):
            await broker.append("news", b"x")


async def test_a_stream_of_somebody_else_is_not_used(nats_server: NatsProcess, prefix: str) -> None:
    async with jetstream_of(nats_server) as jetstream:
        await jetstream.add_stream(name=prefix, subjects=[f"{prefix}-orders.>"])
    with pytest.raises(BrokerUnavailableError, match="name another stream or prefix"):
        await JetStreamBroker(nats_server.url, prefix=prefix).append("news", b"x")
    broker = JetStreamBroker(nats_server.url, prefix=prefix, stream=f"{prefix}-other")
    assert (await broker.append("news", b"x")).offset == 1


async def test_a_stream_that_is_there_keeps_its_bounds(nats_server: NatsProcess, prefix: str) -> None:
    await JetStreamBroker(nats_server.url, prefix=prefix, max_size=2**20).append("news", b"x")
    await JetStreamBroker(nats_server.url, prefix=prefix, max_size=2**21).append("news", b"x")
    async with jetstream_of(nats_server) as jetstream:
        config = (await jetstream.stream_info(prefix)).config
    assert (config.max_bytes, config.max_msgs_per_subject) == (2**20, 10_004)


@pytest.mark.parametrize("name", ["", "a b", "a.b", "*", "x" * 65])
def test_a_stream_has_a_plain_name(name: str) -> None:
    with pytest.raises(ValueError, match="a stream's name"):
        JetStreamBroker(stream=name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_size": 0}, "max_size is a whole number"),
        ({"replicas": 1.5}, "replicas is a whole number"),
        ({"idempotency_window": 120_000}, "is it in milliseconds"),
    ],
)
def test_bad_settings_of_the_stream_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        JetStreamBroker(**options)


def test_one_broker_serves_one_event_loop_after_another(nats_server: NatsProcess, prefix: str) -> None:
    broker = JetStreamBroker(nats_server.url, prefix=prefix)
    offsets = [asyncio.run(broker.append("news", b"x")).offset for _ in range(3)]
    assert offsets == [1, 2, 3]
