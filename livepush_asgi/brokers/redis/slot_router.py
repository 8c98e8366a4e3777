"""SlotRouter runs each script on the node of a cluster that has its keys. Topology knows these nodes.

redis-py's RedisCluster has the settings, but its connections are not used. It takes one of at most a hundred
connections to a node for each concurrent command, and it waits for a stopped node when it reads the topology.
Its `pubsub` loses a channel whose slot moves.
"""

import asyncio
import contextlib
import os
import random
from functools import partial
from secrets import token_urlsafe
from typing import Any, NamedTuple

from redis import exceptions
from redis.asyncio import ConnectionPool, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot

from ...runtime.event_loop import spawn, start_task
from ..backoff import Backoff
from ..timeouts import no_answer
from .connection import FAILURES, Reply, named_timeout
from .pipeline import Pipeline, Receiver
from .script import Call

SLOTS = 16384
# How many nodes are asked at once, and the time-out in seconds. Several are asked, since a node that was cut
# off from the others reports an old topology.
_ASKED, _ASK_TIMEOUT = 5, 1.0
# How long an idle connection to a node is held, in seconds.
_IDLE_SECONDS = 30.0
# Error replies of a node that does not have the key, or cannot serve it now. The command was not executed.
_TRY_ELSEWHERE = (
    exceptions.AskError,
    exceptions.ClusterDownError,
    exceptions.TryAgainError,
    exceptions.ReadOnlyError,
    exceptions.BusyLoadingError,
)

Address = tuple[str, int]


def is_refusal(error: Exception) -> bool:
    """Return whether the nodes refuse what was asked, so that no other node would do it."""
    return isinstance(error, exceptions.ResponseError) and not isinstance(error, _TRY_ELSEWHERE)


class Node(NamedTuple):
    """One server of the cluster. Its connections have the client's settings, and are closed when idle."""

    address: Address
    pool: ConnectionPool
    pipeline: Pipeline


class Topology:
    """The nodes of the cluster, found from the startup nodes of the client. `timeout` (s) is for one node."""

    def __init__(self, redis: RedisCluster, *, timeout: float) -> None:
        self._redis = redis
        self._timeout = timeout
        self._seeds = [(node.host, int(node.port)) for node in redis.nodes_manager.startup_nodes.values()]
        self._nodes: dict[Address, Node] = {}
        self._owners: list[Node | None] = [None] * SLOTS
        self._refreshing: asyncio.Task[None] | None = None
        #: The node that error messages name for the cluster.
        self.first = self.node_at(*self._seeds[0])

    async def node_of(self, tag: str) -> Node:
        """Return the node that has the keys with a hash tag. Raises one of FAILURES if none is known."""
        if self.known_node_of(tag) is None:
            await self.refresh()
        node = self.known_node_of(tag)
        if node is None:
            raise exceptions.ClusterDownError(f"no node serves slot {key_slot(tag.encode())}")
        return node

    def known_node_of(self, tag: str) -> Node | None:
        """Return the node that has the keys with a hash tag, as far as known."""
        return self._owners[key_slot(tag.encode())]

    def redirect(self, error: exceptions.AskError, asked: Node) -> Node:
        """Return the node to which `asked` redirects a command, and remember it if the slot has moved."""
        address = self._redis.nodes_manager.remap_host_port(error.host or asked.address[0], error.port)
        node = self.node_at(*address)
        if isinstance(error, exceptions.MovedError):
            self._owners[error.slot_id] = node
        return node

    def node_at(self, host: str, port: int) -> Node:
        """Return the node with an address."""
        node = self._nodes.get((host, port))
        if node is None:
            pool = _pool_of_node(self._redis, host, port)
            pipeline = Pipeline(pool, timeout=self._timeout, idle_seconds=_IDLE_SECONDS)
            node = self._nodes[host, port] = Node((host, port), pool, pipeline)
        return node

    async def refresh(self) -> None:
        """Ask nodes which node has which slot. Raises one of FAILURES if none answers."""
        task = self._refreshing
        if task is None or task.done() or task.get_loop() is not asyncio.get_running_loop():
            task = self._refreshing = start_task(self._refresh(), "livepush redis topology")
            # Retrieves the error, also when all callers are cancelled.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
        # All concurrent callers wait for one task, and none of them cancels it.
        await asyncio.shield(task)

    async def _refresh(self) -> None:
        serving = list({node.address for node in self._owners if node is not None})
        asked = set(random.sample(serving, min(_ASKED - 1, len(serving))))
        asked |= set(random.sample(self._seeds, min(_ASKED - len(asked), len(self._seeds))))
        views = await asyncio.gather(
            *[_ask(self.node_at(*address)) for address in asked], return_exceptions=True
        )
        answers = [view for view in views if isinstance(view, _View)]
        if not answers:
            raise next(view for view in views if isinstance(view, BaseException))
        self._adopt(max(answers))

    def _adopt(self, view: "_View") -> None:
        self._owners = [None] * SLOTS
        for first, last, address in view.owners:
            node = self.node_at(*self._redis.nodes_manager.remap_host_port(*address))
            self._owners[first : last + 1] = [node] * (last + 1 - first)
        kept = {*self._seeds, *(node.address for node in self._owners if node is not None)}
        self._nodes = {address: node for address, node in self._nodes.items() if address in kept}


