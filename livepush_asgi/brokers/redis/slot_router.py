"""Routes: scripts that find the node which has their keys, wherever that is by now."""

import asyncio
import contextlib
import os
from secrets import token_urlsafe

from redis.asyncio import RedisCluster
from redis.exceptions import (
    AskError,
    BusyLoadingError,
    ClusterDownError,
    MovedError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError

from ...loop import start_task
from ..backoff import Backoff
from .command import Receiver
from .connection import FAILURES, Reply, no_answer
from .hash_tag import tag_of
from .log import Call
from .topology import Cluster, Node

# Answers that say: not here, or not now. Nothing was done.
_LATER = (ClusterDownError, TryAgainError, ReadOnlyError, BusyLoadingError)


class Routes:
    """Runs scripts in a cluster, each until it is done or `timeout` seconds have passed.

    When a connection breaks nobody knows whether the script ran. An append is then sent again all the same,
    under the number that it had, by which the server knows it.
    """

    verb = "SPUBLISH"

    def __init__(self, redis: RedisCluster, *, timeout: float) -> None:
        # Half of the time, so that there is some left for another node when one stands still.
        self._timeout_of_one = timeout / 2
        self.cluster = Cluster(redis, timeout=self._timeout_of_one)
        self._timeout = timeout
        self._writer = ""
        self._process = 0
        # The event loop alone would not keep them.
        self._running: set[asyncio.Task[None]] = set()

    @property
    def writer(self) -> str:
        """The name of this process as a writer: after a fork both count on from the same number."""
        if self._process != os.getpid():
            self._process, self._writer = os.getpid(), token_urlsafe(6)
        return self._writer

    def live_name(self, channel: str) -> str:
        """Return the name on which a channel's events are published, which has the slot of its keys."""
        return tag_of(channel)

    def start(self, call: Call, receiver: Receiver) -> None:
        """Run a script; the receiver gets what it returns."""
        task = start_task(self._run_for(call, receiver), "livepush redis append")
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _run_for(self, call: Call, receiver: Receiver) -> None:
        try:
            reply = await self.run(call)
        except Exception as error:
            receiver.set_exception(error)
        except BaseException:
            receiver.set_exception(RedisConnectionError("the event loop ended"))
            raise
        else:
            receiver.set_result(reply)

    async def run(self, call: Call) -> Reply:
        """Run a script. Raises one of FAILURES if it did not run, or nobody knows whether it did."""
        fault: BaseException | None = None
        backoff = Backoff(most=0.5)
        try:
            async with asyncio.timeout(self._timeout):
                while True:
                    try:
                        return await self._try(call)
                    except FAILURES as error:
                        if _is_refusal(error):
                            raise
                        fault = error
                    await asyncio.sleep(backoff.next_delay())
                    await self._refresh()
        except TimeoutError as error:
            raise fault or no_answer(self._timeout) from error

    async def _try(self, call: Call) -> Reply:
        node = await self.cluster.node_of(call.tag)
        try:
            async with asyncio.timeout(self._timeout_of_one):
                return await call.script.run(node.batch, call.keys, call.arguments)
        except MovedError as error:
            target = self._target(error, node)
            self.cluster.moved(error.slot_id, target)
            return await call.script.run(target.batch, call.keys, call.arguments)
        except AskError as error:
            target = self._target(error, node)
            return await call.script.run_asking(target.batch, call.keys, call.arguments)
        except TimeoutError as error:
            raise error if str(error) else no_answer(self._timeout_of_one) from error

    async def _refresh(self) -> None:
        # The next try says what is wrong.
        with contextlib.suppress(*FAILURES):
            await self.cluster.refresh()

    def _target(self, error: AskError, node: Node) -> Node:
        return self.cluster.node_at(error.host or node.address[0], error.port)


def _is_refusal(error: BaseException) -> bool:
    return isinstance(error, ResponseError) and not isinstance(error, (AskError, *_LATER))
