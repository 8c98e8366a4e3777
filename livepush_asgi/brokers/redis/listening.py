"""ListeningBroker: subscriptions, on one listening connection to each server that has a channel.

A Redis has all channels. In a cluster a node reports when a channel is not, or no longer, its own. A killed
node cannot report it, and a node that is cut off from the others does not know. So the topology is read when
there is trouble, and from time to time. Channels move to the node that has them, and their mailboxes report
that they may have missed payloads.
"""

import asyncio
import contextlib
import logging
import time

from redis.asyncio import ConnectionPool
from redis.exceptions import ClusterDownError

from ...runtime.event_loop import asyncio_loop, start_task
from ...runtime.failure_log import fields
from ...wire.event import RESERVED_PREFIX
from .. import Subscription
from ..faults import Failing, Fault, grouped
from ..mailbox import Mailbox
from ..timeouts import BrokerTimeouts, no_answer
from .connection import FAILURES, address_of, is_forbidden, live_name_of, unavailable
from .listening_connection import Channel, ListeningConnection
from .slot_router import Topology, is_refusal

logger = logging.getLogger("livepush_asgi")

# The least time between two reads of the topology, in seconds.
_PAUSE = 0.2


class ListeningBroker:
    """The subscriptions of RedisBroker and RedisStreamsBroker, on one server or the nodes of `cluster`.

    A connection is opened for the first channel of its server, and closed after the last one.
    """

    _mailbox = Mailbox

    def __init__(
        self, pool: ConnectionPool, timeouts: BrokerTimeouts, cluster: Topology | None = None
    ) -> None:
        self._pool = pool
        self._timeouts = timeouts
        self._cluster = cluster
        self._channels: dict[bytes, Channel] = {}
        self._connections: dict[ConnectionPool, ListeningConnection] = {}
        self._listening_loop: asyncio.AbstractEventLoop | None = None
        # Reads the topology of the cluster, at once when there is trouble.
        self._watch_task: asyncio.Task[None] | None = None
        self._trouble = asyncio.Event()
        self._fault: Exception | None = None
        #: How often a listening connection was up again after it had been lost.
        self.reconnects = 0
        # When the servers were lost, by address.
        self._lost_at: dict[str, float] = {}

    @property
    def healthy(self) -> bool:
        """Whether the server has confirmed every channel and the connection is up; True without channels."""
        # A copy: another thread may ask for it.
        return all(channel.is_well for channel in list(self._channels.values()))

    @property
    def faults(self) -> tuple[Fault, ...]:
        """Why it is not healthy: one for each server and cause. Empty while it is healthy."""
        failing = [self._failing(each) for each in list(self._channels.values()) if not each.is_well]
        return grouped(failing, time.monotonic())

    def _failing(self, channel: Channel) -> Failing:
        where = "" if channel.connection is None else address_of(channel.connection.pool)
        cause = channel.refusal or self._cause(channel)
        return Failing(
            channel.lost_at,
            channel.name.decode(),
            where,
            str(cause) or type(cause).__name__,
            refused=is_forbidden(cause) and not channel.is_own,
        )

    async def subscribe(self, channel: str) -> Subscription:
        """Return a subscription, confirmed by the server.

        Raises BrokerUnavailableError if the server refuses, or does not confirm within
        `BrokerTimeouts.subscribe`.
        """
        loop = self._enter_loop()
        mailbox = self._mailbox(self._live_name(channel), self._leave)
        name = mailbox.channel.encode()
        own = channel.startswith(RESERVED_PREFIX)
        subscribed = self._channels.setdefault(name, Channel(name, is_own=own))
        if subscribed.is_live:
            subscribed.mailboxes.append(mailbox)
            return mailbox
        confirmed = subscribed.waiting[mailbox] = loop.create_future()
        self._place(subscribed)
        try:
            async with asyncio.timeout(self._timeouts.subscribe):
                await confirmed
        except BaseException as error:
            cause = self._cause(subscribed) if isinstance(error, TimeoutError) else error
            self._leave(mailbox)
            if not isinstance(error, FAILURES):
                raise
            raise unavailable("subscribe", self._pool, cause, mailbox.channel) from cause
        return mailbox

    async def aclose(self) -> None:
        """Close the idle connections of the client's pool.

        Call it after the last use, and only if nothing else uses the client and nothing else closes it.
        """
        await self._pool.disconnect()

    def _live_name(self, channel: str) -> str:
        """Return the name under which the channel's payloads are published."""
        return live_name_of(channel, self._pool)

    def _leave(self, mailbox: Mailbox) -> None:
        name = mailbox.channel.encode()
        channel = self._channels.get(name)
        if channel is None:
            return
        channel.waiting.pop(mailbox, None)
        if mailbox in channel.mailboxes:
            channel.mailboxes.remove(mailbox)
        if channel.mailboxes or channel.waiting:
            return
        del self._channels[name]
        # RuntimeError: the event loop is closed, and the connections with it.
        with contextlib.suppress(RuntimeError):
            self._remove(channel)
            if not self._channels:
                # Wakes `_watch`, which ends.
                self._trouble.set()

    def _enter_loop(self) -> asyncio.AbstractEventLoop:
        loop = asyncio_loop()
        if self._listening_loop is not loop:
            if self._channels and self._listening_loop is not None and not self._listening_loop.is_closed():
                raise RuntimeError("a RedisBroker is used on one event loop at a time; make one for each")
            # An earlier loop may have ended without closing the subscriptions.
            self._listening_loop, self._channels, self._connections = loop, {}, {}
            self._watch_task, self._trouble = None, asyncio.Event()
        return loop

    def _cause(self, channel: Channel) -> Exception:
        """Return why the server has not confirmed a channel."""
        if channel.connection is not None:
            return channel.connection.fault or no_answer(self._timeouts.subscribe)
        return self._fault or ClusterDownError("no node serves the slot of this channel")

    def _place(self, channel: Channel) -> None:
        """Subscribe a channel on the server that has it, as far as known."""
        pool: ConnectionPool | None = self._pool
        if self._cluster is not None:
            if self._watch_task is None or self._watch_task.done():
                self._watch_task = start_task(self._watch(self._cluster), "livepush redis shards")
            node = self._cluster.known_node_of(channel.name.decode())
            pool = None if node is None else node.pool
        if pool is None:
            self._trouble.set()
            return
        if channel.connection is not None and channel.connection.pool is not pool:
            self._remove(channel)
        connection = self._connections.get(pool)
        if connection is None or connection.is_closed:
            sharded = self._cluster is not None
            connection = ListeningConnection(pool, self._timeouts, self._note_change, sharded=sharded)
            self._connections[pool] = connection
        channel.connection = connection
        connection.subscribe(channel)

    def _remove(self, channel: Channel) -> None:
        connection, channel.connection = channel.connection, None
        if connection is not None:
            connection.unsubscribe(channel)
            if not connection.channels:
                del self._connections[connection.pool]

    def _note_change(self, connection: ListeningConnection, is_well: bool) -> None:
        where = address_of(connection.pool)
        if not is_well:
            self._trouble.set()
        if not connection.is_connected and where not in self._lost_at:
            self._lost_at[where] = time.monotonic()
            logger.warning(
                "no listening connection to %s, trying until it works: %s",
                where,
                connection.fault,
                extra=fields(
                    "broker_lost",
                    server=where,
                    error=str(connection.fault),
                    channels=len(connection.channels),
                ),
            )
        elif is_well and where in self._lost_at:
            self.reconnects += 1
            away, number = time.monotonic() - self._lost_at.pop(where), len(connection.channels)
            logger.warning(
                "listening to %s again after %.1f s, %d channels",
                where,
                away,
                number,
                extra=fields("broker_back", server=where, seconds=away, channels=number),
            )

    async def _watch(self, cluster: Topology) -> None:
        while self._channels:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._timeouts.ping_interval if self.healthy else _PAUSE):
                    await self._trouble.wait()
            self._trouble.clear()
            await self._follow(cluster)
            await asyncio.sleep(_PAUSE)

    async def _follow(self, cluster: Topology) -> None:
        """Read the topology, and move channels to the nodes that have them now."""
        try:
            await cluster.refresh()
        except FAILURES as error:
            logger.debug("no node of the cluster reports the topology: %s", error)
            self._fault = error
        else:
            self._fault = None
        for channel in list(self._channels.values()):
            if self._fault is None:
                self._place(channel)
            elif channel.connection is None and is_refusal(self._fault):
                channel.fail_waiting(self._fault)
