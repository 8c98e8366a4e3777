"""The broker behind a command: in memory, or over a Redis that answered when the command began."""

from urllib.parse import urlsplit

import anyio
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError

from .. import MemoryBroker
from ..broker import Broker
from ..namespace import broker_in, check_namespace
from .failure import MISTYPED, Failure

# In seconds. A person waits at the terminal.
PING_TIMEOUT = 3.0


class Backend:
    """A broker, and its Redis client if it has one."""

    def __init__(self, broker: Broker, redis: Redis | None = None) -> None:
        self.broker = broker
        self._redis = redis

    @property
    def shared(self) -> bool:
        """Whether other processes may publish through this broker."""
        return self._redis is not None

    async def aclose(self) -> None:
        """Close the connections. Call it after the last use of the broker."""
        if self._redis is not None:
            await self._redis.aclose()


def backend_at(url: str | None, namespace: str | None = None) -> Backend:
    """Return a backend over the Redis at `url`, or in memory without one. Raises Failure."""
    try:
        check_namespace(namespace)
    except ValueError as error:
        raise Failure(str(error), MISTYPED) from None
    if url is None:
        return Backend(MemoryBroker())
    check_server(url)
    from ..brokers.redis import RedisBroker

    redis = Redis.from_url(url)
    return Backend(broker_in(RedisBroker(redis), namespace), redis)


def check_server(url: str) -> None:
    """Raise Failure if `url` is no Redis URL, or if the Redis does not answer."""
    try:
        Redis.from_url(url)
        urlsplit(url).port  # noqa: B018  (reading the port checks it)
    except ValueError as error:
        raise Failure(
            f"{without_password(url)!r} is not a Redis URL such as redis://localhost:6379/0: {error}",
            MISTYPED,
        ) from None
    anyio.run(_ping, url)


def without_password(url: str) -> str:
    """Return a URL to show: without the user and the password, and without the query."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "this"
    place = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{place}{parts.path}" if parts.scheme else parts.path


async def _ping(url: str) -> None:
    # Without retries: if the server is away, the command says so at once.
    redis = Redis.from_url(url, retry=Retry(NoBackoff(), 0), socket_connect_timeout=PING_TIMEOUT)
    try:
        with anyio.fail_after(PING_TIMEOUT):
            await redis.ping()
    except AuthenticationError as error:
        raise Failure(f"Redis at {without_password(url)} refuses the login: {error}") from None
    except (TimeoutError, RedisError, OSError) as error:
        reason = str(error) or f"no answer within {PING_TIMEOUT:g} s"
        raise Failure(f"Redis at {without_password(url)} cannot be reached: {reason}") from None
    finally:
        await redis.aclose()
