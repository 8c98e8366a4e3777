"""The option `--redis`: checked before a command begins, and shown without its password."""

from urllib.parse import urlsplit

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError, TimeoutError
from redis.retry import Retry

from .failure import MISTYPED, Failure

# In seconds. A person waits at the terminal.
PING_TIMEOUT = 3.0


def check_server(url: str) -> None:
    """Raise Failure if `url` is no Redis URL, or if the Redis does not answer."""
    shown = without_password(url)
    try:
        # Without retries: if the server is away, the command says so at once.
        timeouts = {"socket_connect_timeout": PING_TIMEOUT, "socket_timeout": PING_TIMEOUT}
        redis = Redis.from_url(url, retry=Retry(NoBackoff(), 0), **timeouts)
        urlsplit(url).port  # noqa: B018  (reading the port checks it)
    except ValueError as error:
        example = "redis://localhost:6379/0"
        raise Failure(f"{shown!r} is not a Redis URL such as {example}: {error}", MISTYPED) from None
    try:
        with redis:
            redis.ping()
    except AuthenticationError as error:
        raise Failure(f"Redis at {shown} refuses the login: {error}") from None
    except TimeoutError:
        raise Failure(f"Redis at {shown} cannot be reached: no answer within {PING_TIMEOUT:g} s") from None
    except (RedisError, OSError) as error:
        raise Failure(f"Redis at {shown} cannot be reached: {error}") from None


def without_password(url: str) -> str:
    """Return a URL to show: without the user and the password, and without the query."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "this"
    place = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{place}{parts.path}" if parts.scheme else parts.path
