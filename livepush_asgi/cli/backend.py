"""The broker behind a command: in this process, or a Redis that is known to be there."""

from urllib.parse import urlsplit

import anyio
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError

from .. import MemoryBroker
from ..app.namespace import broker_in, check_namespace
from ..brokers import Broker
from .failure import MISTYPED, Failure

# Somebody sits there and waits for an answer.
PATIENCE = 3.0


class Backend:
    """A broker, and the client that it publishes and listens with."""

    def __init__(self, broker: Broker, redis: Redis | None = None) -> None:
        self.broker = broker
        self._redis = redis

    @property
    def shared(self) -> bool:
        """Whether other processes publish there too."""
        return self._redis is not None

    async def aclose(self) -> None:
        """Close the client's connections. Call it after the last use of the broker."""
        if self._redis is not None:
            await self._redis.aclose()


def backend_at(url: str | None, namespace: str | None = None) -> Backend:
    """Return a backend on the Redis of this URL, or one inside this process. Raises Failure."""
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
    """Raise Failure for what is no URL of a Redis, and for one that does not answer."""
    check_url(url)
    anyio.run(_ping, url)


def check_url(url: str) -> None:
    """Raise Failure for what is no URL of a Redis."""
    try:
        Redis.from_url(url)
        urlsplit(url).port  # noqa: B018  (it is read to have it checked)
    except ValueError as error:
        raise Failure(
            f"{without_password(url)!r} is not a Redis URL such as redis://localhost:6379/0: {error}",
            MISTYPED,
        ) from None


def without_password(url: str) -> str:
    """Return a URL as it can be shown: without what stands before the `@`, and without its query."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "this"
    place = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{place}{parts.path}" if parts.scheme else parts.path


async def _ping(url: str) -> None:
    # Without retries: that it is away is the answer here, and the sooner the better.
    redis = Redis.from_url(url, retry=Retry(NoBackoff(), 0), socket_connect_timeout=PATIENCE)
    try:
        with anyio.fail_after(PATIENCE):
            await redis.ping()
    except AuthenticationError as error:
        raise Failure(f"Redis at {without_password(url)} refuses the login: {error}") from None
    except (TimeoutError, RedisError, OSError) as error:
        reason = str(error) or f"no answer within {PATIENCE:g} s"
        raise Failure(f"Redis at {without_password(url)} cannot be reached: {reason}") from None
    finally:
        await redis.aclose()
