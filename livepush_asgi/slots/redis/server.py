"""Where the leases are kept: on one server, or on the nodes of a cluster, each with a part of the keys."""

import asyncio
from typing import Protocol
from weakref import ReferenceType, ref

from redis.asyncio import Redis, RedisCluster
from redis.exceptions import (
    AskError,
    ClusterDownError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)

from ...brokers.batch import Batch
from ...brokers.redis_command import Receiver
from ...brokers.redis_connection import Reply, address_of, no_answer, pool_of
from ...brokers.redis_log import Call
from ...brokers.redis_routes import Routes
from ...loop import asyncio_loop

# The error replies of a server that can serve no key now, by class where redis-py has one, which takes the
# code out of the text. All other error replies are about the keys of the call.
_ABSENT = (ClusterDownError, OutOfMemoryError, ReadOnlyError)
_ABSENT_CODES = (
    "BUSY ",
    "CLUSTERDOWN ",
    "LOADING ",
    "MASTERDOWN ",
    "MISCONF ",
    "NOREPLICAS ",
    "OOM ",
    "READONLY ",
)


def is_absence(error: BaseException) -> bool:
    """Return whether an error is about the server as a whole, and not about the keys of the call."""
    if not isinstance(error, ResponseError):
        return True
    return isinstance(error, _ABSENT) or str(error).startswith(_ABSENT_CODES)


class Server(Protocol):
    """Runs scripts. Each call ends within the timeout."""

    #: Its name in messages.
    where: str
    #: Whether one call may have the keys of several slot keys, and the next one waits for it.
    one: bool
    #: Whether it is one node of a cluster of several, so that it has only some of the keys.
    partial: bool

    def place_of(self, tag: str) -> str:
        """Return the name of the server that has the keys with this hash tag, as far as known."""
        ...

    def start(self, call: Call, receiver: Receiver) -> None:
        """Run a script; the receiver gets what it returns."""
        ...

    async def run(self, call: Call) -> Reply:
        """Run a script and return what it returns. Raises one of FAILURES."""
        ...

    def has_refused(self, error: BaseException) -> bool:
        """Return whether an error is about the keys of the call and means that nothing was done."""
        ...


def server_of(redis: Redis | RedisCluster, *, timeout: float) -> Server:
    """Return where a client's commands go. Raises TypeError for what is not redis-py's asyncio client."""
    return _Cluster(redis, timeout) if isinstance(redis, RedisCluster) else _OneServer(redis, timeout)


class _OneServer:
    one = True

    def __init__(self, redis: Redis, timeout: float) -> None:
        self.where = address_of(pool_of(redis))
        self.partial = False
        self._batch = Batch(redis, timeout=timeout)
        self._timeout = timeout
        self._loop: ReferenceType[asyncio.AbstractEventLoop] | None = None

    def place_of(self, tag: str) -> str:
        return self.where

    def start(self, call: Call, receiver: Receiver) -> None:
        loop = asyncio_loop()
        if self._loop is None or self._loop() is not loop:
            self._loop = ref(loop)
            # Its reply is there before that of the first call.
            self._batch.send(_ClusterSize(self), b"CLUSTER", b"INFO")
        call.script.send(self._batch, call.keys, call.arguments, receiver)

    async def run(self, call: Call) -> Reply:
        # On another kind of loop the next line would not say what is wrong.
        asyncio_loop()
        try:
            async with asyncio.timeout(self._timeout):
                return await call.script.run(self._batch, call.keys, call.arguments)
        except TimeoutError as error:
            raise error if str(error) else no_answer(self._timeout) from error

    def has_refused(self, error: BaseException) -> bool:
        return not is_absence(error)


class _ClusterSize:
    """Learns from the reply to CLUSTER INFO whether the server has only a part of the keys."""

    def __init__(self, server: _OneServer) -> None:
        self._server = server

    def done(self) -> bool:
        return False

    def set_result(self, reply: Reply, /) -> None:
        facts = reply if isinstance(reply, bytes) else str(reply).encode()
        lines = dict(line.partition(b":")[::2] for line in facts.splitlines())
        self._server.partial = lines.get(b"cluster_size", b"1") not in (b"0", b"1")

    def set_exception(self, error: Exception, /) -> None:
        # It is no cluster, or may not be asked. A key that is elsewhere answers MOVED then.
        self._server.partial = False


class _Cluster:
    one = False
    partial = False

    def __init__(self, redis: RedisCluster, timeout: float) -> None:
        self._routes = Routes(redis, timeout=timeout)
        host, port = self._routes.cluster.first.address
        self.where = f"Redis Cluster at {host}:{port}"

    def place_of(self, tag: str) -> str:
        node = self._routes.cluster.known_node_of(tag)
        return self.where if node is None else f"Redis node at {node.address[0]}:{node.address[1]}"

    def start(self, call: Call, receiver: Receiver) -> None:
        asyncio_loop()
        self._routes.start(call, receiver)

    async def run(self, call: Call) -> Reply:
        asyncio_loop()
        return await self._routes.run(call)

    def has_refused(self, error: BaseException) -> bool:
        # While a slot moves an earlier try may have been carried out, whose reply was lost.
        return not is_absence(error) and not isinstance(error, (AskError, TryAgainError))
