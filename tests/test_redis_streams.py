"""RedisStreamsBroker on a real server that is killed, cut short, flushed and replaced by its replica."""

import asyncio
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
import redis
from redis.asyncio import Redis
from redis.crc import key_slot

from livepush_asgi import (
    BrokerTimeouts,
    BrokerUnavailableError,
    Grant,
    LivePush,
    RedisBroker,
    RedisStreamsBroker,
)
from livepush_asgi.brokers import HistoryBroker, Page, Record
from livepush_asgi.brokers.history import History
from livepush_asgi.errors import PositionConflictError
from livepush_asgi.testing import Client
from livepush_asgi.wire.cursor import MAX_OFFSET, Position
from livepush_asgi.wire.event import BATCH_MARK, positioned, split_position, to_payload

from .serving import REPOSITORY
from .subscriptions import LONG, transcript_of
from .valkey import ValkeyProcess, until

MARKED = to_payload(b"event: paid\ndata: \xc3\xa9\n\n")

pytestmark = pytest.mark.real_time


@asynccontextmanager
async def broker_on(
    server: ValkeyProcess,
    history: History | None = None,
    *,
    protocol: int = 3,
    decode_responses: bool = False,
) -> AsyncIterator[RedisStreamsBroker]:
    async with server.client(protocol=protocol, decode_responses=decode_responses) as client:
        yield RedisStreamsBroker(client, history=history)


def raw(server: ValkeyProcess) -> redis.Redis:
    """A client as another program would use it."""
    return redis.Redis.from_url(server.url, decode_responses=True)


def append_only_file(directory: Path) -> Path:
    (written,) = directory.glob("appendonlydir/*.incr.aof")
    return written


async def restart(server: ValkeyProcess) -> None:
    """Let the client hear that the old server has gone, as it does where the event loop runs meanwhile."""
    server.start()
    await anyio.wait_all_tasks_blocked()


async def fill(broker: RedisStreamsBroker, channel: str, payloads: Sequence[bytes]) -> list[Position]:
    return [await broker.append(channel, payload) for payload in payloads]


def numbered(first: int, last: int) -> list[bytes]:
    return [str(number).encode() for number in range(first, last + 1)]


def records(first: int, last: int) -> tuple[Record, ...]:
    return tuple(Record(number, str(number).encode()) for number in range(first, last + 1))


# --- the log ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decode_responses", [False, True])
@pytest.mark.parametrize("protocol", [2, 3])
async def test_what_is_appended_is_delivered_and_read_unchanged(
    valkey: ValkeyProcess, protocol: int, decode_responses: bool
) -> None:
    async with broker_on(valkey, protocol=protocol, decode_responses=decode_responses) as broker:
        assert isinstance(broker, HistoryBroker)
        _, transcript = await transcript_of(broker, "naïve {channel}")
        sent = [MARKED, b"plain", b"", b"\xff\x00\r\n", *(b"%d" % n for n in range(20))]
        positions = await fill(broker, "naïve {channel}", sent)
        (epoch,) = {position.epoch for position in positions}
        assert [position.offset for position in positions] == list(range(1, len(sent) + 1))
        expected = [positioned(position, payload) for position, payload in zip(positions, sent, strict=True)]
        await until(lambda: transcript.heard == expected)
        assert await broker.read("naïve {channel}", 0, 100) == Page(
            epoch, 1, len(sent), tuple(Record(n, payload) for n, payload in enumerate(sent, 1))
        )


async def test_a_log_is_read_in_pages(valkey: ValkeyProcess) -> None:
    async with broker_on(valkey, History(events=7)) as broker:
        (epoch,) = {position.epoch for position in await fill(broker, "news", numbered(1, 10))}
        for after, limit, expected in (
            (0, 3, records(4, 6)),
            (3, 3, records(4, 6)),
            (6, 100, records(7, 10)),
            (9, 1, records(10, 10)),
            (10, 5, ()),
            (500, 5, ()),
            (MAX_OFFSET, 5, ()),
            (0, 0, ()),
            (MAX_OFFSET, 0, ()),
        ):
            assert await broker.read("news", after, limit) == Page(epoch, 4, 10, expected)


async def test_reading_begins_a_log(valkey: ValkeyProcess) -> None:
    async with broker_on(valkey) as broker:
        page = await broker.read("news", 0, 10)
        assert (page.first, page.last, page.records) == (1, 0, ())
        assert await broker.append("news", b"1") == Position(page.epoch, 1)
        assert (await broker.read("other", 0, 0)).epoch != page.epoch


