"""Lanes: what is appended to a channel goes in the order of asking, and what gathers goes together.

Each busy channel has one call under way. What is asked for meanwhile waits and is the next call, in one step
on the server: a burst costs a script call for each hundred events and not for each.
"""

import asyncio
from collections import deque
from collections.abc import Iterable

from redis.exceptions import ResponseError

from ...errors import PositionConflictError
from ...loop import asyncio_loop
from .connection import Reply
from .log import Added, Addition, Logs

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
        or one of FAILURES. Raises UnicodeError at once for a name or a key that is not UTF-8: those who go
        along in the same call have nothing to do with it.
        """
        loop = asyncio_loop()
        channel.encode()
        (addition.idempotency_key or "").encode()
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
            additions = [addition for addition, _ in waiting]
            self._logs.append(channel, additions, _Trip(self, channel, lane, waiting))
        elif self._lanes.get(channel) is lane:
            del self._lanes[channel]

    def arrive(self, trip: "_Trip", reply: Reply) -> None:
        """Tell those who went along; the next ones leave before that."""
        more = bool(trip.lane)
        self._send(trip.channel, trip.lane)
        if more:
            # The server has the next call meanwhile.
            asyncio.get_running_loop().call_soon(self._settle, trip, reply)
        else:
            self._settle(trip, reply)

    def fail(self, trip: "_Trip", error: Exception) -> None:
        """Tell those who went along and all who wait: they would only wait for the same again."""
        _fail((*trip.waiting, *trip.lane), error)
        trip.lane.clear()
        self._send(trip.channel, trip.lane)

    def _settle(self, trip: "_Trip", reply: Reply) -> None:
        try:
            outcomes = list(zip(trip.waiting, self._logs.outcomes(trip.channel, reply), strict=True))
        except ValueError:
            _fail(trip.waiting, ResponseError(f"the server answered what is no outcome: {reply!r:.100}"))
            return
        for (_, future), outcome in outcomes:
            _settle(future, outcome)


class _Trip:
    """A call that is under way, and who waits for it."""

    __slots__ = ("_lanes", "channel", "lane", "waiting")

    def __init__(self, lanes: Lanes, channel: str, lane: deque[_Waiting], waiting: list[_Waiting]) -> None:
        self._lanes = lanes
        self.channel = channel
        self.lane = lane
        self.waiting = waiting

    def done(self) -> bool:
        return False

    def set_result(self, reply: Reply, /) -> None:
        self._lanes.arrive(self, reply)

    def set_exception(self, error: Exception, /) -> None:
        self._lanes.fail(self, error)


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
