"""Publish from a terminal: one event, or one event for each line of standard input."""

import asyncio
import os
import select
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import takewhile
from math import ceil
from types import FrameType

import anyio
from anyio.from_thread import start_blocking_portal
from redis.asyncio import Redis

from .. import Event, RedisStreamsBroker
from ..app.namespace import broker_in, check_namespace
from ..brokers import Broker
from ..brokers.history import History
from ..brokers.redis.connection import FAILURES, pool_of, unavailable
from ..brokers.redis.log import KEY_PREFIX, log_key
from ..errors import BrokerUnavailableError
from ..grant import check_channel
from ..wire.event import to_payload
from .failure import FORCED, MISTYPED, Failure, checking_arguments
from .redis_url import check_server

# In bytes. A stream's outbox holds this much by default; a larger event would not reach a page.
DATA_LIMIT = 1024 * 1024
# In bytes. What is read from standard input at once is published together.
READ_SIZE = 64 * 1024
# An event is appended to the channel's log, in case the application keeps one. These bounds are wider than
# those of most applications, so that publishing from a terminal does not trim their logs.
DEFAULT_AGE = 86_400.0
HISTORY = History(events=1_000_000, size=2**30, age=DEFAULT_AGE)
# In milliseconds.
MINUTE = 60_000
# The reply of PTTL for a key that never expires. It is -2 for one that is not there.
ENDLESS = -1


@dataclass(frozen=True, slots=True)
class Target:
    """The channel to publish on, and the Redis and the namespace of the application. Raises Failure.

    Events reach applications with RedisStreamsBroker, which deliver what is in the log, and those with
    RedisBroker, which do not look at the log. Needs Redis 7.0, or Valkey.
    """

    channel: str
    redis_url: str
    namespace: str | None = None

    def __post_init__(self) -> None:
        with checking_arguments():
            check_channel(self.channel)
            check_namespace(self.namespace)

    @asynccontextmanager
    async def log(self) -> AsyncIterator["Log"]:
        """Yield the log of the channel, and close its connections afterwards."""
        async with Redis.from_url(self.redis_url) as redis:
            yield Log(self, redis)


class Log:
    """The log of a channel. It is kept for as long as the application keeps it, or for longer."""

    def __init__(self, target: Target, redis: Redis) -> None:
        name = target.channel if target.namespace is None else f"{target.namespace}:{target.channel}"
        self._key = log_key(KEY_PREFIX, name)
        self._target = target
        self._redis = redis
        self._brokers: dict[float | None, Broker] = {}

    async def broker(self) -> Broker:
        """Return a broker whose history has the age of the log as it is now.

        Raises BrokerUnavailableError.
        """
        age = await self._age()
        if age not in self._brokers:
            broker = RedisStreamsBroker(self._redis, history=replace(HISTORY, age=age))
            self._brokers[age] = broker_in(broker, self._target.namespace)
        return self._brokers[age]

    async def _age(self) -> float | None:
        """Return the age that the application's History has, or a longer one; None if it has none.

        The head of a log is kept for twice the age, from the last event or read on. Applications read about
        every 40 seconds, so the age is whole minutes above what can be seen.
        """
        try:
            log, head = await self._redis.pttl(self._key), await self._redis.pttl(f"{self._key}:head")
        except FAILURES as error:
            pool = pool_of(self._redis)
            raise unavailable("publish", pool, error, keys=f"{KEY_PREFIX}*") from error
        if ENDLESS in (log, head):
            return None
        return max(DEFAULT_AGE, 60.0 * ceil(max(log, head / 2) / MINUTE))


def publish_event(target: Target, data: str, name: str | None, id: str | None) -> int:
    """Publish one event and return how many connections listened to its channel. Raises Failure."""
    payload = _payload(data, name, id)
    check_server(target.redis_url)

    async def publish() -> int:
        async with target.log() as log:
            return await (await log.broker()).publish(target.channel, payload)

    try:
        return anyio.run(publish)
    except BrokerUnavailableError as error:
        raise Failure(str(error)) from None