async def test_reading_any_name_leaves_nothing_for_long(valkey: ValkeyProcess) -> None:
    async with broker_on(valkey) as broker, broker_on(valkey, History(age=None)) as endless:
        for number in range(50):
            await broker.read(f"any name {number}", 0, 10)
            await endless.read(f"another name {number}", 0, 10)
            await endless.read(f"another name {number}", 0, 10)
        with raw(valkey) as client:
            keys = list(client.scan_iter())
            assert len(keys) == 100
            assert all(0 < client.pttl(key) <= 120_000 for key in keys)
        # The first event makes a log of it, under the same epoch.
        epoch = (await broker.read("any name 1", 0, 0)).epoch
        assert await broker.append("any name 1", b"x") == Position(epoch, 1)
        with raw(valkey) as client:
            assert client.pttl("livepush:log:{any name 1}:head") > 600_000


async def test_a_client_of_an_empty_log_gets_what_comes_or_is_told(valkey: ValkeyProcess) -> None:
    async with broker_on(valkey) as broker:
        push = LivePush(broker, lambda request: Grant(channels=("kept", "forgotten")))
        async with push.lifespan(), Client(push) as pages:
            async with pages.open("/") as stream:
                await stream.next_event(control=True)
            for channel in ("kept", "forgotten"):
                if channel == "forgotten":
                    with raw(valkey) as client:
                        assert client.pexpire("livepush:log:{forgotten}:head", 1)
                    await anyio.sleep(0.01)
                await push.publish(channel, f"missed on {channel}")
            async with pages.open("/", last_event_id=stream.last_event_id) as again:
                await again.next_event(control=True)
                heard = [await again.next_event(control=True) for _ in range(2)]
        assert [(event.event, "forgotten" in event.data) for event in heard] in (
            [("message", False), ("livepush.gap", True)],
            [("livepush.gap", True), ("message", False)],
        )


async def test_publish_appends_too_and_counts_who_listens(valkey: ValkeyProcess) -> None:
    async with broker_on(valkey) as broker, broker_on(valkey) as other:
        first, second = await broker.subscribe("news"), await other.subscribe("news")
        assert await broker.publish("news", "é") == 2
        live = positioned(Position((await broker.read("news", 0, 0)).epoch, 1), "é".encode())
        assert [await s.get_message(timeout=LONG) for s in (first, second)] == [live] * 2
        await first.close()
        await second.close()
        assert await other.publish("quiet", b"x") == 0
        assert (await broker.read("news", 0, 9)).records == (Record(1, "é".encode()),)


async def test_what_is_published_past_the_log_is_delivered_without_a_position(valkey: ValkeyProcess) -> None:
    async with broker_on(valkey) as broker, valkey.client() as client:
        _, transcript = await transcript_of(broker, "news")
        position = await broker.append("news", b"1")
        with raw(valkey) as other:
            other.publish("news", "from redis-cli")
        await RedisBroker(client).publish("news", "without history")
        await until(lambda: len(transcript.heard) == 3)
        assert transcript.heard == [positioned(position, b"1"), b"from redis-cli", b"without history"]


async def test_eight_publishers_in_two_processes_leave_no_hole(valkey: ValkeyProcess) -> None:
    code = f"""
    import asyncio
    from redis.asyncio import Redis
    from livepush_asgi import RedisStreamsBroker
    from livepush_asgi.brokers.history import History
    async def publish(broker, name):
        for number in range(250):
            await broker.append("news", f"{{name}} {{number}}".encode())
    async def main():
        async with Redis.from_url({valkey.url!r}) as client:
            broker = RedisStreamsBroker(client, history=History(events=2000))
            await asyncio.gather(*(publish(broker, name) for name in range(4)))
    asyncio.run(main())
    """
    async with broker_on(valkey, History(events=2000)) as broker:
        _, transcript = await transcript_of(broker, "news")
        command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code)]
        processes = [
            await anyio.open_process(command, env={"PYTHONPATH": str(REPOSITORY)}, stderr=None)
            for _ in range(2)
        ]
        for process in processes:
            assert await process.wait() == 0
            await process.aclose()
        await until(lambda: len(transcript.heard) == 2000)
        live = [split_position(payload or b"") for payload in transcript.heard]
        assert [position and position.offset for position, _ in live] == list(range(1, 2001))
        page = await broker.read("news", 0, 2000)
        assert [record.payload for record in page.records] == [payload for _, payload in live]
        for name in range(4):
            mine = [payload for _, payload in live if payload.startswith(b"%d " % name)]
            assert sorted(mine) == sorted([b"%d %d" % (name, n) for n in range(250)] * 2)


