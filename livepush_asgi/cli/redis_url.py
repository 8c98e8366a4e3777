"""The option `--redis`: checked before a command begins, and shown without its password."""

from urllib.parse import urlsplit

import anyio
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError

from .failure import MISTYPED, Failure

# In seconds. A person waits at the terminal.
PING_TIMEOUT = 3.0


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