def publish_lines(target: Target, name: str | None) -> tuple[int, bool]:
    """Publish an event for each line of standard input, in order, to its end or to SIGINT or SIGTERM.

    Return the number of events, and whether the input came to its end. A signal lets the lines be published
    that were read; a second one ends the process. Raises Failure for a line that cannot be published.
    """
    check_input()
    _payload("", name)
    check_server(target.redis_url)
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(target.log()) as log:

        def publish(lines: list[str]) -> tuple[int, Exception | None]:
            payloads = [_payload(line, name) for line in lines]
            return portal.call(_publish_together, log, target.channel, payloads)

        return publish_input(publish)


def check_input() -> None:
    """Raise Failure if standard input is a terminal."""
    if sys.stdin is None or sys.stdin.isatty():
        raise Failure("no data: give it as an argument, or send it to standard input", MISTYPED)


def publish_input(publish: Callable[[list[str]], tuple[int, Exception | None]]) -> tuple[int, bool]:
    """Pass the lines of standard input to `publish`, as many together as were read together.

    `publish` returns the number of lines that were published, and the error of the next one. Returns and
    raises what `publish_lines` does.
    """
    stop, count = _Stop(), 0
    for lines in _lines(stop):
        published, error = publish([line.removesuffix(b"\r").decode(errors="replace") for line in lines])
        count += published
        if error is not None:
            raise Failure(f"{error}; line {count + 1} may be missing, the lines before it are published")
    return count, not stop.wanted


class _Stop:
    """A signal handler that ends the waiting for input, and lets publishing come to its end."""

    def __init__(self) -> None:
        self.wanted = False
        if sys.platform != "win32":
            # Python writes a byte here for each signal, whichever thread it has reached.
            self._woken, wakeup = os.pipe()
            os.set_blocking(wakeup, False)
            signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.wanted:
            raise SystemExit(FORCED)
        self.wanted = True

    def read(self) -> bytes:
        """Read a piece of standard input; return nothing at its end and after a signal."""
        descriptor = sys.stdin.fileno()
        while not self.wanted:
            # Windows selects sockets alone. There a signal takes effect with the next line.
            woken = sys.platform != "win32" and self._wait(descriptor)
            if not woken:
                return os.read(descriptor, READ_SIZE)
        return b""

    def _wait(self, descriptor: int) -> bool:
        """Wait for input or a signal. Return whether there was a signal, of any kind."""
        ready, _, _ = select.select([descriptor, self._woken], [], [])
        if self._woken in ready:
            os.read(self._woken, 512)
        return self._woken in ready


def _lines(stop: _Stop) -> Iterator[list[bytes]]:
    """Yield the lines of each piece of the input. Raises Failure at a line that is too long for an event."""
    count, rest = 0, b""
    while piece := stop.read():
        *lines, rest = (rest + piece).split(b"\n")
        short = list(takewhile(lambda line: len(line) <= DATA_LIMIT, lines))
        count += len(short)
        yield short
        if len(short) < len(lines) or len(rest) > DATA_LIMIT:
            limit = f"{DATA_LIMIT:,} bytes that an event may have"
            raise Failure(f"line {count + 1} has more than the {limit}", MISTYPED)
    if rest and not stop.wanted:
        yield [rest]


async def _publish_together(
    log: Log, channel: str, payloads: list[bytes]
) -> tuple[int, BrokerUnavailableError | None]:
    """Publish in order, and return how many events were published and the error of the next one."""
    try:
        broker = await log.broker()
    except BrokerUnavailableError as error:
        return 0, error
    # The broker sends what is asked for in one turn of the event loop together, in the order of asking.
    calls = [broker.publish(channel, payload) for payload in payloads]
    results = await asyncio.gather(*calls, return_exceptions=True)
    for index, result in enumerate(results):
        if isinstance(result, BrokerUnavailableError):
            return index, result
        if isinstance(result, BaseException):
            raise result
    return len(results), None


def _payload(data: str, name: str | None, id: str | None = None) -> bytes:
    with checking_arguments():
        return to_payload(Event(data, event=name, id=id).encode())