async def test_a_burst_keeps_the_order_of_asking(valkey: ValkeyProcess) -> None:
    async with broker_on(valkey) as broker:
        calls = [broker.append(f"channel {n % 3}", str(n).encode()) for n in range(1500)]
        positions = await asyncio.gather(*calls)
        assert [position.offset for position in positions] == [n // 3 + 1 for n in range(1500)]


async def test_one_event_and_then_a_burst_keep_the_order_of_asking(valkey: ValkeyProcess) -> None:
    async with broker_on(valkey) as broker:
        for _ in range(3):
            first = await broker.append("news", b"alone")
            positions = await asyncio.gather(*[broker.append("news", b"%d" % n) for n in range(300)])
            assert positions == [first.at(first.offset + n) for n in range(1, 301)]


async def test_whoever_hears_of_an_event_finds_it_in_the_log(valkey: ValkeyProcess) -> None:
    async with broker_on(valkey) as broker, broker_on(valkey) as reader, anyio.create_task_group() as tasks:
        subscription = await reader.subscribe("news")

        async def publish() -> None:
            for number in range(1, 301):
                await broker.append("news", str(number).encode())

        tasks.start_soon(publish)
        for number in range(1, 301):
            payload = await subscription.get_message(timeout=LONG)
            page = await reader.read("news", number - 1, 1)
            assert page.records == (Record(number, b"%d" % number),)
            assert payload == positioned(Position(page.epoch, number), b"%d" % number)
        await subscription.close()


# --- bounds -----------------------------------------------------------------------------------------------


async def test_no_more_events_are_kept_than_allowed(valkey: ValkeyProcess) -> None:
    async with broker_on(valkey, History(events=3)) as broker:
        for number in range(1, 10):
            await broker.append("news", str(number).encode())
            page = await broker.read("news", 0, 100)
            assert page.records == records(max(1, number - 2), number)
            assert (page.first, page.last) == (max(1, number - 2), number)


async def test_no_more_bytes_are_kept_than_allowed(valkey: ValkeyProcess) -> None:
    async with broker_on(valkey, History(events=100, size=1000)) as broker:
        kept: list[Record] = []
        for number, size in enumerate([10] * 120 + [300] * 10 + [999, 1, 2, 5000, 10, 0, 0, 990], 1):
            await broker.append("news", b"x" * size)
            kept.append(Record(number, b"x" * size))
            while len(kept) > 100 or (len(kept) > 1 and sum(len(record.payload) for record in kept) > 1000):
                del kept[0]
            assert (await broker.read("news", 0, 1000)).records == tuple(kept)


async def test_what_is_too_old_goes(valkey: ValkeyProcess) -> None:
    async with broker_on(valkey, History(age=0.3)) as broker:
        (epoch,) = {position.epoch for position in await fill(broker, "news", numbered(1, 100))}
        assert (await broker.read("news", 99, 1)).records == records(100, 100)
        page = await page_from(broker, "news", 101)
        assert page == Page(epoch, 101, 100, ())
        assert await broker.append("news", b"101") == Position(epoch, 101)
        assert await broker.read("news", 0, 10) == Page(epoch, 101, 101, records(101, 101))


async def test_old_events_go_while_new_ones_come(valkey: ValkeyProcess) -> None:
    async with broker_on(valkey, History(age=0.3)) as broker:
        with anyio.fail_after(LONG):
            while (await broker.append("news", b"x")).offset < 10 or (await first_of(broker)) < 10:
                pass
        page = await broker.read("news", 0, 100_000)
        assert [record.offset for record in page.records] == list(range(page.first, page.last + 1))


async def first_of(broker: RedisStreamsBroker) -> int:
    return (await broker.read("news", MAX_OFFSET, 0)).first


async def page_from(broker: RedisStreamsBroker, channel: str, first: int) -> Page:
    """Read until the log begins at an offset: the server's clock sets no event."""
    with anyio.fail_after(LONG):
        while (page := await broker.read(channel, 0, 1000)).first < first:
            pass
    return page


async def test_an_endless_log_stays_endless_beside_a_publisher_with_an_age(valkey: ValkeyProcess) -> None:
    async with (
        broker_on(valkey, History(age=60)) as other,
        broker_on(valkey, History(age=None)) as application,
    ):
        await application.append("news", b"1")
        await other.append("news", b"2")
        with raw(valkey) as client:
            assert client.pttl("livepush:log:{news}") > 0
            await application.append("news", b"3")
            assert [client.pttl(key) for key in client.scan_iter()] == [-1, -1]


async def test_idle_channels_are_forgotten(valkey: ValkeyProcess) -> None:
    async with (
        broker_on(valkey, History(age=3600)) as broker,
        broker_on(valkey, History(age=None)) as ageless,
    ):
        await broker.append("news", b"1", idempotency_key="a")
        await broker.read("quiet", 0, 0)
        await ageless.append("kept", b"1", idempotency_key="a")
        with raw(valkey) as client:
            hours = {key: round(int(client.pttl(key)) / 3_600_000, 2) for key in client.scan_iter()}
        assert hours == {
            "livepush:log:{news}": 1.0,
            "livepush:log:{news}:head": 2.0,
            "livepush:log:{news}:key:a": 1.0,
            "livepush:log:{quiet}:head": 0.03,
            "livepush:log:{kept}": 0.0,
            "livepush:log:{kept}:head": 0.0,
            "livepush:log:{kept}:key:a": 24.0,
        }


# --- the keys ---------------------------------------------------------------------------------------------


async def test_a_log_of_an_earlier_version_begins_anew_in_another_epoch(valkey: ValkeyProcess) -> None:
    async with broker_on(valkey) as broker:
        for channel in ("added to", "read"):
            await fill(broker, channel, numbered(1, 3))
            with raw(valkey) as client:
                run = client.info("replication")["master_replid"]
                key = f"livepush:log:{{{channel}}}"
                client.set(f"{key}:head", f"abcdefgh 3 3 0 1764000000000 {run} ")
        position = await broker.append("added to", b"1")
        assert (position.offset, position.epoch != "abcdefgh") == (1, True)
        assert await broker.read("added to", 0, 9) == Page(position.epoch, 1, 1, records(1, 1))
        page = await broker.read("read", 0, 9)
        assert (page.first, page.last, page.epoch != "abcdefgh") == (1, 0, True)


async def test_no_two_channels_meet_and_the_keys_of_one_are_together(valkey: ValkeyProcess) -> None:
    names = ["", "%", "%25", "{", "}", "{}", "a", "{a}", "a{b}c", "a%7Bb%7Dc", "b", "{a", "a}", "a:head", "é"]
    async with broker_on(valkey) as broker:
        for name in names:
            assert (await broker.append(name, name.encode(), idempotency_key="}{x")).offset == 1
        for name in names:
            assert (await broker.read(name, 0, 10)).records == (Record(1, name.encode()),)
        with raw(valkey) as client:
            keys = [str(key) for key in client.scan_iter()]
        assert len(keys) == 3 * len(names)
        for key in keys:
            assert key_slot(key.encode()) == key_slot(key[key.index("{") : key.index("}") + 1].encode())


async def test_half_of_a_log_that_the_server_evicted_is_never_taken_for_the_whole(
    valkey: ValkeyProcess,
) -> None:
    async with broker_on(valkey) as broker:
        (epoch,) = {position.epoch for position in await fill(broker, "news", numbered(1, 5))}
        with raw(valkey) as client:
            client.delete("livepush:log:{news}")
            assert await broker.read("news", 0, 10) == Page(epoch, 6, 5, ())
            assert await broker.append("news", b"6") == Position(epoch, 6)
            assert await broker.read("news", 0, 10) == Page(epoch, 6, 6, records(6, 6))
            client.delete("livepush:log:{news}:head")
            position = await broker.append("news", b"1")
            assert position.epoch != epoch
            assert await broker.read("news", 0, 10) == Page(position.epoch, 1, 1, records(1, 1))


# --- once, and after what ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("channel", "key"), [("news", "\ud800"), ("\ud800", None)])
async def test_what_cannot_be_written_is_refused_and_nobody_else_hears_of_it(
    valkey: ValkeyProcess, channel: str, key: str | None
) -> None:
    async with broker_on(valkey) as broker:
        first, refused, second = await asyncio.gather(
            broker.append("news", b"1"),
            broker.append(channel, b"x", idempotency_key=key),
            broker.append("news", b"2"),
            return_exceptions=True,
        )
        assert isinstance(refused, UnicodeError)
        assert isinstance(first, Position)
        assert second == first.at(2)
        assert await broker.append("news", b"3") == first.at(3)


async def test_an_idempotency_key_is_one_event(valkey: ValkeyProcess) -> None:
    async with broker_on(valkey, History(events=2)) as broker:
        _, transcript = await transcript_of(broker, "news")
        first = await broker.append("news", b"1", idempotency_key="a")
        assert await broker.append("news", b"again", idempotency_key="a") == first
        together = [broker.append("news", str(n).encode(), idempotency_key="b") for n in range(20)]
        assert set(await asyncio.gather(*together)) == {Position(first.epoch, 2)}
        await fill(broker, "news", [b"3", b"4", b"5"])
        # The event is gone from the log. That it was is remembered.
        assert await broker.append("news", b"again", idempotency_key="a") == first
        assert (await broker.append("other", b"1", idempotency_key="a")).epoch != first.epoch
        await until(lambda: len(transcript.heard) == 5)
        assert transcript.heard == [
            positioned(Position(first.epoch, n), payload)
            for n, payload in enumerate([b"1", b"0", b"3", b"4", b"5"], 1)
        ]


async def test_an_event_may_be_appended_after_a_certain_one_only(valkey: ValkeyProcess) -> None:
    async with broker_on(valkey) as broker:
        begin = Position("any", 0)
        first = await broker.append("news", b"1", expected_position=begin)
        second = await broker.append("news", b"2", expected_position=first)
        for wrong in (begin, first, Position("any", 2), Position(second.epoch, 3)):
            with pytest.raises(PositionConflictError) as raised:
                await broker.append("news", b"x", expected_position=wrong)
            assert raised.value.last == second
        attempts = [broker.append("news", b"3", expected_position=second) for _ in range(10)]
        outcomes = await asyncio.gather(*attempts, return_exceptions=True)
        assert [isinstance(outcome, Position) for outcome in outcomes] == [True] + [False] * 9
        assert (await broker.read("news", 0, 9)).records == records(1, 3)


async def test_an_append_that_is_cancelled_in_time_is_not_made(own_valkey: ValkeyProcess) -> None:
    async with broker_on(own_valkey) as broker:
        await broker.append("news", b"1")
        own_valkey.pause()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(broker.append, "news", b"2")
            await anyio.wait_all_tasks_blocked()
            # What is asked for in one turn of the event loop leaves together. This is another one.
            await anyio.lowlevel.checkpoint()
            with anyio.CancelScope() as scope:
                tasks.start_soon(broker.append, "news", b"3")
                scope.cancel()
                await broker.append("news", b"never")
            await anyio.wait_all_tasks_blocked()
            own_valkey.resume()
        assert (await broker.read("news", 0, 9)).records == records(1, 3)


# --- the server loses something ---------------------------------------------------------------------------


async def test_a_log_that_is_lost_begins_anew_in_another_epoch(own_valkey: ValkeyProcess) -> None:
    async with broker_on(own_valkey) as broker:
        old = (await fill(broker, "news", numbered(1, 5)))[-1]
        with raw(own_valkey) as client:
            client.flushall()
        page = await broker.read("news", 0, 10)
        assert (page.first, page.last, page.locate(old)) == (1, 0, None)
        assert await broker.append("news", b"1") == Position(page.epoch, 1)
        own_valkey.kill()
        await restart(own_valkey)
        position = await broker.append("news", b"1")
        assert position.offset == 1
        assert position.epoch not in (old.epoch, page.epoch)


@pytest.mark.parametrize("fsync", ["always", "everysec", "no"])
async def test_a_killed_server_with_persistence_loses_nothing_in_silence(tmp_path: Path, fsync: str) -> None:
    with ValkeyProcess(tmp_path, persistent=True) as server:
        async with broker_on(server) as broker:
            with raw(server) as client:
                client.config_set("appendfsync", fsync)
            seen = await fill(broker, "news", numbered(1, 200))
            server.kill()
            await restart(server)
            kept = (await broker.read("news", 0, 0)).last
            after = await fill(broker, "news", numbered(kept + 1, kept + 10))
            assert not set(after) & set(seen)
            page = await broker.read("news", 0, 1000)
            assert page.records == records(1, kept + 10)
            assert [page.locate(position) is not None for position in seen] == [
                position.offset <= kept for position in seen
            ]
            if fsync == "always":
                assert kept == 200


async def test_a_server_that_lost_the_end_of_a_log_goes_on_in_another_epoch(tmp_path: Path) -> None:
    """As after a power cut: what was not written to the disk yet is gone, and the rest is there."""
    with ValkeyProcess(tmp_path, persistent=True) as server:
        async with broker_on(server) as broker:
            before = await fill(broker, "news", numbered(1, 5))
            await broker.read("quiet", 0, 0)
            written = append_only_file(tmp_path)
            on_disk = written.stat().st_size
            gone = await fill(broker, "news", numbered(6, 9)) + await fill(broker, "quiet", [b"1", b"2"])
            server.kill()
            with written.open("r+b") as file:
                file.truncate(on_disk)
            await restart(server)
            # Nobody was told yet where the old epoch ends. But then there is nothing beyond it either.
            page = await broker.read("news", 0, 10)
            assert (page.epoch, page.last, page.locate(gone[3])) == (before[0].epoch, 5, None)
            with pytest.raises(PositionConflictError):
                await broker.append("news", b"x", expected_position=gone[3])
            again = [await broker.append("news", b"6", expected_position=before[4])]
            again += await fill(broker, "news", numbered(7, 12))
            again += await fill(broker, "quiet", [b"a", b"b", b"c"])
            assert not set(again) & set(gone)
            page = await broker.read("news", 0, 100)
            assert page == Page(again[0].epoch, 1, 12, records(1, 12), (before[4],))
            assert [page.locate(p) for p in before] == [Position(page.epoch, n) for n in range(1, 6)]
            assert [page.locate(p) for p in gone[:4]] == [None] * 4
            quiet = await broker.read("quiet", 0, 100)
            assert [quiet.locate(p) for p in gone[4:]] == [None] * 2


@pytest.mark.parametrize("saved", [True, False])
async def test_a_killed_server_without_an_append_only_file_says_that_events_may_be_missing(
    tmp_path: Path, saved: bool
) -> None:
    with ValkeyProcess(tmp_path) as server, raw(server) as client:
        async with broker_on(server) as broker:
            kept = await fill(broker, "news", numbered(1, 5))
            await broker.read("quiet", 0, 0)
            if saved:
                client.save()
            lost = await fill(broker, "news", numbered(6, 9))
            server.kill()
            await restart(server)
            page = await broker.read("news", 0, 10)
            assert [page.locate(position) for position in (*kept, *lost)] == [None] * 9
            if saved:
                assert page == Page(page.epoch, 1, 5, records(1, 5), (kept[-1],), (kept[-1].epoch,))
                part = page.seen_from(kept[2])
                assert (part.epoch, part.last) == (kept[-1].epoch, 5)
                quiet = await broker.read("quiet", 0, 10)
                assert [ancestor.offset for ancestor in quiet.ancestors] == [0]
            else:
                assert page == Page(page.epoch, 1, 0, ())
            assert (await broker.append("news", b"next")).epoch == page.epoch


async def test_an_append_may_be_the_first_to_find_that_a_server_was_started_again(tmp_path: Path) -> None:
    with ValkeyProcess(tmp_path) as server, raw(server) as client:
        async with broker_on(server) as broker:
            kept = await fill(broker, "news", numbered(1, 5))
            client.save()
            server.kill()
            await restart(server)
            again = await broker.append("news", b"6", expected_position=kept[-1])
            page = await broker.read("news", 0, 10)
            assert page == Page(again.epoch, 1, 6, records(1, 6), (kept[-1],), (kept[-1].epoch,))


async def test_a_client_that_leaves_at_once_is_told_later_that_the_server_had_lost_events(
    tmp_path: Path,
) -> None:
    with ValkeyProcess(tmp_path) as server, raw(server) as client:
        async with broker_on(server) as broker:
            await fill(broker, "news", numbered(1, 3))
            client.save()
            await fill(broker, "news", numbered(4, 5))
            server.kill()
            await restart(server)
            push = LivePush(broker, lambda request: Grant(channels="news", replay="all"))
            async with push.lifespan(), Client(push) as browser:
                last_id = None
                for _ in range(2):
                    async with browser.open("/", last_event_id=last_id) as stream:
                        last_id = (await stream.next_event(name="livepush.open")).id
                async with browser.open("/", last_event_id=last_id) as stream:
                    assert [event.data for event in await stream.events(3)] == ["1", "2", "3"]
                    told = await stream.next_event(name="livepush.gap")
                    assert told.data == '{"channel":"news","reason":"epoch"}'


async def test_a_full_server_that_was_started_again_can_be_read(tmp_path: Path) -> None:
    with ValkeyProcess(tmp_path) as server, raw(server) as client:
        async with broker_on(server) as broker:
            kept = await fill(broker, "news", numbered(1, 5))
            client.save()
            server.kill()
            await restart(server)
            client.config_set("maxmemory", "1")
            page = await broker.read("news", 0, 10)
            assert (page.epoch, page.records) == (kept[0].epoch, records(1, 5))
            client.config_set("maxmemory", "0")
            page = await broker.read("news", 0, 10)
            assert (page.epoch != kept[0].epoch, page.doubtful) == (True, (kept[0].epoch,))


async def test_a_log_remembers_where_several_epochs_ended_and_not_too_many(tmp_path: Path) -> None:
    with ValkeyProcess(tmp_path, persistent=True) as server:
        async with broker_on(server) as broker:
            positions = []
            for number in range(1, 12):
                positions.append(await broker.append("news", str(number).encode()))
                server.kill()
                await restart(server)
            assert len({position.epoch for position in positions}) == 11
            page = await broker.read("news", 0, 100)
            assert page == Page(positions[-1].epoch, 1, 11, records(1, 11), tuple(positions[-2:1:-1]))
            places = [page.locate(position) for position in positions]
            assert places == [None] * 2 + [Position(page.epoch, n) for n in range(3, 12)]
            # An epoch that ended at 10 has no eleventh event.
            assert page.locate(Position(positions[-2].epoch, 11)) is None


async def test_a_replica_that_takes_over_goes_on_in_another_epoch(tmp_path: Path) -> None:
    with (
        ValkeyProcess(tmp_path / "1", "repl-diskless-sync-delay 0") as master,
        ValkeyProcess(tmp_path / "2", f"replicaof 127.0.0.1 {master.port}") as replica,
    ):
        async with broker_on(master) as before, broker_on(replica) as after:
            with raw(replica) as client:
                await until(lambda: client.info("replication")["master_link_status"] == "up")
                seen = await fill(before, "news", numbered(1, 5))
                await until(lambda: client.xlen("livepush:log:{news}") == 5)
                replica.pause()
                seen += await fill(before, "news", numbered(6, 9))
                master.kill()
                replica.resume()
                await until(lambda: client.info("replication")["master_link_status"] == "down")
                # What had left the master may still have arrived; this replica is sure to have missed it.
                client.replicaof("no", "one")
                kept = int(str(client.xlen("livepush:log:{news}")))
            again = await fill(after, "news", numbered(kept + 1, 12))
            assert not set(again) & set(seen)
            page = await after.read("news", 0, 100)
            assert page.records == records(1, 12)
            assert page.ancestors == (Position(seen[0].epoch, kept),)
            assert page.doubtful == (seen[0].epoch,)


async def test_a_master_that_is_replaced_and_comes_back_goes_on_in_another_epoch(tmp_path: Path) -> None:
    """No connection to it ends, and the head of the log names the time before."""
    options = ("repl-diskless-sync-delay 0",)
    with (
        ValkeyProcess(tmp_path / "1", *options) as master,
        ValkeyProcess(tmp_path / "2", *options, f"replicaof 127.0.0.1 {master.port}") as replica,
        raw(master) as first,
        raw(replica) as second,
    ):
        async with broker_on(master) as broker:
            await until(lambda: second.info("replication")["master_link_status"] == "up")
            kept = await fill(broker, "news", numbered(1, 5))
            await until(lambda: second.xlen("livepush:log:{news}") == 5)
            second.replicaof("no", "one")
            lost = await fill(broker, "news", numbered(6, 7))
            first.replicaof("127.0.0.1", str(replica.port))
            await until(lambda: first.info("replication").get("master_link_status") == "up")
            await until(lambda: first.xlen("livepush:log:{news}") == 5)
            first.replicaof("no", "one")
            again = await fill(broker, "news", numbered(6, 8))
            assert [position.offset for position in again] == [6, 7, 8]
            assert not set(again) & set(lost)
            page = await broker.read("news", 0, 100)
            assert page.records == records(1, 8)
            assert page.ancestors == (kept[-1],)
            assert page.doubtful == (kept[-1].epoch,)


async def test_a_repeated_append_after_the_loss_is_an_event_again(tmp_path: Path) -> None:
    """The key is stored with the event: neither is there without the other."""
    with ValkeyProcess(tmp_path, persistent=True) as server:
        async with broker_on(server) as broker:
            kept = await broker.append("news", b"1", idempotency_key="a")
            written = append_only_file(tmp_path)
            on_disk = written.stat().st_size
            lost = await broker.append("news", b"2", idempotency_key="b")
            server.kill()
            with written.open("r+b") as file:
                # In the midst of the last step, of which nothing counts then.
                file.truncate(on_disk + 50)
            await restart(server)
            assert await broker.append("news", b"1", idempotency_key="a") == kept
            again = await broker.append("news", b"2", idempotency_key="b")
            assert (again.offset, again.epoch != lost.epoch) == (2, True)
            assert (await broker.read("news", 0, 10)).records == records(1, 2)


# --- the server is away, or refuses -----------------------------------------------------------------------


async def test_without_a_server_all_raise_in_time(own_valkey: ValkeyProcess) -> None:
    async with own_valkey.client() as client:
        broker = RedisStreamsBroker(client, timeouts=BrokerTimeouts(publish=0.3, subscribe=0.3))
        position = await broker.append("news", b"1")
        assert broker.healthy
        own_valkey.pause()
        with anyio.fail_after(2):
            calls = [broker.append("news", b"x") for _ in range(1000)]
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} == {BrokerUnavailableError}
            with pytest.raises(BrokerUnavailableError, match=r"cannot read: .*no answer within 0\.3 s"):
                await broker.read("news", 0, 10)
        own_valkey.resume()
        own_valkey.kill()
        for call in (broker.append("news", b"x"), broker.publish("news", b"x"), broker.read("news", 0, 1)):
            with pytest.raises(BrokerUnavailableError, match="is it running"):
                await call
        await restart(own_valkey)
        assert (await broker.append("news", b"1")).epoch != position.epoch