class SlotRouter:
    """Runs scripts on a cluster, and repeats each call for up to `timeout` seconds.

    When a connection breaks, the script may or may not have run, and is sent again. The server recognizes a
    repeated append by its number.
    """

    verb = "SPUBLISH"

    def __init__(self, redis: RedisCluster, *, timeout: float) -> None:
        self._timeout = timeout
        # Half of the time, so that the rest is left for another node when one is stopped.
        self._timeout_of_one = timeout / 2
        self.cluster = Topology(redis, timeout=self._timeout_of_one)
        self._writer = ""
        self._process = 0

    @property
    def writer(self) -> str:
        """The name under which this process numbers its appends. A forked process gets another name."""
        if self._process != os.getpid():
            self._process, self._writer = os.getpid(), token_urlsafe(6)
        return self._writer

    def start(self, call: Call, receiver: Receiver) -> None:
        """Run a script. Its reply goes to `receiver`."""
        spawn(partial(self._run_for, call, receiver), "livepush redis append")

    async def run(self, call: Call) -> Reply:
        """Run a script. Raises one of FAILURES if it did not run, or may not have run."""
        fault: Exception | None = None
        backoff = Backoff(most=0.5)
        try:
            async with asyncio.timeout(self._timeout):
                while True:
                    try:
                        return await self._try(call)
                    except FAILURES as error:
                        if is_refusal(error):
                            raise
                        fault = error
                    await asyncio.sleep(backoff.next_delay())
                    with contextlib.suppress(*FAILURES):
                        await self.cluster.refresh()
        except TimeoutError as error:
            raise fault or no_answer(self._timeout) from error

    async def _run_for(self, call: Call, receiver: Receiver) -> None:
        try:
            receiver.set_result(await self.run(call))
        except Exception as error:
            receiver.set_exception(error)
        except BaseException:
            receiver.set_exception(exceptions.ConnectionError("the event loop ended"))
            raise

    async def _try(self, call: Call) -> Reply:
        node = await self.cluster.node_of(call.tag)
        try:
            async with asyncio.timeout(self._timeout_of_one):
                return await call.script.run(node.pipeline, call.keys, call.arguments)
        except exceptions.AskError as error:
            target = self.cluster.redirect(error, node)
            run = call.script.run if isinstance(error, exceptions.MovedError) else call.script.run_asking
            return await run(target.pipeline, call.keys, call.arguments)
        except TimeoutError as error:
            raise named_timeout(error, self._timeout_of_one) from None


class _View(NamedTuple):
    """The topology as one node reports it. The greatest view is the newest one."""

    is_well: bool
    epoch: int
    owners: list[tuple[int, int, Address]]


async def _ask(node: Node) -> _View:
    async with asyncio.timeout(_ASK_TIMEOUT):
        info, slots = await asyncio.gather(
            node.pipeline.submit(b"CLUSTER", b"INFO"), node.pipeline.submit(b"CLUSTER", b"SLOTS")
        )
    if not isinstance(info, bytes) or not isinstance(slots, list):
        raise exceptions.ClusterDownError(f"the node's reply is no topology: {info!r:.100} {slots!r:.100}")
    facts = dict(line.partition(":")[::2] for line in info.decode().splitlines())
    owners = [owner for entry in slots if (owner := _owner(entry, node))]
    return _View(facts.get("cluster_state") == "ok", int(facts.get("cluster_current_epoch", 0)), owners)


def _owner(entry: Reply, asked: Node) -> tuple[int, int, Address] | None:
    match entry:
        case [int() as first, int() as last, [None | bytes() as host, int() as port, *_], *_] if host != b"?":
            # An owner without a host has the host of the node that was asked.
            return first, last, (host.decode() if host else asked.address[0], port)
    return None


def _pool_of_node(redis: RedisCluster, host: str, port: int) -> ConnectionPool:
    settings: dict[str, Any] = redis.get_connection_kwargs()
    # ClusterNode picks the settings of a connection from those of the client.
    node = ClusterNode(host, port, **settings)
    # redis-py's retries would hide that the node is away.
    own: dict[str, Any] = {"host": host, "retry": Retry(NoBackoff(), 0)}
    return ConnectionPool(connection_class=node.connection_class, **{**node.connection_kwargs, **own})
