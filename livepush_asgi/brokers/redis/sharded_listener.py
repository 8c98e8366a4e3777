"""ShardedListener: sharded pub/sub on a cluster, one listening connection for each node that has a channel.

A node reports when a channel is not, or no longer, its own. A killed node cannot report it, and a node that
is cut off from the others does not know. So the topology is read when there is trouble, and from time to
time. Mailboxes move to the node that has their channel, and report that they may have missed payloads.
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
        # A node gets half of the time, so that the rest is left for the node that takes over from it.
        self._timeouts_of_one = replace(timeouts, subscribe=timeouts.subscribe / 2)
        self._listeners: dict[Address, Listener] = {}
        # The listener of each mailbox, None while the mailbox moves.
        self._assigned: dict[Mailbox, Listener | None] = {}
        self._task: asyncio.Task[None] | None = None
        # Made anew with the task, for it belongs to an event loop.
        self._trouble = asyncio.Event()

    @property
    def healthy(self) -> bool:
        """Whether each channel is confirmed by the node that has it, as far as known."""
        return all(each is not None and each.healthy for each in set(self._assigned.values()))

    async def listen(self, mailbox: Mailbox) -> None:
        """Subscribe a mailbox. Returns when the node that has the channel has confirmed it.

        Raises BrokerUnavailableError if no node does. In that case, and when cancelled, the mailbox is not
        subscribed.
        """
        self._leave_loop()
        try:
            listener = await self._cluster.retry(lambda: self._try(mailbox), self._timeouts.subscribe)
        except FAILURES as error:
            raise unavailable("subscribe", self._cluster.first.pool, error, mailbox.channel) from error
        self._assigned[mailbox] = listener
        if self._task is None:
            self._trouble = asyncio.Event()
            self._task = start_task(self._watch(), "livepush redis shards")

    def leave(self, mailbox: Mailbox) -> None:
        """Unsubscribe a mailbox, if it is subscribed."""
        listener = self._assigned.pop(mailbox, None)
        if listener is not None:
            listener.leave(mailbox)
        if not self._assigned:
            # Wakes `_watch`, which ends. RuntimeError: the event loop is closed.
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
            # The earlier loop ended without closing the subscriptions.
            self._task = None
            self._assigned, self._listeners = {}, {}

    async def _watch(self) -> None:
        task = asyncio.current_task()
        try:
            while self._assigned:
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
        """Wait for trouble, or until the topology is due to be read."""
        if not self.healthy:
            await asyncio.sleep(_PAUSE)
        else:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._timeouts.ping_interval):
                    await self._trouble.wait()
        self._trouble.clear()

    async def _move_all(self) -> None:
        moves = []
        for mailbox, current in list(self._assigned.items()):
            node = self._cluster.known_node_of(mailbox.channel)
            target = current if node is None else self._listener(node)
            if target is None or target is current:
                continue
            if current is not None:
                current.leave(mailbox)
            self._assigned[mailbox] = None
            moves.append(self._move(mailbox, target))
        await asyncio.gather(*moves)
        self._listeners = {at: listener for at, listener in self._listeners.items() if listener.wanted}

    async def _move(self, mailbox: Mailbox, target: Listener) -> None:
        # If it fails, the mailbox has no listener, and `_watch` tries again.
        with contextlib.suppress(BrokerUnavailableError):
            await target.listen(mailbox)
            if mailbox in self._assigned:
                self._assigned[mailbox] = target
                mailbox.lost()
            else:
                target.leave(mailbox)