async def test_a_lost_connection_is_a_loss_and_then_all_goes_on(valkey: ValkeyProcess) -> None:
    async with broker_on(valkey) as broker:
        _, transcript = await transcript_of(broker, "news")
        first = await broker.append("news", b"1")
        await until(lambda: len(transcript.heard) == 1)
        with raw(valkey) as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        await until(lambda: transcript.heard[-1] is None)
        second = await broker.append("news", b"2")
        await until(lambda: len(transcript.heard) == 3)
        assert transcript.heard == [positioned(first, b"1"), None, positioned(second, b"2")]


async def test_a_server_that_will_not_say_who_it_is_keeps_no_log(own_valkey: ValkeyProcess) -> None:
    with raw(own_valkey) as admin:
        admin.execute_command("ACL", "SETUSER", "web", "on", ">pw", "+@all", "-info", "~*", "&*")
        async with Redis.from_url(f"redis://web:pw@127.0.0.1:{own_valkey.port}") as client:
            broker = RedisStreamsBroker(client)
            with pytest.raises(BrokerUnavailableError, match="no permission for INFO"):
                await broker.append("news", b"1")
            admin.execute_command("ACL", "SETUSER", "web", "+info")
            assert (await broker.append("news", b"1")).offset == 1


async def test_a_server_that_will_not_say_whether_it_persists_is_named_when_it_was_started_again(
    tmp_path: Path,
) -> None:
    with ValkeyProcess(tmp_path, persistent=True) as server, raw(server) as admin:
        user = ["ACL", "SETUSER", "web", "on", ">pw", "+@all", "-info", "+info|replication", "~*", "&*"]
        admin.execute_command(*user)
        async with Redis.from_url(f"redis://web:pw@127.0.0.1:{server.port}") as client:
            broker = RedisStreamsBroker(client)
            assert (await broker.append("news", b"1")).offset == 1
            server.kill()
            await restart(server)
            admin.execute_command(*user)
            for call in (broker.append("news", b"2"), broker.read("news", 0, 1)):
                with pytest.raises(BrokerUnavailableError, match=r"no permission for INFO.*aof_enabled"):
                    await call
            admin.execute_command("ACL", "SETUSER", "web", "+info")
            assert (await broker.append("news", b"2")).offset == 2


