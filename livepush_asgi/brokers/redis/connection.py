"""Helpers for the part of redis-py that is used here: its pools and raw connections.

redis-py's clients are not used, because they retry: a command whose reply was lost is sent again, and a
publish would arrive up to eleven times. redis-py's `PubSub` does not notice a server that stops answering,
and after a reconnect one refused channel leaves all others unsubscribed.
"""

import asyncio
import contextlib
import os
import re
from weakref import WeakSet

from redis import Redis as BlockingRedis
from redis import RedisCluster as BlockingCluster
from redis import exceptions
from redis.asyncio import ConnectionPool, Redis, RedisCluster
from redis.asyncio.connection import AbstractConnection

from ...errors import BrokerUnavailableError
from ...wire.event import RESERVED_PREFIX
from ..timeouts import no_answer

_pools: WeakSet[ConnectionPool] = WeakSet()
# The state of the pools that a forked process has inherited. It is kept: the parent process uses the
# connections, and closing or collecting them would take them out of the selector that both processes share.
_inherited: list[object] = []

Argument = bytes | str | int
Reply = bytes | str | int | list["Reply"] | None

# The errors of a server that is away, refuses or does not answer. TimeoutError is an OSError.
FAILURES = (exceptions.RedisError, OSError)

# redis-py has no exception class for an exhausted pool before version 7, only these texts.
_EXHAUSTED_POOL = ("Too many connections", "No connection available.")
# The first that fits: in redis-py wrong credentials and a server that is loading are connection errors.
_REMEDIES = (
    (exceptions.AuthenticationError, "check the user name and the password of the client"),
    (exceptions.OutOfMemoryError, "the server is full: raise its maxmemory, or keep less (History)"),
    (exceptions.BusyLoadingError, "it is loading its data and will be there soon"),
    (exceptions.ResponseError, "the server is there and refuses"),
    (object, "is it running, is the address right, and can it be reached from here?"),
)
# The beginning of a message of a subscription up to its channel, and that of a text.
_MESSAGE = re.compile(rb"[>*]3\r\n\$\d\r\ns?message\r\n\$(\d+)\r\n")
_BULK = re.compile(rb"\$(\d+)\r\n")
_PYTHON_PARSERS = ("_AsyncRESP2Parser", "_AsyncRESP3Parser")
# The server names a command that the user may not run; the scripts here name the ACL rules that allow it.
_FORBIDDEN_COMMAND = re.compile(r"run the '([^']+)'")
_NAMED_RULES = re.compile(r"\[(\+.*)\]")


def pool_of(redis: Redis | ConnectionPool) -> ConnectionPool:
    """Return the client's pool. Raises TypeError unless it is redis-py's asyncio client of one server."""
    if isinstance(redis, Redis):
        redis = redis.connection_pool
    if isinstance(redis, ConnectionPool):
        _pools.add(redis)
        return redis
    raise TypeError(f"a redis.asyncio.Redis is needed, {_mistake(redis)}")


def _mistake(client: object) -> str:
    """Return what `client` is, and the fix. Leaves out the text of a URL, which may have a password."""
    if isinstance(client, RedisCluster):
        return (
            "and a RedisCluster has no one connection to listen on: take RedisStreamsBroker, or pass a Redis "
            "to one of its nodes"
        )
    if isinstance(client, str):
        return "not a URL: pass Redis.from_url(url)"
    if isinstance(client, type):
        name = client.__name__
        return f"and {name} is a class: pass {name}.from_url('redis://localhost')"
    if isinstance(client, BlockingRedis | BlockingCluster):
        return "and this client blocks the event loop: import its class from redis.asyncio"
    return f"not a {type(client).__module__}.{type(client).__name__}"


def live_name_of(channel: str, pool: ConnectionPool) -> str:
    """Return the name under which a channel is published.

    Pub/sub ignores database numbers. So the component's own channels get the number behind their names:
    applications in two databases of a server must not receive each other's commands.
    """
    # A namespace may precede the reserved prefix.
    if RESERVED_PREFIX in channel and channel.rpartition(":")[2].startswith(RESERVED_PREFIX):
        return f"{channel}@{pool.connection_kwargs.get('db') or 0}"
    return channel


def address_of(pool: ConnectionPool) -> str:
    """Return where the server is, for messages; without user name and password."""
    settings = pool.connection_kwargs
    service = getattr(pool, "service_name", None)
    if service is not None:
        return f"Redis service {service!r}"
    if "path" in settings:
        return f"Redis at {settings['path']}"
    return f"Redis at {settings.get('host', 'localhost')}:{settings.get('port', 6379)}"


async def send(connection: AbstractConnection, data: bytes) -> None:
    """Send packed commands. Raises one of FAILURES."""
    _, writer = _streams_of(connection)
    if writer is None:
        await connection.send_packed_command([data], check_health=False)
        return
    # Faster than redis-py, which starts a task before Python 3.12, and without its retried health check.
    writer.write(data)
    if writer.transport.get_write_buffer_size():
        # Waits until the buffer has room, for at most the client's own timeout.
        await connection.send_packed_command([], check_health=False)


