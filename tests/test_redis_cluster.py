"""RedisStreamsBroker on a cluster of real servers: failover, resharding, nodes that stand still."""

import asyncio
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path

import anyio
import psutil
import pytest
from redis.asyncio import RedisCluster
from redis.crc import key_slot

from livepush_asgi import BrokerTimeouts, BrokerUnavailableError, RedisStreamsBroker
from livepush_asgi.brokers import HistoryBroker, Page, Record
from livepush_asgi.brokers.history import History
from livepush_asgi.testing import HistoryBrokerContract
from livepush_asgi.wire.cursor import Position
from livepush_asgi.wire.event import positioned, split_position

from .relay import Relay
from .serving import REPOSITORY
from .subscriptions import LONG, Transcript, transcript_of
from .valkey import ValkeyProcess, until
from .valkey_cluster import ValkeyCluster, valkey_cluster

pytestmark = pytest.mark.real_time


class TestRedisStreamsBrokerOnACluster(HistoryBrokerContract):
    @pytest.fixture
    def broker(self, cluster: ValkeyCluster) -> HistoryBroker:
        return RedisStreamsBroker(cluster.client())

    @pytest.fixture
    def bounded_broker(self, cluster: ValkeyCluster) -> HistoryBroker:
        return RedisStreamsBroker(cluster.client(), history=History(events=10))


def shard_channels_on(cluster: ValkeyCluster, number: int) -> set[str]:
    channels = cluster.ask(number, "PUBSUB", "SHARDCHANNELS")
    assert isinstance(channels, list)
    return set(channels)


@pytest.mark.parametrize("decode_responses", [False, True])
@pytest.mark.parametrize("protocol", [2, 3])
async def test_what_is_appended_is_delivered_and_read(
    cluster: ValkeyCluster, protocol: int, decode_responses: bool
) -> None:
    client = cluster.client(protocol=protocol, decode_responses=decode_responses)
    broker = RedisStreamsBroker(client)
    names = ["", "%", "{", "}", "{}", "{a}", "a{b}c", "é", *(f"channel {number}" for number in range(92))]
    transcripts = {name: (await transcript_of(broker, name))[1] for name in names}
    expected: dict[str, list[bytes | None]] = {name: [] for name in names}
    for number in range(1, 4):
        for name in names:
            payload = f"{name} {number}".encode()
            position = await broker.append(name, payload)
            assert position.offset == number
            expected[name].append(positioned(position, payload))
    await until(lambda: {name: t.heard for name, t in transcripts.items()} == expected)
    assert broker.healthy
    for name in names:
        page = await broker.read(name, 1, 1)
        assert (page.first, page.last, page.records) == (1, 3, (Record(2, f"{name} 2".encode()),))
    on_nodes = [shard_channels_on(cluster, number) for number in range(3)]
    assert [len(channels) > 10 for channels in on_nodes] == [True] * 3
    assert sum(map(len, on_nodes)) == len(names)


async def test_there_is_one_connection_to_listen_and_one_to_publish_for_each_node(
    cluster: ValkeyCluster,
) -> None:
    def connections() -> list[int]:
        found = []
        for number in range(3):
            with cluster.admin(number) as admin:
                found.append(int(admin.info("clients")["connected_clients"]) - 1)
        return found

    before = connections()
    broker = RedisStreamsBroker(cluster.client())
    subscriptions = await asyncio.gather(*(broker.subscribe(f"channel {n}") for n in range(300)))
    assert await asyncio.gather(*(broker.publish(f"channel {n}", "x") for n in range(300))) == [1] * 300
    assert [after - past for after, past in zip(connections(), before, strict=True)] == [2, 2, 2]
    for subscription in subscriptions:
        await subscription.close()
    await until(
        lambda: [after - past for after, past in zip(connections(), before, strict=True)] == [1, 1, 1]
    )