# --- event loops and arguments ----------------------------------------------------------------------------


def test_one_broker_serves_one_event_loop_after_another(valkey: ValkeyProcess) -> None:
    client = valkey.client()
    broker = RedisStreamsBroker(client)

    async def use(number: int) -> bytes | None:
        subscription = await broker.subscribe("news")
        await broker.append("news", str(number).encode())
        received = await subscription.get_message(timeout=LONG)
        await client.aclose()
        return None if received is None else split_position(received)[1]

    assert [asyncio.run(use(number)) for number in range(3)] == [b"0", b"1", b"2"]


def test_when_the_event_loop_ends_nothing_is_left_open(valkey: ValkeyProcess) -> None:
    code = f"""
    import asyncio, gc
    from redis.asyncio import Redis
    from livepush_asgi import RedisStreamsBroker
    async def main():
        client = Redis.from_url({valkey.url!r})
        broker = RedisStreamsBroker(client)
        await broker.subscribe("news")
        waiting = [asyncio.ensure_future(broker.append("news", b"x")) for n in range(500)]
        for call in waiting:
            call.add_done_callback(lambda call: call.cancelled() or call.exception())
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        await client.aclose()
    asyncio.run(main())
    gc.collect()
    """
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code)]
    run = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(REPOSITORY)})
    assert (run.returncode, run.stderr) == (0, "")


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match=r"redis\.asyncio\.Redis"):
        RedisStreamsBroker(redis.Redis())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="key_prefix"):
        RedisStreamsBroker(Redis(), key_prefix="{app}:")