def raise_if_cancelled() -> None:
    """Raise CancelledError if the task was cancelled. Otherwise the end of its event loop would wait for it.

    On Python 3.11 `asyncio.wait_for`, which redis-py uses, may swallow a cancellation:
    https://github.com/python/cpython/issues/86296
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def drop(connection: AbstractConnection) -> None:
    """Close a connection without waiting for the server. Raises CancelledError only."""
    _, writer = _streams_of(connection)
    # A connection of a closed event loop raises RuntimeError.
    if writer is not None:
        with contextlib.suppress(RuntimeError):
            # `close` would wait until everything is sent, which never happens on a dead connection.
            writer.transport.abort()
    with contextlib.suppress(RuntimeError, *FAILURES):
        await connection.disconnect(nowait=True)


def is_broken(connection: AbstractConnection) -> bool:
    """Return whether an idle connection is of no use, which redis-py's pool may overlook.

    The server closed or reset it, or it is of an earlier event loop. Such a connection still sends, and the
    server executes the command, but the reply cannot be read.
    """
    reader, writer = _streams_of(connection)
    loop = asyncio.get_running_loop()
    return getattr(reader, "_loop", loop) is not loop or (
        (reader is not None and reader.at_eof()) or (writer is not None and writer.is_closing())
    )


def _streams_of(
    connection: AbstractConnection,
) -> tuple[asyncio.StreamReader | None, asyncio.StreamWriter | None]:
    # redis-py has no public access to them. Without them, closing waits for the server, and the first
    # command after a restart of the server fails.
    return getattr(connection, "_reader", None), getattr(connection, "_writer", None)


class Arrived:
    """What has arrived on a connection, for the frequent replies that have arrived whole.

    redis-py's parser in Python takes ten times as long for them. It reads the stream up to the end of a reply
    and no further, so that both can take turns. Its parser in C reads further, and is as fast.
    """

    __slots__ = ("_buffer", "_reader")

    def __init__(self, connection: AbstractConnection) -> None:
        reader, parser = _streams_of(connection)[0], getattr(connection, "_parser", None)
        buffer = getattr(reader, "_buffer", None)
        is_usable = type(parser).__name__ in _PYTHON_PARSERS and isinstance(buffer, bytearray)
        self._buffer = buffer if is_usable else None
        self._reader = reader

    async def message(self) -> tuple[bytes, bytes] | None:
        """Take a message of a subscription: its channel and its payload. None if it has not arrived."""
        buffer = self._buffer
        found = _MESSAGE.match(buffer) if buffer else None
        if buffer is None or found is None:
            return None
        name_ends = found.end() + int(found[1])
        size = _BULK.match(buffer, name_ends + 2)
        if size is None or len(buffer) < size.end() + int(size[1]) + 2:
            return None
        start, payload_starts = found.end(), size.end()
        data = await self._take(payload_starts + int(size[1]) + 2)
        return data[start:name_ends], data[payload_starts:-2]

    async def text(self) -> bytes | None:
        """Take a reply that is a text. None if another one has arrived, or none."""
        buffer = self._buffer
        found = _BULK.match(buffer) if buffer else None
        if buffer is None or found is None or len(buffer) < found.end() + int(found[1]) + 2:
            return None
        start = found.end()
        return (await self._take(start + int(found[1]) + 2))[start:-2]

    async def _take(self, size: int) -> bytes:
        assert self._reader is not None
        # Never waits.
        return await self._reader.readexactly(size)


def named_timeout(error: Exception, timeout: float) -> Exception:
    """Return the error. A TimeoutError of asyncio has no text, and is replaced by one that has."""
    return no_answer(timeout) if isinstance(error, TimeoutError) and not str(error) else error


def unavailable(
    attempt: str, pool: ConnectionPool, cause: BaseException | None, channel: str = "*", keys: str = "*"
) -> BrokerUnavailableError:
    """Return the error to raise. It names the attempt, the server, the cause and the likely fix.

    `channel` and `keys` are the patterns that the client's user needs access to.
    """
    reason = str(cause) if cause is not None and str(cause) else type(cause).__name__
    if is_forbidden(cause):
        user = pool.connection_kwargs.get("username") or "default"
        remedy = f"allow it: ACL SETUSER {user} {_missing_rules(reason, channel, keys)}"
    elif reason in _EXHAUSTED_POOL:
        remedy = "the client's pool is used up: raise its max_connections"
    else:
        remedy = next(remedy for kind, remedy in _REMEDIES if isinstance(cause, kind))
    error = BrokerUnavailableError(f"cannot {attempt}: {address_of(pool)}: {reason}; {remedy}")
    error.refused = is_forbidden(cause)
    return error


def is_forbidden(cause: BaseException | None) -> bool:
    """Return whether the user lacks a permission, which may be that for one channel or key."""
    return isinstance(cause, exceptions.NoPermissionError) or str(cause).startswith("ACL failure in script")


def _missing_rules(refusal: str, channel: str, keys: str) -> str:
    if named := _NAMED_RULES.search(refusal):
        return named[1]
    if command := _FORBIDDEN_COMMAND.search(refusal):
        return f"+{command[1]}"
    return f"~{keys}" if "access a key" in refusal else f"&{channel}"


def _reset_after_fork() -> None:
    """Let a forked process open connections of its own."""
    for pool in list(_pools):
        _inherited.append(dict(vars(pool)))
        pool.reset()
        # The parent may have held it at that moment.
        pool._lock = asyncio.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
