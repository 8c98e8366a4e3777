"""Shards: sharded pub/sub on a cluster, one listening connection for each node that has a channel.

A channel is with the node that has its slot. Nodes say so when it is not theirs, or no longer; a node that
is killed says nothing, and one that is cut off from the others does not even know. So the nodes are asked
who has what when there is trouble, and from time to time, and who listens in the wrong place is moved. What
may have been missed meanwhile is a loss.
"""

import asyncio
import contextlib
import logging
from dataclasses import replace

from ...errors import BrokerUnavailableError
from ...loop import start_task
from ..backoff import Backoff
from ..mailbox import Mailbox
from .connection import FAILURES, no_answer, unavailable
from .listener import Listener, Patience
from .topology import Address, Cluster, Node

logger = logging.getLogger("livepush_asgi")

# How long to wait before the nodes are asked again, while something is wrong, in seconds.
_PAUSE = 0.2


class Shards:
    """The mailboxes, each with the listener of its channel's node. For one event loop at a time."""

    def __init__(self, cluster: Cluster, patience: Patience) -> None:
        self._cluster = cluster
        self._patience = patience
        # A node that is away gets half of the time, so that there is some left for the one that took over.
        self._patience_of_one = replace(patience, subscribe_timeout=patience.subscribe_timeout / 2)
        self._listeners: dict[Address, Listener] = {}
        # Where each mailbox listens; None while it is on its way.
        self._homes: dict[Mailbox, Listener | None] = {}
        self._task: asyncio.Task[None] | None = None
        # The event is made anew with the task: it belongs to the event loop.
        self._trouble = asyncio.Event()

    @property
    def healthy(self) -> bool:
        """Whether each channel is confirmed by the node that has it, as far as known."""
        return all(home is not None and home.healthy for home in set(self._homes.values()))

    async def listen(self, mailbox: Mailbox) -> None:
        """Let a mailbox listen. Returns when the node that has its channel has confirmed it.

        Raises BrokerUnavailableError if none does; then, and when cancelled, nothing stays behind.
        """
        self._leave_loop()
        fault: BaseException | None = None
        backoff = Backoff()
        try:
            async with asyncio.timeout(self._patience.subscribe_timeout):
                while True:
                    try:
                        self._homes[mailbox] = await self._listen_once(mailbox)
                        break
                    except (BrokerUnavailableError, *FAILURES) as error:
                        fault = error.__cause__ if isinstance(error, BrokerUnavailableError) else error
                    await asyncio.sleep(backoff.next_delay())
                    with contextlib.suppress(*FAILURES):
                        await self._cluster.refresh()
        except TimeoutError as error:
            cause = fault or no_answer(self._patience.subscribe_timeout)
            raise unavailable("subscribe", self._cluster.first.pool, cause, mailbox.channel) from error
        self._start()

    def leave(self, mailbox: Mailbox) -> None:
        """Let a mailbox listen no more. Leaving twice is harmless."""
        home = self._homes.pop(mailbox, None)
        if home is not None:
            home.leave(mailbox)
        # A RuntimeError says that the event loop is closed.
        with contextlib.suppress(RuntimeError):
            self._note_trouble()

    async def _listen_once(self, mailbox: Mailbox) -> Listener:
        listener = self._listener(await self._cluster.node_of(mailbox.channel))
        await listener.listen(mailbox)
        return listener

    def _listener(self, node: Node) -> Listener:
        listener = self._listeners.get(node.address)
        if listener is None:
            listener = self._listeners[node.address] = Listener(
                node.pool, self._patience_of_one, sharded=True, on_trouble=self._note_trouble
            )
        return listener

    def _note_trouble(self) -> None:
        self._trouble.set()

    def _leave_loop(self) -> None:
        if self._task is not None and self._task.get_loop() is not asyncio.get_running_loop():
            # That loop has gone without a word, and those who listened with it.
            self._task = None
            self._homes, self._listeners = {}, {}

    def _start(self) -> None:
        if self._task is None:
            self._trouble = asyncio.Event()
            self._task = start_task(self._watch(), "livepush redis shards")

    async def _watch(self) -> None:
        task = asyncio.current_task()
        try:
            while self._homes:
                await self._wait()
                try:
                    await self._cluster.refresh()
                    await self._move_all()
                except FAILURES as error:
                    logger.debug("no node of the cluster says who has what: %s", error)
        finally:
            if self._task is task:
                self._task = None

    async def _wait(self) -> None:
        """Wait for trouble, or until it is time to look."""
        if not self.healthy:
            await asyncio.sleep(_PAUSE)
        else:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._patience.ping_interval):
                    await self._trouble.wait()
        self._trouble.clear()

    async def _move_all(self) -> None:
        moves = []
        for mailbox, home in list(self._homes.items()):
            node = self._cluster.known_node_of(mailbox.channel)
            target = home if node is None else self._listener(node)
            if target is None or target is home:
                continue
            if home is not None:
                home.leave(mailbox)
            self._homes[mailbox] = None
            moves.append(self._move(mailbox, target))
        await asyncio.gather(*moves)
        self._listeners = {at: listener for at, listener in self._listeners.items() if listener.wanted}

    async def _move(self, mailbox: Mailbox, target: Listener) -> None:
        try:
            await target.listen(mailbox)
        except BrokerUnavailableError:
            # It has no home still, and is moved at the next look.
            return
        if mailbox in self._homes:
            self._homes[mailbox] = target
            mailbox.lost()
        else:
            target.leave(mailbox)
