"""RedisBroker: pub/sub over Redis or Valkey, with one connection to listen and one to publish."""

from redis.asyncio import Redis

from .. import Subscription
from ..mailbox import Mailbox
from .connection import FAILURES, Timeouts, live_name_of, pool_of, unavailable
from .listener import Listener
from .pipeline import Pipeline


class RedisBroker:
    """Pub/sub over a `redis.asyncio.Redis`: from a URL, TLS, a Unix socket, or Sentinel's `master_for`.

    However many channels and clients there are, one connection listens. The first subscription opens it, with
    the settings of the client, and the last one closes it. When it breaks, the broker reconnects until that
    works; each subscription then reports that messages may be lost, and goes on. Publishing takes one
    connection at a time from the client's pool, whatever the number of callers, and sends each payload at
    most once.

    Pub/sub ignores database numbers: applications that share a server need channels of their own, even in
    databases of their own. Only the component's own channels, `livepush.*`, have the database's number
    behind their names there.

    The client belongs to its owner, who closes it after the last use. All timeouts are in seconds. The
    listening connection is tested every `ping_interval`, and is given up when nothing arrives within
    `ping_timeout`. Use one broker on one event loop at a time.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        subscribe_timeout: float = 2.0,
        publish_timeout: float = 5.0,
        ping_interval: float = 10.0,
        ping_timeout: float = 5.0,
    ) -> None:
        timeouts = Timeouts(
            subscribe_timeout=subscribe_timeout,
            publish_timeout=publish_timeout,
            ping_interval=ping_interval,
            ping_timeout=ping_timeout,
        )
        self._pool = pool_of(redis)
        self._pipeline = Pipeline(redis, timeout=publish_timeout, linger=2)
        self._listener = Listener(redis, timeouts)

    @property
    def healthy(self) -> bool:
        """Whether the listening connection is up and every channel confirmed, or none is needed."""
        return self._listener.healthy

    async def aclose(self) -> None:
        """Close the idle connections of the client, for a client that nobody else uses.

        Not needed where the client's owner closes it. Call it when nobody publishes or listens any more.
        """
        await self._pool.disconnect()

    async def publish(self, channel: str, payload: str | bytes) -> int:
        """Publish a payload and return how many connections listened, those of other processes too.

        Raises BrokerUnavailableError if the server is away or refuses. The payload was then sent once or not
        at all, and the caller decides whether to publish it again.
        """
        try:
            listening = await self._pipeline.submit(b"PUBLISH", live_name_of(channel, self._pool), payload)
        except FAILURES as error:
            raise unavailable("publish", self._pool, error, channel) from error
        assert isinstance(listening, int)
        return listening

    async def subscribe(self, channel: str) -> Subscription:
        """Return a subscription, confirmed by the server.

        Raises BrokerUnavailableError if that takes longer than `subscribe_timeout`, or is refused.
        """
        mailbox = Mailbox(live_name_of(channel, self._pool), self._listener.leave)
        await self._listener.listen(mailbox)
        return mailbox
