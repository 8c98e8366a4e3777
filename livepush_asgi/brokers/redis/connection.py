"""What is used of redis-py: its pool and raw connections, and nothing above them.

Above them stand the client's retries, which send a command again when its reply was lost: a publish
would arrive up to eleven times (https://github.com/redis/redis-py, `Retry` and its defaults).
"""

import asyncio
import contextlib
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

from redis.asyncio import Redis, RedisCluster
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoPermissionError,
    OutOfMemoryError,
    RedisError,
    ResponseError,
)

from ...errors import BrokerUnavailableError
from ...event import RESERVED_PREFIX

Argument = bytes | str | int
Reply = bytes | str | int | list["Reply"] | None

# All that a server which is away, refuses or does not answer can cause. TimeoutError is an OSError.
FAILURES = (RedisError, OSError)


# What redis-py's pools say, without a class of its own for it before version 7.
POOL_USED_UP = ("Too many connections", "No connection available.")


# How the server names a command that a user may not run, and the scripts here the rules that allow it.
_FORBIDDEN_COMMAND = re.compile(r"run the '([^']+)'")
_NAMED_RULES = re.compile(r"\[(\+.*)\]")


class Connection(Protocol):
    """One connection of redis-py, which speaks RESP2 or RESP3."""

    retry: object

    async def connect(self) -> None:
        """Connect and log in, unless that is done."""

    async def disconnect(self, nowait: bool = False) -> None:
        """Close the socket."""

    def pack_commands(self, commands: Iterable[Iterable[Argument]]) -> list[bytes]:
        """Return commands as they are sent."""

    async def send_packed_command(self, command: Iterable[bytes], check_health: bool = True) -> None:
        """Send what `pack_commands` returned."""

    async def read_response(
        self,
        disable_decoding: bool = False,
        timeout: float | None = None,
        *,
        push_request: bool | None = False,
    ) -> Reply:
        """Return the next reply, or None after `timeout` seconds. Raises ResponseError for an error reply."""


@runtime_checkable
class Pool(Protocol):
    """redis-py's connection pool, any kind of it, or what stands in for one."""

    @property
    def connection_kwargs(self) -> Mapping[str, object]:
        """The client's settings."""

    def make_connection(self) -> Connection:
        """Return a new connection with the client's settings, which the pool does not keep."""

    async def get_connection(self) -> Connection:
        """Return an idle or a new connection, ready to be used."""

    async def disconnect(self) -> None:
        """Close all connections."""

    # Any, because the pool names its own class here, and a Connection is only the shape of one.
    async def release(self, connection: Any) -> None:
        """Take a connection back."""


def pool_of(redis: Redis | Pool) -> Pool:
    """Return the client's pool. Raises TypeError for what is not redis-py's asyncio client."""
    if isinstance(redis, Pool):
        return redis
    if isinstance(redis, RedisCluster):
        raise TypeError("a RedisCluster has no one connection to listen on; pass a Redis to one of its nodes")
    if not isinstance(redis, Redis):
        raise TypeError(
            f"redis.asyncio.Redis is needed, not {type(redis).__module__}'s {type(redis).__name__}"
        )
    pool: Pool = redis.connection_pool
    return pool


def live_name_of(channel: str, pool: Pool) -> str:
    """Return the name on which a channel is published.

    Pub/sub knows no databases, so a channel of the component's own has the number of the database in its
    name: two applications in two databases of a server do not get each other's commands.
    """
    # It may have a namespace before it.
    if RESERVED_PREFIX in channel and channel.rpartition(":")[2].startswith(RESERVED_PREFIX):
        return f"{channel}@{pool.connection_kwargs.get('db') or 0}"
    return channel


def address_of(pool: Pool) -> str:
    """Return where the server is, for messages; without user name and password."""
    settings = pool.connection_kwargs
    service = getattr(pool, "service_name", None)
    if service is not None:
        return f"Redis service {service!r}"
    if "path" in settings:
        return f"Redis at {settings['path']}"
    return f"Redis at {settings.get('host', 'localhost')}:{settings.get('port', 6379)}"


