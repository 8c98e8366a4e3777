"""RedisStreamsBroker: pub/sub over Redis or Valkey with history, a log of each channel in a stream."""

import asyncio
from collections.abc import Sequence

from redis.asyncio import Redis, RedisCluster

from ...runtime.event_loop import asyncio_loop
from ...settings import value_or_default
from ...wire.cursor import Position, new_epoch
from ...wire.event import payload_bytes
from .. import READ_BYTES, Page
from ..history import History
from ..timeouts import BrokerTimeouts
from .connection import FAILURES, Argument, pool_of, unavailable
from .listening import ListeningBroker
from .log import (
    KEY_PREFIX,
    Added,
    Append,
    AppendQueue,
    LogMailbox,
    age_script,
    fitting,
    log_key,
    log_scripts,
    page_of,
)
from .script import Call, OneServer, tag_of
from .slot_router import SlotRouter


class RedisStreamsBroker(ListeningBroker):
    """Pub/sub with history over a `redis.asyncio.Redis`. Needs Redis 7.0, or Valkey.

    `RedisBroker` describes the client, the connections, the time-outs and the reconnect after an outage.
    Here, too, a payload is sent at most once. One script stores and publishes an event, so a subscriber that
    receives it finds it in the log. Every publisher has to use this class: a payload from `RedisBroker` or
    `PUBLISH` is in no log, and the application refuses it with a log line.

    `history` bounds each log by events, bytes and age. The server forgets a log that is neither read nor
    added to for twice the age, and at least ten minutes; later events have another epoch. A channel that is
    read before its first event costs the server a key of some hundred bytes, until two minutes after the last
    read. An `idempotency_key` is remembered for the age, at least for five minutes; for a day if `age` is
    None. The keys begin with `key_prefix`, and have the channel's name in braces. Live events are published
    under the name alone: applications that share a server, even in databases of their own, need channels of
    their own.

    With a `redis.asyncio.RedisCluster` the keys of a channel are in one slot, and live events use sharded
    pub/sub; `%`, `{` and `}` in a channel's name are escaped as in a URL. Each node that has a channel gets
    one connection to listen and one to publish. They have the settings of the client, and the broker closes
    them. When a node is replaced, calls look for the new one until their timeout; an event is still appended
    only once.

    A server may lose the end of a log when it is killed or when a replica takes over. It then continues in
    another epoch, so that no offset ever names two events. A client that has received lost events is told of
    a gap. After a replica took over every client is told, since the replica does not know which events it did
    not receive. The client's user needs the permission for INFO, which has the server's replication id.
    """

    _mailbox = LogMailbox

    def __init__(
        self,
        redis: Redis | RedisCluster,
        *,
        history: History | None = None,
        key_prefix: str = KEY_PREFIX,
        timeouts: BrokerTimeouts | None = None,
    ) -> None:
        timeouts = value_or_default("timeouts", timeouts, BrokerTimeouts)
        #: The bounds of each log.
        self.history = history = value_or_default("history", history, History)
        if "{" in key_prefix or "}" in key_prefix:
            raise ValueError(f"key_prefix may have no braces, which enclose the channel: {key_prefix!r}")
        self._server: OneServer | SlotRouter
        if isinstance(redis, RedisCluster):
            self._server = router = SlotRouter(redis, timeout=timeouts.publish)
            super().__init__(router.cluster.first.pool, timeouts, router.cluster)
        else:
            self._server = OneServer(redis, timeouts.publish)
            super().__init__(pool_of(redis), timeouts)
        self._prefix = key_prefix
        self._append_script, self._read_script = log_scripts(history, self._server.verb)
        self._age_script = age_script()
        self._calls = 0
        self._queues: dict[str, AppendQueue] = {}
        # Whether the last call had one append, and no other call was under way.
        self._alone = False
        self._appending_loop: asyncio.AbstractEventLoop | None = None
        # Until the first call has succeeded, each call checks all permissions. So a missing permission is
        # reported at once, and not hours later when a log is trimmed for the first time.
        self._may_append = self._may_read = False

    async def publish(self, channel: str, payload: str | bytes) -> int:
        """Append a payload and return how many connections listened, those of other processes too.

        Raises BrokerUnavailableError if the server is away or refuses. The payload was then appended once or
        not at all, and the caller decides whether to publish it again.
        """
        data = payload_bytes(payload)
        return (await self._append(channel, (data,))).receivers

    async def append(
        self,
        channel: str,
        payload: bytes,
        *,
        idempotency_key: str | None = None,
        expected_position: Position | None = None,
    ) -> Position:
        """Append and deliver an event. See `HistoryBroker`."""
        return (await self._append(channel, (payload,), idempotency_key, expected_position)).position

    async def append_batch(
        self, channel: str, payloads: Sequence[bytes], *, expected_position: Position
    ) -> Position:
        """Append and deliver events in order, as many as fit into one call. See `BatchBroker`."""
        return (await self._append(channel, fitting(payloads), expected=expected_position)).position

    async def read(self, channel: str, after: int, limit: int, *, max_bytes: int = READ_BYTES) -> Page:
        """Return a part of the channel's log. See `HistoryBroker`."""
        key = self._key(channel)
        arguments = (max(after, 0) + 1, max(limit, 0), new_epoch(), int(not self._may_read), max_bytes)
        try:
            reply = await self._server.run(
                Call(self._read_script, tag_of(channel), (key, f"{key}:head"), arguments)
            )
            page = page_of(reply)
        except FAILURES as error:
            raise unavailable("read", self._pool, error, keys=f"{self._prefix}*") from error
        self._may_read = True
        return page

    async def event_age(self, channel: str, position: Position) -> float | None:
        """Return how long ago an event was added, in seconds; None if the log has dropped it."""
        call = Call(self._age_script, tag_of(channel), (self._key(channel),), (position.offset,))
        try:
            age = await self._server.run(call)
        except FAILURES as error:
            raise unavailable("read", self._pool, error, keys=f"{self._prefix}*") from error
        return age / 1000 if isinstance(age, int) and age >= 0 else None

    def _live_name(self, channel: str) -> str:
        # In a cluster its slot is that of the keys.
        return tag_of(channel) if self._server.verb == "SPUBLISH" else super()._live_name(channel)

    def _key(self, channel: str) -> str:
        return log_key(self._prefix, channel)

    async def _append(
        self,
        channel: str,
        payloads: Sequence[bytes],
        key: str | None = None,
        expected: Position | None = None,
    ) -> Added:
        loop = asyncio_loop()
        # Raises UnicodeError at once for text that is not UTF-8: it would fail the other events of the call.
        (channel + (key or "")).encode()
        if self._appending_loop is not loop:
            # Events that an earlier event loop left in the queues will not be sent.
            self._queues, self._appending_loop = {}, loop
        append = Append(payloads, key, expected, loop.create_future())
        queue = self._queues.get(channel)
        if queue is not None:
            queue.waiting.append(append)
        else:
            queue = self._queues[channel] = AppendQueue(channel, self._start)
            queue.waiting.append(append)
            if self._alone:
                queue.send_next()
            else:
                # Not at once, so that one call carries all appends of this turn of the event loop.
                loop.call_soon(queue.send_next)
        try:
            added = await append.added
        except FAILURES as error:
            raise unavailable("publish", self._pool, error, keys=f"{self._prefix}*") from error
        self._may_append = True
        return added

    def _start(self, queue: AppendQueue, appends: Sequence[Append]) -> None:
        """Append events and publish them, in one step. The queue gets the reply."""
        channel, writer = queue.channel, self._server.writer
        if not appends:
            if self._queues.get(channel) is queue:
                del self._queues[channel]
            return
        self._alone = len(appends) == len(self._queues) == 1
        self._calls += 1
        key = self._key(channel)
        keys = [key, f"{key}:head"]
        if writer:
            keys.append(f"{key}:writer:{writer}")
        arguments: list[Argument] = [
            self._live_name(channel),
            new_epoch(),
            self._calls if writer else b"",
            int(not self._may_append),
        ]
        for append in appends:
            index: Argument = b""
            if append.idempotency_key is not None:
                keys.append(f"{key}:key:{append.idempotency_key}")
                # Lua counts from 1.
                index = len(keys)
            arguments += (len(append.payloads), index, str(append.expected_position or ""), *append.payloads)
        self._server.start(Call(self._append_script, tag_of(channel), keys, arguments), queue)
