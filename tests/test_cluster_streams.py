"""Streams over a cluster of which a node is killed: 1,000 channels, real servers, real uvicorn.

The streams on that node go on with its replica. Nobody can know whether that has all that the node had
taken, so each of them is told of a gap where the replica took over; of what it has nobody misses anything.
The streams on the other nodes notice nothing.
"""

import asyncio
import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from redis.crc import key_slot

from livepush_asgi import BrokerTimeouts, LivePush, RedisStreamsBroker, Refusal
from livepush_asgi.testing import EventStreamParser
from livepush_asgi.wire.event import from_payload

from .serving import Serving, WireStream, uvicorn
from .valkey import until
from .valkey_cluster import SLOTS, ValkeyCluster, valkey_cluster

APP = "tests.apps.cluster:push"
CHANNELS = [f"channel-{number}" for number in range(1000)]
CHANNELS_OF_A_STREAM = 5
# Each channel gets the numbers from 1 to the end, and that when all is over. Some clients leave early.
LEAVING, END = 2, 9
# Each fifth client is away while the node is replaced.
AWAY = 5
# The node that goes is the one that everybody was told of: whoever comes back asks it first.
KILLED = 0
# What a step of it may take on a busy machine, in seconds.
LONG = 60.0

pytestmark = [pytest.mark.real_time, pytest.mark.slow]


def nobody(request: object) -> Refusal:
    return Refusal(404)