async def test_what_another_program_publishes_arrives_as_it_is(cluster: ValkeyCluster) -> None:
    broker = RedisStreamsBroker(cluster.client())
    subscription = await broker.subscribe("news")
    cluster.ask(cluster.owner_of(key_slot(b"news")), "SPUBLISH", "news", "from redis-cli")
    assert await subscription.get_message(timeout=LONG) == b"from redis-cli"
    await subscription.close()


@pytest.mark.parametrize("append_only", ["yes", "no"])
async def test_a_channel_is_followed_to_the_node_that_gets_its_slot(
    cluster: ValkeyCluster, append_only: str
) -> None:
    for node in range(3):
        cluster.ask(node, "CONFIG", "SET", "appendonly", append_only)
    slot = key_slot(b"news")
    home = cluster.owner_of(slot)
    away = (home + 1) % 3
    broker, other = RedisStreamsBroker(cluster.client()), RedisStreamsBroker(cluster.client())
    _, transcript = await transcript_of(broker, "news")
    _, bystander = await transcript_of(broker, "else")
    first = await broker.append("news", b"1", idempotency_key="a")
    await other.append("news", b"2")
    for target in (away, home):
        cluster.move_slot(slot, target)
        await until(partial(listens, cluster, target))
        await until(lambda: broker.healthy)
        assert await broker.append("news", b"again", idempotency_key="a") == first
        await other.append("news", b"x")
    page = await broker.read("news", 0, 10)
    assert [record.payload for record in page.records] == [b"1", b"2", b"x", b"x"]
    # Without the file a node cannot know whether the one before it was started again meanwhile.
    known = append_only == "yes"
    assert [page.locate(Position(first.epoch, n)) for n in (1, 2)] == [
        Position(page.epoch, n) if known else None for n in (1, 2)
    ]
    await until(lambda: offsets_in(transcript)[-1] == 4)
    assert offsets_in(transcript) == [1, 2, None, 3, None, 4]
    assert bystander.heard == []


def listens(cluster: ValkeyCluster, number: int) -> bool:
    return "news" in shard_channels_on(cluster, number)


def offsets_in(transcript: Transcript) -> list[int | None]:
    """What was heard, with losses that follow each other as one."""
    heard: list[int | None] = []
    for payload in transcript.heard:
        position = None if payload is None else split_position(payload)[0]
        offset = None if position is None else position.offset
        if offset is not None or heard[-1:] != [None]:
            heard.append(offset)
    return heard


@pytest.mark.slow
async def test_a_killed_node_is_replaced_by_its_replica(tmp_path: Path) -> None:
    channels = [f"channel {number}" for number in range(60)]
    with valkey_cluster(tmp_path, replicas=True) as cluster:
        await cluster.gather()
        broker = RedisStreamsBroker(cluster.client(), timeouts=BrokerTimeouts(publish=20.0))
        other = RedisStreamsBroker(cluster.client(), timeouts=BrokerTimeouts(publish=20.0))
        transcripts = {channel: (await transcript_of(broker, channel))[1] for channel in channels}
        acknowledged: dict[str, list[Position]] = {channel: [] for channel in channels}

        async def publish(channel: str) -> None:
            for number in range(1, 101):
                acknowledged[channel].append(await other.append(channel, str(number).encode()))
                if number == 30:
                    halfway.release()
                    await killed.wait()

        halfway, killed = asyncio.Semaphore(0), asyncio.Event()
        async with anyio.create_task_group() as tasks:
            for channel in channels:
                tasks.start_soon(publish, channel)
            for _ in channels:
                await halfway.acquire()
            # Everybody writes, while the node goes.
            killed.set()
            cluster.nodes[1].kill()
            await until(lambda: broker.faults)
            for fault in broker.faults:
                assert 5461 <= key_slot(fault.channel.encode()) < 10922, fault
                assert 0 < fault.channels < len(channels)
        await until(lambda: broker.healthy, within=20)
        assert broker.faults == ()
        moved = {channel for channel in channels if 5461 <= key_slot(channel.encode()) < 10922}
        assert len(moved) > 10
        for channel in channels:
            page = await broker.read(channel, 0, 1000)
            heard = offsets_in(transcripts[channel])
            if channel not in moved:
                assert [record.payload for record in page.records] == [b"%d" % n for n in range(1, 101)]
                assert heard == list(range(1, 101))
                continue
            # Each publisher wrote one after the other, so what is there is in order, each once. What the
            # replica never got is missing, and nobody can take it for something else.
            numbers = [int(record.payload) for record in page.records]
            assert numbers == sorted(set(numbers))
            assert None in heard
            for position, number in zip(acknowledged[channel], range(1, 101), strict=True):
                place = page.locate(position)
                assert place is None or page.records[place.offset - 1].payload == b"%d" % number
            assert page.locate(acknowledged[channel][-1]) is not None
            last = await broker.append(channel, b"end")
            await until(partial(ends_with, transcripts[channel], positioned(last, b"end")))


