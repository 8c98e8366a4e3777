"""RedisTickets: tickets on a Redis or Valkey, for several workers. It needs redis-py."""

from asyncio import Semaphore

from redis.asyncio import Redis, RedisCluster
from redis.exceptions import RedisError

from ...errors import AuthorizationUnavailableError
from .tickets import TTL, Tickets

# How many tickets a process asks for at once. Each takes a connection, and the pool of redis-py has 100: in a
# wave of clients the others wait for one.
AT_ONCE = 32


class RedisTickets(Tickets):
    """Tickets on a Redis (6.2 or later) or Valkey: a stream is opened in any worker, and in one.

    The client is a `Redis` or a `RedisCluster` of `redis.asyncio`; this object does not close it. Each ticket
    is a key that begins with `key_prefix`, and that the server forgets after `ttl` seconds. `issue` and
    `redeem` raise AuthorizationUnavailableError while the server is away.
    """

    def __init__(
        self, redis: Redis | RedisCluster, *, ttl: float = TTL, key_prefix: str = "livepush:ticket:"
    ) -> None:
        super().__init__(ttl=ttl)
        if not isinstance(redis, (Redis, RedisCluster)):
            raise TypeError(
                "RedisTickets takes a client of redis.asyncio, such as Redis.from_url(...), not "
                f"{type(redis).__module__}.{type(redis).__name__}"
            )
        self._redis = redis
        self._prefix = key_prefix
        self._at_once = Semaphore(AT_ONCE)

    async def put(self, key: str, subject: str) -> None:
        """Store a text for `ttl` seconds."""
        try:
            async with self._at_once:
                await self._redis.set(self._prefix + key, subject, px=max(round(self.ttl * 1000), 1))
        except (RedisError, OSError) as error:
            raise AuthorizationUnavailableError("Redis did not take the ticket") from error

    async def take(self, key: str) -> str | None:
        """Remove the text of a key and return it, or None."""
        try:
            async with self._at_once:
                found = await self._redis.getdel(self._prefix + key)
        except (RedisError, OSError) as error:
            raise AuthorizationUnavailableError("Redis was asked for a ticket and did not answer") from error
        return found.decode() if isinstance(found, bytes) else found
