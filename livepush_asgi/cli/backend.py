"""The broker behind a command: in this process, or a Redis that is known to be there."""

from urllib.parse import urlsplit, urlunsplit

import anyio
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError

from .. import MemoryBroker
from ..broker import Broker
from .failure import MISTYPED, Failure

# Somebody sits there and waits for an answer.
PATIENCE = 3.0


def broker_at(url: str | None) -> Broker:
    """Return a broker on the Redis of this URL, or one inside this process. Raises Failure."""
    if url is None:
        return MemoryBroker()
    check_url(url)
    anyio.run(_ping, url)
    from ..brokers.redis import RedisBroker

    return RedisBroker(Redis.from_url(url))


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
    return urlunsplit((parts.scheme, place, parts.path, "", ""))


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
