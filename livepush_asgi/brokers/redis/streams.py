"""RedisStreamsBroker: pub/sub over Redis or Valkey with history, a log of each channel in a stream."""

from redis.asyncio import Redis, RedisCluster

from ...settings import value_or_default
from ...wire.cursor import Position
from .. import READ_BYTES, Page
from ..history import History
from ..timeouts import BrokerTimeouts
from .connection import FAILURES, Reply, live_name_of, pool_of, unavailable
from .listener import Listener
from .log import Added, Addition, Logs, Server
from .pipeline import Pipeline, Receiver
from .pubsub import ListeningBroker
from .script import Call
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

    def __init__(
        self,
        redis: Redis | RedisCluster,
        *,
        history: History | None = None,
        key_prefix: str = "livepush:log:",
        timeouts: BrokerTimeouts | None = None,
    ) -> None:
        timeouts = value_or_default("timeouts", timeouts, BrokerTimeouts)
        history = value_or_default("history", history, History)
        if "{" in key_prefix or "}" in key_prefix:
            raise ValueError(f"key_prefix may have no braces, which enclose the channel: {key_prefix!r}")
        self._server: Server
        if isinstance(redis, RedisCluster):
            self._server = router = SlotRouter(redis, timeout=timeouts.publish)
            super().__init__(
                router.cluster.first.pool, Listener(router.cluster.first.pool, timeouts, router.cluster)
            )
        else:
            self._server = _OneServer(redis, timeouts.publish)
            super().__init__(pool_of(redis), Listener(pool_of(redis), timeouts))
        self._logs = Logs(self._server, history, key_prefix)
        self._keys = f"{key_prefix}*"

    async def publish(self, channel: str, payload: str | bytes) -> int:
        """Append a payload and return how many connections listened, those of other processes too.

        Raises BrokerUnavailableError if the server is away or refuses. The payload was then appended once or
        not at all, and the caller decides whether to publish it again.
        """
        data = payload.encode() if isinstance(payload, str) else bytes(payload)
        return (await self._append(channel, Addition(data))).receivers

    async def append(
        self,
        channel: str,
        payload: bytes,
        *,
        idempotency_key: str | None = None,
        expected_position: Position | None = None,
    ) -> Position:
        """Append and deliver an event. See `HistoryBroker`."""
        return (await self._append(channel, Addition(payload, idempotency_key, expected_position))).position

    async def read(self, channel: str, after: int, limit: int, *, max_bytes: int = READ_BYTES) -> Page:
        """Return a part of the channel's log. See `HistoryBroker`."""
        try:
            return await self._logs.read(channel, after, limit, max_bytes)
        except FAILURES as error:
            raise unavailable("read", self._pool, error, keys=self._keys) from error

    def _live_name(self, channel: str) -> str:
        return self._server.live_name(channel)

    async def _append(self, channel: str, addition: Addition) -> Added:
        try:
            return await self._logs.append(channel, addition)
        except FAILURES as error:
            raise unavailable("publish", self._pool, error, keys=self._keys) from error


class _OneServer:
    """Runs scripts on one server. A call whose reply is lost is not repeated."""

    verb = "PUBLISH"
    writer = ""

    def __init__(self, redis: Redis, timeout: float) -> None:
        self._pool = pool_of(redis)
        self._pipeline = Pipeline(redis, timeout=timeout, idle_turns=2)

    def live_name(self, channel: str) -> str:
        return live_name_of(channel, self._pool)

    def start(self, call: Call, receiver: Receiver) -> None:
        call.script.send(self._pipeline, call.keys, call.arguments, receiver)

    async def run(self, call: Call) -> Reply:
        return await call.script.run(self._pipeline, call.keys, call.arguments)