@pytest.mark.parametrize("protocol", [2, 3])
async def test_a_batch_is_one_message(valkey: ValkeyProcess, protocol: int) -> None:
    """A batch takes few bytes and one message; what looks like one and is malformed passes as it is."""
    async with valkey.client(protocol=protocol) as client, client.pubsub() as listening:
        broker = RedisStreamsBroker(client)
        await listening.subscribe("batch")
        subscription = await broker.subscribe("batch")
        first = await broker.append("batch", b"0")
        payloads = [b"", b"a\r\nb", bytes(range(256)), b"x" * 200_000, b"$5\r\nlast!\r\n"]
        last = await broker.append_batch("batch", payloads, expected_position=first)
        assert last == first.at(6)
        heard = [await subscription.get_message(timeout=LONG) for _ in range(6)]
        assert heard == [
            positioned(first.at(number), payload) for number, payload in enumerate([b"0", *payloads], 1)
        ]
        messages = [await listening.get_message(timeout=LONG) for _ in range(3)]
        assert [message["type"] for message in messages if message] == ["subscribe", "message", "message"]
        malformed = [
            BATCH_MARK,
            BATCH_MARK + b"x.1\n2\n",
            BATCH_MARK + b"a.1\n2,3\nabc",
            BATCH_MARK + b"a.1\n\n",
        ]
        for message in malformed:
            await client.publish("batch", message)
            assert await subscription.get_message(timeout=LONG) == message
        with pytest.raises(PositionConflictError):
            await broker.append_batch("batch", [b"1", b"2"], expected_position=first)
        # Of more than fit into one call it appends the first.
        many = await broker.append_batch("batch", [b"x" * 1000] * 1000, expected_position=last)
        assert 100 < many.offset - last.offset <= 200
        large = await broker.append_batch("batch", [b"x" * 200_000] * 3, expected_position=many)
        assert large == many.next()
