"""Turns: one at a time for each key, in the order of asking."""

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager

from ...loop import asyncio_loop


class _Queue:
    __slots__ = ("fault", "faults", "lock", "users")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0
        self.faults = 0
        self.fault: Exception | None = None


class Turns:
    """For one event loop at a time.

    When a turn ends with one of `contagious`, those who waited meanwhile get the same: with a server that
    does not answer, they would wait one after the other for nothing.
    """

    def __init__(self, *contagious: type[Exception]) -> None:
        self._contagious = contagious
        self._queues: dict[Hashable, _Queue] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    @asynccontextmanager
    async def of(self, key: Hashable) -> AsyncIterator[None]:
        """Wait for a turn, and have it."""
        loop = asyncio_loop()
        if self._loop is not loop:
            # What an earlier event loop left behind is locked for ever.
            self._queues, self._loop = {}, loop
        queues = self._queues
        queue = queues.setdefault(key, _Queue())
        queue.users += 1
        faults = queue.faults
        try:
            async with queue.lock:
                if queue.fault is not None and queue.faults != faults:
                    raise queue.fault
                yield
        except self._contagious as error:
            if error is not queue.fault:
                queue.fault, queue.faults = error, queue.faults + 1
            raise
        finally:
            queue.users -= 1
            if not queue.users:
                del queues[key]
