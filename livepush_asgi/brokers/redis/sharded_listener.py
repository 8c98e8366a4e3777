"""ShardedListener: sharded pub/sub on a cluster, one listening connection for each node that has a channel.

A node says when a channel is not or no longer its own. A killed node says nothing, and a node that is cut off
from the others does not know. So the topology is read when there is trouble, and from time to time. Mailboxes
move to the node that has their channel, and what they may have missed is reported as a loss.
"""

import asyncio
import contextlib
import logging
from dataclasses import replace

from ...errors import BrokerUnavailableError
from ...runtime.event_loop import start_task
from ..mailbox import Mailbox
from ..timeouts import BrokerTimeouts
from .connection import FAILURES, unavailable
from .listener import Listener
from .topology import Address, Node, Topology

logger = logging.getLogger("livepush_asgi")

# How long to wait before the topology is read again while a channel is not confirmed, in seconds.
_PAUSE = 0.2


class ShardedListener:
    """A Listener for each node. For one event loop at a time."""

    def __init__(self, cluster: Topology, timeouts: BrokerTimeouts) -> None:
        self._cluster = cluster
        self._timeouts = timeouts
        # A node that is away gets half of the time, so that some is left for the node that took over.
        self._timeouts_of_one = replace(timeouts, subscribe=timeouts.subscribe / 2)
        self._listeners: dict[Address, Listener] = {}
        # The listener of each mailbox, None while it moves.
        self._homes: dict[Mailbox, Listener | None] = {}
        self._task: asyncio.Task[None] | None = None
        # Made anew with the task, for it belongs to an event loop.
        self._trouble = asyncio.Event()

    @property
    def healthy(self) -> bool:
        """Whether each channel is confirmed by the node that has it, as far as known."""
        return all(home is not None and home.healthy for home in set(self._homes.values()))

    async def listen(self, mailbox: Mailbox) -> None:
        """Subscribe a mailbox. Returns when the node that has the channel has confirmed it.

        Raises BrokerUnavailableError if none does. Then, and when cancelled, nothing is left behind.
        """
        self._leave_loop()
        try:
            home = await self._cluster.retry(lambda: self._try(mailbox), self._timeouts.subscribe)
        except FAILURES as error:
            raise unavailable("subscribe", self._cluster.first.pool, error, mailbox.channel) from error
        self._homes[mailbox] = home
        if self._task is None:
            self._trouble = asyncio.Event()
            self._task = start_task(self._watch(), "livepush redis shards")

    def leave(self, mailbox: Mailbox) -> None:
        """Unsubscribe a mailbox, if it is subscribed."""
        home = self._homes.pop(mailbox, None)
        if home is not None:
            home.leave(mailbox)
        if not self._homes:
            # The watch ends. RuntimeError: the event loop is closed.
            with contextlib.suppress(RuntimeError):
                self._note_trouble()

    async def _try(self, mailbox: Mailbox) -> Listener:
        listener = self._listener(await self._cluster.node_of(mailbox.channel))
        try:
            await listener.listen(mailbox)
        except BrokerUnavailableError as error:
            raise error.__cause__ or error from None
        return listener

    def _listener(self, node: Node) -> Listener:
        listener = self._listeners.get(node.address)
        if listener is None:
            listener = self._listeners[node.address] = Listener(
                node.pool, self._timeouts_of_one, sharded=True, on_trouble=self._note_trouble
            )
        return listener

    def _note_trouble(self) -> None:
        self._trouble.set()

    def _leave_loop(self) -> None:
        if self._task is not None and self._task.get_loop() is not asyncio.get_running_loop():
            # That loop ended without closing the subscriptions.
            self._task = None
            self._homes, self._listeners = {}, {}

    async def _watch(self) -> None:
        task = asyncio.current_task()
        try:
            while self._homes:
                await self._wait()
                try:
                    await self._cluster.refresh()
                    await self._move_all()
                except FAILURES as error:
                    logger.debug("no node of the cluster reports the topology: %s", error)
        finally:
            if self._task is task:
                self._task = None

    async def _wait(self) -> None:
        """Wait for trouble, or until it is time to look."""
        if not self.healthy:
            await asyncio.sleep(_PAUSE)
        else:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._timeouts.ping_interval):
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
        # If it fails, the mailbox has no home and is moved at the next look.
        with contextlib.suppress(BrokerUnavailableError):
            await target.listen(mailbox)
            if mailbox in self._homes:
                self._homes[mailbox] = target
                mailbox.lost()
            else:
                target.leave(mailbox)
