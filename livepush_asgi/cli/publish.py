"""Publishing one event from the command line."""

import sys

import anyio
from redis.asyncio import Redis

from .. import Event, InvalidEventError
from ..brokers.history import History
from ..errors import BrokerUnavailableError
from ..event import to_payload
from ..namespace import broker_in, check_namespace
from ..request import check_channel
from .backend import check_server
from .failure import MISTYPED, Failure

# An outbox holds so much by default: what is larger would not reach a page.
DATA_LIMIT = 1024 * 1024
# An event is appended to the channel's log, in case the application keeps one. These bounds are wider than
# those of most applications, so that publishing from a terminal does not trim their logs.
HISTORY = History(events=1_000_000, size=2**30, age=86_400.0)


def publish_once(
    channel: str, data: str, event: str | None, id: str | None, url: str, namespace: str | None = None
) -> int:
    """Publish one event and return how many connections listened to its channel. Raises Failure.

    It reaches applications with RedisStreamsBroker, which deliver what is in the log, and those with
    RedisBroker, which do not look at the log. Needs Redis 7.0, or Valkey.
    """
    try:
        check_channel(channel)
        check_namespace(namespace)
        block = Event(_read_input() if data == "-" else data, event=event, id=id).encode()
    except (InvalidEventError, ValueError) as error:
        raise Failure(str(error), MISTYPED) from None
    check_server(url)
    return anyio.run(_publish, url, namespace, channel, block)


async def _publish(url: str, namespace: str | None, channel: str, block: bytes) -> int:
    from ..brokers.redis import RedisStreamsBroker

    async with Redis.from_url(url) as redis:
        try:
            broker = broker_in(RedisStreamsBroker(redis, history=HISTORY), namespace)
            return await broker.publish(channel, to_payload(block))
        except BrokerUnavailableError as error:
            raise Failure(str(error)) from None


def _read_input() -> bytes:
    if sys.stdin is None or sys.stdin.isatty():
        raise Failure("no data: give it as an argument, or send it to standard input", MISTYPED)
    data = sys.stdin.buffer.read(DATA_LIMIT + 1)
    if len(data) > DATA_LIMIT:
        raise Failure(
            f"standard input has more than the {DATA_LIMIT:,} bytes that an event may have", MISTYPED
        )
    return data.removesuffix(b"\n").removesuffix(b"\r")