async def send(connection: Connection, data: bytes) -> None:
    """Send what is packed already. Raises one of FAILURES."""
    _, writer = _streams_of(connection)
    if writer is None:
        await connection.send_packed_command([data], check_health=False)
        return
    # redis-py would make a task of it before Python 3.12. No health check either: that would be another
    # command with another chance of a retry.
    writer.write(data)
    if writer.transport.get_write_buffer_size():
        # Waits until there is room for more, within the client's own timeout.
        await connection.send_packed_command([], check_health=False)


def patience(connection: Connection, timeout: float) -> float | None:
    """Return the timeout to read a reply with, where `timeout` seconds are all that there is for many."""
    # A timer for each reply costs as much as reading it. Only one that is shorter can have anything to say.
    own = getattr(connection, "socket_timeout", None)
    return math.inf if own is not None and own >= timeout else None


async def drop(connection: Connection) -> None:
    """Close a connection at once. Never waits for the other side, never raises but when cancelled."""
    _, writer = _streams_of(connection)
    # A connection that an earlier event loop left behind raises RuntimeError.
    with contextlib.suppress(RuntimeError, *FAILURES):
        if writer is not None:
            # Closing politely waits until everything is sent, which on a dead connection is for ever.
            writer.transport.abort()
        await connection.disconnect(nowait=True)


def is_broken(connection: Connection) -> bool:
    """Whether the other side has closed or reset a connection while it was idle.

    The pool hands such a one out: it does not look for a reset, and with RESP3 not for an end either.
    """
    reader, writer = _streams_of(connection)
    return (reader is not None and reader.at_eof()) or (writer is not None and writer.is_closing())


def _streams_of(connection: Connection) -> tuple[asyncio.StreamReader | None, asyncio.StreamWriter | None]:
    # redis-py shows them nowhere. Should they move, closing becomes polite, and the first command after a
    # restart of the server fails: no more than that.
    reader, writer = getattr(connection, "_reader", None), getattr(connection, "_writer", None)
    return (
        reader if isinstance(reader, asyncio.StreamReader) else None,
        writer if isinstance(writer, asyncio.StreamWriter) else None,
    )


def no_answer(timeout: float) -> TimeoutError:
    """Return the error of a deadline that has passed."""
    return TimeoutError(f"no answer within {timeout:g} s")


def unavailable(
    attempt: str, pool: Pool, cause: BaseException | None, channel: str = "*", keys: str = "*"
) -> BrokerUnavailableError:
    """Return the error to raise: what was attempted, where, why it failed and what may help.

    `channel` and `keys` are the patterns of what the client's user needs access to.
    """
    reason = str(cause) if cause is not None and str(cause) else type(cause).__name__
    if _is_forbidden(cause):
        user = pool.connection_kwargs.get("username") or "default"
        remedy = f"allow it: ACL SETUSER {user} {_rules(reason, channel, keys)}"
    else:
        remedy = _remedy(cause)
    return BrokerUnavailableError(f"cannot {attempt}: {address_of(pool)}: {reason}; {remedy}")


def _rules(refusal: str, channel: str, keys: str) -> str:
    if named := _NAMED_RULES.search(refusal):
        return named[1]
    if command := _FORBIDDEN_COMMAND.search(refusal):
        return f"+{command[1]}"
    return f"~{keys}" if "access a key" in refusal else f"&{channel}"


def _is_forbidden(cause: BaseException | None) -> bool:
    # To redis-py it is another error where a script says it.
    return isinstance(cause, NoPermissionError) or (
        isinstance(cause, ResponseError) and str(cause).startswith("ACL failure in script")
    )


def _remedy(cause: BaseException | None) -> str:
    # The order counts: to redis-py, wrong credentials and a server that is loading are connection errors.
    if isinstance(cause, AuthenticationError):
        return "check the user name and the password of the client"
    if isinstance(cause, OutOfMemoryError):
        return "the server is full: raise its maxmemory, or keep less (History)"
    if isinstance(cause, BusyLoadingError):
        return "it is reading its data and will be there soon"
    if isinstance(cause, ResponseError):
        return "the server is there and refuses"
    if str(cause) in POOL_USED_UP:
        return "the client's pool is used up: raise its max_connections"
    return "is it running, is the address right, and can it be reached from here?"
