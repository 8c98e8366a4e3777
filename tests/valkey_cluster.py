"""A Redis Cluster of real servers: three masters, and a replica of each if wanted."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import redis
from redis.asyncio import RedisCluster

from .server_process import free_port
from .valkey import ValkeyProcess, until

SLOTS = 16384
# A node that is silent for so long has failed, in milliseconds.
NODE_TIMEOUT = 1000


class ValkeyCluster:
    """The nodes. The first three are the masters, each with a third of the slots; replicas follow."""

    def __init__(self, directory: Path, *, replicas: bool) -> None:
        count = 6 if replicas else 3
        self.buses = [free_port() for _ in range(count)]
        self.nodes = [
            ValkeyProcess(
                directory / str(number),
                "cluster-enabled yes",
                f"cluster-port {bus}",
                f"cluster-node-timeout {NODE_TIMEOUT}",
                "cluster-replica-validity-factor 0",
                "repl-diskless-sync-delay 0",
            )
            for number, bus in enumerate(self.buses)
        ]

    def client(self, *, protocol: int = 3, decode_responses: bool = False) -> RedisCluster:
        """Return a client that knows one node."""
        return RedisCluster(
            host="127.0.0.1", port=self.nodes[0].port, protocol=protocol, decode_responses=decode_responses
        )

    def admin(self, number: int) -> redis.Redis:
        """Return a client of one node, which the caller closes."""
        return redis.Redis.from_url(self.nodes[number].url, decode_responses=True)

    def ask(self, number: int, *command: str | int) -> object:
        """Send one node a command."""
        with self.admin(number) as client:
            answer: object = client.execute_command(*command)
            return answer

    def id_of(self, number: int) -> str:
        """Return the name by which the nodes know one of them."""
        return str(self.ask(number, "CLUSTER MYID"))

    def owner_of(self, slot: int, *, seen_by: int = 0) -> int:
        """Return the number of the node that has a slot, as one node sees it."""
        ranges = self.ask(seen_by, "CLUSTER SLOTS")
        assert isinstance(ranges, list)
        (port,) = [owner[1] for first, last, owner, *_ in ranges if first <= slot <= last]
        return [node.port for node in self.nodes].index(port)

    def move_slot(self, slot: int, target: int) -> None:
        """Move a slot with all that is in it, as a resharding does: key by key, and then its owner."""
        source = self.owner_of(slot)
        self.ask(target, "CLUSTER SETSLOT", slot, "IMPORTING", self.id_of(source))
        self.ask(source, "CLUSTER SETSLOT", slot, "MIGRATING", self.id_of(target))
        keys = self.ask(source, "CLUSTER GETKEYSINSLOT", slot, 1000)
        assert isinstance(keys, list)
        for key in keys:
            self.ask(source, "MIGRATE", "127.0.0.1", self.nodes[target].port, key, 0, 5000)
        for number in (target, source):
            self.ask(number, "CLUSTER SETSLOT", slot, "NODE", self.id_of(target))

    async def gather(self) -> None:
        """Make a cluster of the servers, and wait until all of them agree that all is well."""
        for number in range(3):
            first, last = SLOTS * number // 3, SLOTS * (number + 1) // 3 - 1
            self.ask(number, "CLUSTER ADDSLOTSRANGE", first, last)
            self.ask(number, "CLUSTER SET-CONFIG-EPOCH", number + 1)
        for other, bus in zip(self.nodes[1:], self.buses[1:], strict=True):
            self.ask(0, "CLUSTER MEET", "127.0.0.1", other.port, bus)
        await until(lambda: all(map(self._knows_all, range(len(self.nodes)))), within=20)
        for number in range(3, len(self.nodes)):
            self.ask(number, "CLUSTER REPLICATE", self.id_of(number - 3))
        await until(lambda: all(map(self._is_well, range(len(self.nodes)))), within=20)

    def _knows_all(self, number: int) -> bool:
        nodes = self.ask(number, "CLUSTER NODES")
        assert isinstance(nodes, dict)
        known = [node for node in nodes.values() if "handshake" not in node["flags"]]
        return len(known) == len(self.nodes)

    def _is_well(self, number: int) -> bool:
        with self.admin(number) as client:
            if client.cluster("INFO")["cluster_state"] != "ok":
                return False
            return number < 3 or client.info("replication").get("master_link_status") == "up"


@contextlib.contextmanager
def valkey_cluster(directory: Path, *, replicas: bool = False) -> Iterator[ValkeyCluster]:
    """Run the servers inside the block; `gather` makes a cluster of them."""
    cluster = ValkeyCluster(directory, replicas=replicas)
    with contextlib.ExitStack() as running:
        for node in cluster.nodes:
            running.enter_context(node)
        yield cluster