def ends_with(transcript: Transcript, payload: bytes) -> bool:
    return transcript.heard[-1:] == [payload]


@pytest.mark.slow
async def test_a_node_that_stands_still_is_replaced_and_no_event_is_doubled(tmp_path: Path) -> None:
    with valkey_cluster(tmp_path, replicas=True) as cluster:
        await cluster.gather()
        slot = key_slot(b"news")
        home = cluster.owner_of(slot)
        broker = RedisStreamsBroker(
            cluster.client(), timeouts=BrokerTimeouts(publish=20.0, ping_interval=0.3, ping=0.3)
        )
        _, transcript = await transcript_of(broker, "news")
        before = [await broker.append("news", b"%d" % number) for number in range(1, 6)]
        with cluster.admin(home + 3) as replica:
            replica.readonly()
            await until(lambda: replica.xlen("livepush:log:{news}") == 5)
        cluster.nodes[home].pause()
        # The first of these has left for the node that stands still, and is asked for again elsewhere.
        after = [await broker.append("news", b"%d" % number) for number in range(6, 11)]
        await until(lambda: broker.healthy, within=20)
        assert cluster.owner_of(slot, seen_by=(home + 1) % 3) == home + 3
        cluster.nodes[home].resume()
        await until(lambda: cluster.owner_of(slot, seen_by=home) == home + 3, within=20)
        last = await broker.append("news", b"11")
        await until(lambda: transcript.heard[-1] == positioned(last, b"11"))
        assert await broker.read("news", 0, 100) == Page(
            last.epoch,
            1,
            11,
            tuple(Record(n, b"%d" % n) for n in range(1, 12)),
            (before[-1],),
            (before[-1].epoch,),
        )
        assert after[-1].epoch == last.epoch != before[0].epoch


async def test_a_call_that_is_repeated_because_nobody_answered_is_one_event(cluster: ValkeyCluster) -> None:
    home = cluster.owner_of(key_slot(b"news"))
    broker = RedisStreamsBroker(cluster.client(), timeouts=BrokerTimeouts(publish=2.0))
    first = await broker.append("news", b"1")
    _, transcript = await transcript_of(broker, "news")
    before = connections_to(cluster.nodes[home])
    cluster.nodes[home].pause()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(broker.append, "news", b"2")
        # Both the call and its repetition are on their way when the node goes on.
        await until(lambda: connections_to(cluster.nodes[home]) - before)
        cluster.nodes[home].resume()
    third = await broker.append("news", b"3")
    await until(lambda: offsets_in(transcript)[-1:] == [3])
    assert [offset for offset in offsets_in(transcript) if offset] == [2, 3]
    page = await broker.read("news", 0, 10)
    assert page.records == tuple(Record(n, b"%d" % n) for n in (1, 2, 3))
    assert third == Position(first.epoch, 3)


