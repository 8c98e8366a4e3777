"""Lanes: what is appended to a channel goes in the order of asking, and what gathers goes together.

Each busy channel has one call under way. What is asked for meanwhile waits and is the next call, in one step
on the server: a burst costs a script call for each hundred events and not for each.
"""

import asyncio
from collections import deque
from collections.abc import Iterable
from functools import partial

from redis.exceptions import ConnectionError as RedisConnectionError

from ..errors import PositionConflictError
from ..loop import asyncio_loop
from .redis_connection import Reply
from .redis_log import Added, Addition, Logs

# Bounds of one call: the server does nothing else meanwhile. Some 2 ms.
MOST_EVENTS = 200
MOST_BYTES = 256 * 1024

_Waiting = tuple[Addition, asyncio.Future[Added]]


class Lanes:
    """For one event loop at a time."""

    def __init__(self, logs: Logs) -> None:
        self._logs = logs
        self._lanes: dict[str, deque[_Waiting]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def append(self, channel: str, addition: Addition) -> asyncio.Future[Added]:
        """Queue an event and return what will be its position.

        Cancel the future and it is not appended, if it has not left yet. It raises PositionConflictError,
        or one of FAILURES.
        """
        loop = asyncio_loop()
        if self._loop is not loop:
            # What an earlier event loop left behind will not be sent.
            self._lanes, self._loop = {}, loop
        future: asyncio.Future[Added] = loop.create_future()
        lane = self._lanes.get(channel)
        if lane is None:
            lane = self._lanes[channel] = deque()
            # Not at once: all that is asked for in this turn of the event loop goes together.
            loop.call_soon(self._send, channel, lane)
        lane.append((addition, future))
        return future

    def _send(self, channel: str, lane: deque[_Waiting]) -> None:
        waiting = _next(lane)
        if waiting:
            reply = self._logs.append(channel, [addition for addition, _ in waiting])
            reply.add_done_callback(partial(self._finish, channel, lane, waiting))
        else:
            del self._lanes[channel]

    def _finish(
        self, channel: str, lane: deque[_Waiting], waiting: list[_Waiting], reply: asyncio.Future[Reply]
    ) -> None:
        error = RedisConnectionError("the event loop ended") if reply.cancelled() else reply.exception()
        if error is None:
            outcomes = self._logs.outcomes(channel, reply.result())
            for (_, future), outcome in zip(waiting, outcomes, strict=True):
                _settle(future, outcome)
        else:
            # All who wait would only wait for the same again.
            _fail((*waiting, *lane), error)
            lane.clear()
        self._send(channel, lane)


def _next(lane: deque[_Waiting]) -> list[_Waiting]:
    waiting: list[_Waiting] = []
    size = 0
    while lane and len(waiting) < MOST_EVENTS and size < MOST_BYTES:
        addition, future = lane.popleft()
        if not future.done():
            waiting.append((addition, future))
            size += len(addition.payload)
    return waiting


def _settle(future: asyncio.Future[Added], outcome: Added | PositionConflictError) -> None:
    if future.done():
        return
    if isinstance(outcome, PositionConflictError):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


def _fail(waiting: Iterable[_Waiting], error: BaseException) -> None:
    for _, future in waiting:
        if not future.done():
            future.set_exception(error)
