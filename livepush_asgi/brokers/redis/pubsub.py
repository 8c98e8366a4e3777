"""RedisBroker: pub/sub over Redis or Valkey, with one connection to listen and one to publish."""

from redis.asyncio import Redis

from ...broker import Subscription
from ..mailbox import Mailbox
from .connection import FAILURES, live_name_of, pool_of, unavailable
from .listener import Listener, Patience
from .pipeline import Batch


class RedisBroker:
    """Pub/sub over a `redis.asyncio.Redis`: from a URL, TLS, a Unix socket, or Sentinel's `master_for`.

    However many channels and clients, there is one listening connection. It is opened with the
    settings of the client by the first subscription, and closed with the last; when it breaks, it is
    made again until that works, each subscription is told that messages may be lost, and goes on.
    Publishing takes one connection at a time from the client's pool, whatever the number of callers,
    and sends each payload at most once.

    Pub/sub knows no databases: applications that share a server need channels of their own, even in
    databases of their own. Only the component's own channels, `livepush.*`, have the database's number
    behind their names there.

    The client stays its owner's: close it after the last use. All timeouts are in seconds. A
    connection on which nothing came for `ping_interval` is tested, and is given up after
    `ping_timeout` without an answer. Use one broker on one event loop at a time.
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
        if not publish_timeout > 0:
            raise ValueError(f"publish_timeout is in seconds and more than 0, not {publish_timeout!r}")
        self._pool = pool_of(redis)
        self._batch = Batch(redis, timeout=publish_timeout, linger=2)
        self._listener = Listener(
            redis,
            Patience(
                subscribe_timeout=subscribe_timeout, ping_interval=ping_interval, ping_timeout=ping_timeout
            ),
        )

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

        Raises BrokerUnavailableError if the server is away or refuses. It was then sent once or not at
        all: what to do about it is the caller's decision.
        """
        try:
            listening = await self._batch.call(b"PUBLISH", live_name_of(channel, self._pool), payload)
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
