"""SlotRouter: runs each script on the node of a cluster that has its keys."""

import asyncio
import contextlib
import os
from functools import partial
from secrets import token_urlsafe

from redis.asyncio import RedisCluster
from redis.exceptions import AskError, MovedError
from redis.exceptions import ConnectionError as RedisConnectionError

from ...runtime.event_loop import spawn
from ..backoff import Backoff
from ..timeouts import no_answer
from .connection import FAILURES, Reply, named_timeout
from .pipeline import Receiver
from .script import Call
from .topology import Topology, is_refusal


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
            reply = await self.run(call)
        except Exception as error:
            receiver.set_exception(error)
        except BaseException:
            receiver.set_exception(RedisConnectionError("the event loop ended"))
            raise
        else:
            receiver.set_result(reply)

    async def _try(self, call: Call) -> Reply:
        node = await self.cluster.node_of(call.tag)
        try:
            async with asyncio.timeout(self._timeout_of_one):
                return await call.script.run(node.pipeline, call.keys, call.arguments)
        except AskError as error:
            target = self.cluster.redirect(error, node)
            run = call.script.run if isinstance(error, MovedError) else call.script.run_asking
            return await run(target.pipeline, call.keys, call.arguments)
        except TimeoutError as error:
            raise named_timeout(error, self._timeout_of_one) from None