def node_of(channel: str) -> int:
    """Return the number of the master that has a channel as the cluster begins."""
    return sum(key_slot(channel.encode()) >= SLOTS * number // 3 for number in (1, 2))


ON_KILLED = [channel for channel in CHANNELS if node_of(channel) == KILLED]


class Follower:
    """A client on channels of one node, and what it heard: numbers, and None where it was told of a gap."""

    def __init__(self, server: Serving, channels: Sequence[str], *, leaves: bool) -> None:
        self._server = server
        self.channels = channels
        self.leaves = leaves
        self.heard: dict[str, list[int | None]] = {channel: [] for channel in channels}
        self.reasons: set[str] = set()
        self.resumed: list[bool] = []
        self._last_id = ""
        self._stream: WireStream | None = None

    @property
    def on_killed_node(self) -> bool:
        return node_of(self.channels[0]) == KILLED

    async def connect(self) -> None:
        query = "&".join(f"channel={channel}" for channel in self.channels)
        self._stream = await self._server.open(f"/?{query}", last_event_id=self._last_id)

    async def follow(self, last: int) -> None:
        """Read until each channel has come so far."""
        assert self._stream is not None
        while any(last not in heard for heard in self.heard.values()):
            event = await self._stream.next_event(anything=True, timeout=LONG)
            self._last_id = event.last_event_id or self._last_id
            self._take(event.event, json.loads(event.data))

    def cut(self) -> None:
        assert self._stream is not None
        self._stream.abort()

    def _take(self, name: str, data: object) -> None:
        match name, data:
            case "message", [str() as channel, int() as number]:
                self.heard[channel].append(number)
            case "livepush.gap", {"channel": str() as channel, "reason": str() as reason}:
                self.heard[channel].append(None)
                self.reasons.add(reason)
            case "livepush.open", {"resumed": bool() as resumed}:
                self.resumed.append(resumed)
            case _:
                raise AssertionError(f"{self.channels} heard {name} {data}")


async def followers(server: Serving) -> list[Follower]:
    """Return connected clients for all channels, each on one node."""
    made: list[Follower] = []
    for number in range(3):
        on_node = [channel for channel in CHANNELS if node_of(channel) == number]
        for start in range(0, len(on_node), CHANNELS_OF_A_STREAM):
            channels = on_node[start : start + CHANNELS_OF_A_STREAM]
            made.append(Follower(server, channels, leaves=len(made) % AWAY == 0))
    for follower in made:
        await follower.connect()
    return made


class Publishers:
    """One for each channel, which publishes numbers one after the other."""

    def __init__(self, cluster: ValkeyCluster) -> None:
        self._broker = RedisStreamsBroker(cluster.client(), timeouts=BrokerTimeouts(publish=20.0))
        self._push = LivePush(self._broker, nobody)
        #: How many events the node that is killed has taken, or its replica.
        self.taken = 0
        #: Lets the last event but one go. It is held back, so that the node is killed while it is written to.
        self.last_but_one = asyncio.Event()

    async def publish(self, numbers: Sequence[int]) -> None:
        await asyncio.gather(*(self._publish(channel, numbers) for channel in CHANNELS))

    async def _publish(self, channel: str, numbers: Sequence[int]) -> None:
        for number in numbers:
            if number == END - 1:
                await self.last_but_one.wait()
            key = f"{channel} {number}"
            await self._push.publish(channel, [channel, number], idempotency_key=key, retry_for=LONG)
            self.taken += node_of(channel) == KILLED

    async def kept(self, channel: str) -> list[int]:
        """Return what the log of a channel has."""
        page = await self._broker.read(channel, 0, 1000)
        parser = EventStreamParser()
        events = [event for record in page.records for event in parser.feed(from_payload(record.payload))]
        return [json.loads(event.data)[1] for event in events]


@contextlib.contextmanager
def cut_off(cluster: ValkeyCluster, number: int) -> Iterator[None]:
    """Let the replica of a node get nothing of what the node takes inside the block."""
    cluster.nodes[number + 3].pause()
    cluster.ask(number, "CLIENT", "KILL", "TYPE", "REPLICA")
    yield
    cluster.nodes[number + 3].resume()


async def kill(cluster: ValkeyCluster, publishers: Publishers, witness: Follower | None) -> None:
    """Kill the node while it is written to; with a witness, when that has heard what no other node has."""
    half = len(ON_KILLED) * (END + LEAVING) // 2
    await until(lambda: publishers.taken > half, within=LONG)
    if witness is None:
        publishers.last_but_one.set()
        cluster.nodes[KILLED].kill()
        return
    with cut_off(cluster, KILLED):
        with cluster.admin(KILLED) as admin:
            had = {channel: admin.xlen(f"livepush:log:{{{channel}}}") for channel in witness.channels}
        publishers.last_but_one.set()
        await until(lambda: any(had[name] + 1 in heard for name, heard in witness.heard.items()), within=LONG)
        cluster.nodes[KILLED].kill()


async def story(
    cluster: ValkeyCluster, publishers: Publishers, clients: Sequence[Follower], *, replica_lags: bool
) -> None:
    """Publish to all channels and kill the node meanwhile. Some clients are away from before until after."""
    leaving = [client for client in clients if client.leaves]
    staying = [client for client in clients if not client.leaves]
    witness = next(client for client in staying if client.on_killed_node) if replica_lags else None
    await publishers.publish(range(1, LEAVING + 1))
    for client in leaving:
        await client.follow(LEAVING)
        client.cut()
    async with asyncio.TaskGroup() as tasks:
        for client in staying:
            tasks.create_task(client.follow(END))
        killing = tasks.create_task(kill(cluster, publishers, witness))
        await publishers.publish(range(LEAVING + 1, END))
        await killing
        # Only the replica can take this.
        await publishers.publish([END])
    for client in leaving:
        await client.connect()
        await client.follow(END)


@pytest.mark.parametrize("replica_lags", [False, True])
async def test_a_killed_node_is_replaced_and_its_streams_go_on_or_are_told(
    replica_lags: bool, tmp_path: Path
) -> None:
    with valkey_cluster(tmp_path / "cluster", replicas=True) as cluster:
        await cluster.gather()
        environment = {"CLUSTER_PORT": str(cluster.nodes[KILLED].port)}
        async with uvicorn(APP, tmp_path / "log", environment=environment) as server:
            clients, publishers = await followers(server), Publishers(cluster)
            await story(cluster, publishers, clients, replica_lags=replica_lags)
            logs = {channel: await publishers.kept(channel) for channel in CHANNELS}
        assert "Traceback" not in server.log
    for client in clients:
        check(client, logs)
    lost = [channel for channel in ON_KILLED if logs[channel] != list(range(1, END + 1))]
    assert bool(lost) is replica_lags


def check(client: Follower, logs: Mapping[str, list[int]]) -> None:
    """Hold what a client heard against the logs as they are in the end."""
    for channel, heard in client.heard.items():
        kept = logs[channel]
        assert kept == sorted(set(kept))
        if client.on_killed_node:
            assert is_told(heard, kept), f"{channel} heard {heard} kept {kept}"
        else:
            assert heard == kept == list(range(1, END + 1)), channel
    told = client.on_killed_node
    assert client.reasons == ({"epoch"} if told else set())
    assert client.resumed == ([False, not told] if client.leaves else [False])


def is_told(heard: Sequence[int | None], kept: Sequence[int]) -> bool:
    """Whether a gap stands where the replica took over, and all the rest is as it is in the log.

    Before the gap may be what the client had heard and the log has no more. It is told of that as soon as
    that is seen, and of the rest, in the same place, when the log goes on.
    """
    if None not in heard:
        return False
    told = heard.index(None)
    before, after = heard[:told], heard[told + 1 :]
    if told > 0 and before[-1] not in kept and after[:1] == [None]:
        after = after[1:]
    shared = len(kept) - len(after)
    return told >= shared and [*before[:shared], *after] == kept
