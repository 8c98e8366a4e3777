"""RedisBroker: pub/sub over Redis or Valkey, with one connection to listen and one to publish."""

from redis.asyncio import Redis

from ...settings import value_or_default
from ...wire.event import payload_bytes
from ..timeouts import BrokerTimeouts
from .connection import FAILURES, pool_of, unavailable
from .listening import ListeningBroker
from .pipeline import Pipeline


class RedisBroker(ListeningBroker):
    """Pub/sub over a `redis.asyncio.Redis`: from a URL, TLS, a Unix socket, or Sentinel's `master_for`.

    However many channels and clients there are, one connection listens. The first subscription opens it, with
    the settings of the client, and the last one closes it. When it breaks, the broker reconnects until that
    works; each subscription then reports that messages may be lost, and goes on. Publishing takes one
    connection at a time from the client's pool, whatever the number of callers, and sends each payload at
    most once.

    Pub/sub ignores database numbers: applications that share a server need channels of their own, even in
    databases of their own. Only the component's own channels, `livepush.*`, have the database's number
    behind their names there.

    The application closes the client, after the last use of the broker. `timeouts` says how long the broker
    waits for the server. Use one broker on one event loop at a time.
    """

    def __init__(self, redis: Redis, *, timeouts: BrokerTimeouts | None = None) -> None:
        timeouts = value_or_default("timeouts", timeouts, BrokerTimeouts)
        super().__init__(pool_of(redis), timeouts)
        self._pipeline = Pipeline(redis, timeout=timeouts.publish, idle_turns=2)

    async def publish(self, channel: str, payload: str | bytes) -> int:
        """Publish a payload and return how many connections listened, those of other processes too.

        Raises BrokerUnavailableError if the server is away or refuses. The payload was then sent once or not
        at all, and the caller decides whether to publish it again.
        """
        try:
            listening = await self._pipeline.submit(
                b"PUBLISH", self._live_name(channel), payload_bytes(payload)
            )
        except FAILURES as error:
            raise unavailable("publish", self._pool, error, channel) from error
        assert isinstance(listening, int)
        return listening