def connections_to(server: ValkeyProcess) -> set[int]:
    """Return the ports from which this process is connected to a server."""
    return {
        found.laddr.port
        for found in psutil.Process().net_connections("tcp4")
        if found.raddr and found.raddr.port == server.port and found.status == psutil.CONN_ESTABLISHED
    }


async def test_a_call_whose_answers_are_all_lost_is_one_event(cluster: ValkeyCluster) -> None:
    home = cluster.nodes[cluster.owner_of(key_slot(b"news"))]
    relay = Relay(home.port, cut_after=b"cut me")
    client = RedisCluster(
        host="127.0.0.1",
        port=cluster.nodes[0].port,
        address_remap=lambda at: ("127.0.0.1", relay.port) if at[1] == home.port else at,
    )
    async with anyio.create_task_group() as tasks:
        await tasks.start(relay.serve)
        broker = RedisStreamsBroker(client, timeouts=BrokerTimeouts(publish=1.0))
        await broker.append("news", b"1")
        with pytest.raises(BrokerUnavailableError, match="Connection closed by server"):
            await broker.append("news", b"cut me")
        await broker.append("news", b"3")
        page = await broker.read("news", 0, 10)
        assert [record.payload for record in page.records] == [b"1", b"cut me", b"3"]
        tasks.cancel_scope.cancel()


async def test_without_a_cluster_all_raise_in_time(tmp_path: Path) -> None:
    server = ValkeyProcess(tmp_path)
    client = RedisCluster(host="127.0.0.1", port=server.port)
    broker = RedisStreamsBroker(client, timeouts=BrokerTimeouts(subscribe=1.0, publish=1.0))
    for call in (broker.subscribe("news"), broker.append("news", b"x"), broker.read("news", 0, 1)):
        with (
            anyio.fail_after(3),
            pytest.raises(BrokerUnavailableError, match=f"{server.port}.*is it running"),
        ):
            await call
    assert broker.healthy
    with server:
        for call in (broker.subscribe("news"), broker.append("news", b"x"), broker.read("news", 0, 1)):
            with pytest.raises(BrokerUnavailableError, match="cluster support disabled"):
                await call


async def test_a_channel_that_a_node_refuses_raises_at_once_and_says_what_to_allow(
    cluster: ValkeyCluster,
) -> None:
    for number in range(3):
        cluster.ask(number, "ACL", "SETUSER", "web", "on", ">word", "+@all", "~*", "resetchannels", "&open")
    client = RedisCluster(host="127.0.0.1", port=cluster.nodes[0].port, username="web", password="word")
    broker = RedisStreamsBroker(client, timeouts=BrokerTimeouts(subscribe=60.0))
    with anyio.fail_after(LONG), pytest.raises(BrokerUnavailableError, match="ACL SETUSER web &secret"):
        await broker.subscribe("secret")
    subscription = await broker.subscribe("open")
    assert broker.healthy
    await subscription.close()


def test_one_broker_serves_one_event_loop_after_another_and_leaves_nothing_open(
    cluster: ValkeyCluster,
) -> None:
    code = f"""
    import asyncio, gc
    from redis.asyncio import RedisCluster
    from livepush_asgi import RedisStreamsBroker
    from livepush_asgi.wire.event import split_position
    broker = RedisStreamsBroker(RedisCluster(host="127.0.0.1", port={cluster.nodes[0].port}))
    async def use(number):
        subscriptions = [await broker.subscribe(f"channel {{n}}") for n in range(20)]
        await asyncio.gather(*(broker.publish(f"channel {{n}}", str(number)) for n in range(20)))
        received = [await subscription.get_message(timeout=5) for subscription in subscriptions]
        return {{split_position(payload)[1] for payload in received}}
    for number in range(3):
        print(asyncio.run(use(number)))
        gc.collect()
    """
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code)]
    run = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(REPOSITORY)})
    assert (run.stdout.split(), run.stderr) == (["{b'0'}", "{b'1'}", "{b'2'}"], "")
