"""Cluster: which node of a Redis Cluster has which slot, as the nodes themselves tell it."""

import asyncio
import random
from collections.abc import Iterable

from redis.asyncio import RedisCluster
from redis.crc import key_slot
from redis.exceptions import ClusterDownError

from ...loop import start_task
from .connection import FAILURES, Reply
from .node_pool import NodePool
from .pipeline import Batch

SLOTS = 16384
# So many nodes are asked at once, and each is given so much time, in seconds. A node that was cut off from
# the others still believes what was true then.
_ASKED, _PATIENCE = 5, 1.0

Address = tuple[str, int]


class Node:
    """One server of the cluster."""

    def __init__(self, redis: RedisCluster, address: Address, timeout: float) -> None:
        self.address = address
        self.pool = NodePool(redis, *address)
        self.batch = Batch(self.pool, timeout=timeout)


class Cluster:
    """The nodes. A `RedisCluster` says where to begin and with what settings.

    `timeout` in seconds bounds what is done with one node.
    """

    def __init__(self, redis: RedisCluster, *, timeout: float) -> None:
        self._redis = redis
        self._timeout = timeout
        self._seeds = [(node.host, int(node.port)) for node in redis.nodes_manager.startup_nodes.values()]
        self._nodes: dict[Address, Node] = {}
        self._owners: list[Node | None] = [None] * SLOTS
        self._refreshing: asyncio.Task[None] | None = None
        #: Where to say that this is about.
        self.first = self._node(self._seeds[0])

    async def node_of(self, tag: str) -> Node:
        """Return the node that has the keys with a hash tag. Raises one of FAILURES if none is known."""
        slot = key_slot(tag.encode())
        if self._owners[slot] is None:
            await self.refresh()
        owner = self._owners[slot]
        if owner is None:
            raise ClusterDownError(f"no node serves slot {slot}")
        return owner

    def known_node_of(self, tag: str) -> Node | None:
        """Return the node that has the keys with a hash tag, as far as known."""
        return self._owners[key_slot(tag.encode())]

    def node_at(self, host: str, port: int) -> Node:
        """Return the node that another one pointed to."""
        return self._node(self._redis.nodes_manager.remap_host_port(host, port))

    def moved(self, slot: int, node: Node) -> None:
        """Take note of where a slot is now."""
        self._owners[slot] = node

    async def refresh(self) -> None:
        """Ask the nodes who has what. Raises one of FAILURES if none answers."""
        loop = asyncio.get_running_loop()
        if self._refreshing is not None and self._refreshing.get_loop() is not loop:
            self._refreshing = None
        if self._refreshing is None:
            self._refreshing = start_task(self._refresh(), "livepush redis cluster")
            # Somebody has to hear of an error, even when all who asked have gone.
            self._refreshing.add_done_callback(lambda task: task.cancelled() or task.exception())
        # All who ask meanwhile wait for the same answer, and one who is cancelled takes it from nobody.
        await asyncio.shield(self._refreshing)

    async def _refresh(self) -> None:
        task = asyncio.current_task()
        try:
            addresses = list({*self._seeds, *self._nodes})
            random.shuffle(addresses)
            # The nodes known to serve come first: what has left the cluster would be asked for ever.
            serving = {node.address for node in self._owners if node is not None}
            addresses.sort(key=lambda address: address not in serving)
            fault: BaseException = ClusterDownError("no node of the cluster answers")
            for start in range(0, len(addresses), _ASKED):
                asked = [self._node(address) for address in addresses[start : start + _ASKED]]
                views = await asyncio.gather(*map(_view, asked), return_exceptions=True)
                best = max((view for view in views if isinstance(view, _View)), default=None)
                if best is not None:
                    self._adopt(best)
                    return
                fault = next((view for view in views if isinstance(view, FAILURES)), fault)
            raise fault
        finally:
            if self._refreshing is task:
                self._refreshing = None

    def _adopt(self, view: "_View") -> None:
        owners: list[Node | None] = [None] * SLOTS
        known: set[Address] = set()
        for first, last, addresses in view.ranges:
            nodes = [self.node_at(*address) for address in addresses]
            known.update(node.address for node in nodes)
            owners[first : last + 1] = [nodes[0]] * (last + 1 - first)
        self._owners = owners
        for address in self._nodes.keys() - known - set(self._seeds):
            del self._nodes[address]

    def _node(self, address: Address) -> Node:
        node = self._nodes.get(address)
        if node is None:
            node = self._nodes[address] = Node(self._redis, address, self._timeout)
        return node


class _View:
    """What one node knows: ranges of slots, each with its owner and the owner's replicas."""

    def __init__(self, host: str, info: bytes, slots: Iterable[Reply]) -> None:
        facts = dict(line.partition(":")[::2] for line in info.decode().splitlines())
        self._rank = (facts.get("cluster_state") == "ok", int(facts.get("cluster_current_epoch", 0)))
        self.ranges = [found for entry in slots if (found := _range(host, entry))]

    def __lt__(self, other: "_View") -> bool:
        return self._rank < other._rank


async def _view(node: Node) -> _View:
    async with asyncio.timeout(_PATIENCE):
        match await asyncio.gather(
            node.batch.submit(b"CLUSTER", b"INFO"), node.batch.submit(b"CLUSTER", b"SLOTS")
        ):
            case [bytes() as text, list() as ranges]:
                return _View(node.address[0], text, ranges)
            case replies:
                raise ClusterDownError(f"the node answered what it should not: {replies!r:.100}")


def _range(host: str, entry: Reply) -> tuple[int, int, list[Address]] | None:
    match entry:
        case [int() as first, int() as last, *nodes]:
            addresses = [address for node in nodes if (address := _address(host, node))]
            return (first, last, addresses) if addresses and _address(host, nodes[0]) else None
        case _:
            return None


def _address(host: str, node: Reply) -> Address | None:
    """Return where a node is. One without a name is where the asked one is, and `?` is not known yet."""
    match node:
        case [name, int() as port, *_]:
            text = name.decode() if isinstance(name, bytes) else ""
            return None if text == "?" else (text or host, port)
        case _:
            return None
