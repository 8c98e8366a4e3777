"""Backoff: the delay before the next try, and calls that are tried again."""

import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from ..errors import BrokerUnavailableError
from ..settings import check_retry_for

T = TypeVar("T")


class Backoff:
    """Delays in seconds that double from `first` to `most`.

    Half of each is random, so that processes that lost the same server do not return at the same moment.
    """

    __slots__ = ("_failures", "_first", "_most")

    def __init__(self, first: float = 0.05, most: float = 2.0) -> None:
        self._first = first
        self._most = most
        self._failures = 0

    def next_delay(self) -> float:
        """Return the delay after one more failure."""
        # The exponent is bounded: 2.0 to the power of 1024 overflows.
        delay = min(self._most, self._first * 2.0 ** min(self._failures, 16))
        self._failures += 1
        return delay * random.uniform(0.5, 1.0)

    def reset(self) -> None:
        """Start again with the first delay, after a success."""
        self._failures = 0


async def retry_unavailable(call: Callable[[], Awaitable[T]], retry_for: float, most_delay: float = 2.0) -> T:
    """Return what `call` returns. Call again for `retry_for` seconds while the broker is unavailable.

    The delays between the calls are at most `most_delay` seconds.

    Raises what the last call raises, and ValueError for a `retry_for` that is no time.
    """
    check_retry_for(retry_for)
    deadline, backoff = anyio.current_time() + retry_for, Backoff(most=most_delay)
    while True:
        try:
            return await call()
        except BrokerUnavailableError:
            delay = backoff.next_delay()
            if anyio.current_time() + delay > deadline:
                raise
        await anyio.sleep(delay)
