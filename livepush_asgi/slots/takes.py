"""Takes: what many ask for at once is taken together, in one call for all of them.

One call is under way at a time, and the next one takes along all who asked meanwhile. In a crowd it also
waits a little for more of them; who comes alone goes at once. There is no task and no timer for each.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple
from weakref import ReferenceType, ref

from redis.exceptions import ClusterCrossSlotError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from ..brokers.redis_connection import Reply, no_answer

# In a crowd a call leaves this long after the one before it, in seconds: it costs nearly as much for one
# take as for twenty.
BETWEEN_CALLS = 0.005
# The server does nothing else during a call.
TAKES_PER_CALL = 100


class Taken(NamedTuple):
    """The answer to a take."""

    #: Whether there was a slot.
    taken: bool
    #: The leases that had to go for it.
    replaced: tuple[str, ...]


class Wanted(NamedTuple):
    """The takes of one slot key in one call."""

    slot_key: str
    lease_ids: Sequence[str]


class _Take:
    __slots__ = ("answer", "lease_id", "slot_key", "until")

    def __init__(self, slot_key: str, lease_id: str, until: float, answer: asyncio.Future[Taken]) -> None:
        self.slot_key = slot_key
        self.lease_id = lease_id
        self.until = until
        self.answer = answer


_TAKEN = Taken(True, ())
_REFUSED = Taken(False, ())
_slot_key = attrgetter("slot_key")

# Makes the call. Its reply has a line for each id; see `scripts.TAKE`.
Call = Callable[[Sequence[Wanted]], asyncio.Future[Reply]]


class Takes:
    """For one event loop at a time. No take waits longer than `timeout` seconds for its answer."""

    # Those whose call has not left.
    _waiting: list[_Take]
    # By their deadlines: those who have no answer, and some of those who have.
    _asked: deque[_Take]
    _alarm: asyncio.TimerHandle | None
    # Whether a call is under way or about to leave.
    _busy: bool
    _under_way: int
    _not_before: float

    def __init__(self, call: Call, *, timeout: float) -> None:
        self._call = call
        self._timeout = timeout
        self._pause = min(BETWEEN_CALLS, timeout / 10)
        # Whether one call may be for several slot keys: the nodes of a cluster do not like it.
        self._mixed = True
        self._loop: ReferenceType[asyncio.AbstractEventLoop] | None = None
        self._reset()

    def take(self, slot_key: str, lease_id: str) -> asyncio.Future[Taken]:
        """Ask for a slot. Cancel what is returned and it is not taken, if the call has not left yet.

        It raises a RedisError or OSError when nobody knows whether the slot was taken.
        """
        loop = asyncio.get_running_loop()
        if self._loop is None or self._loop() is not loop:
            self._loop = ref(loop)
            self._reset()
        now = loop.time()
        take = _Take(slot_key, lease_id, now + self._timeout, loop.create_future())
        self._waiting.append(take)
        self._asked.append(take)
        if self._alarm is None:
            self._alarm = loop.call_at(take.until, self._expire)
        if not self._busy:
            self._leave_soon(loop, now)
        return take.answer

    def _reset(self) -> None:
        self._waiting = []
        self._asked = deque()
        self._alarm = None
        self._busy = False
        self._under_way = 0
        self._not_before = 0.0

    def _leave_soon(self, loop: asyncio.AbstractEventLoop, now: float) -> None:
        # Not at once: all who ask in this turn of the loop go along.
        self._busy = True
        if now < self._not_before:
            loop.call_at(self._not_before, self._leave)
        else:
            loop.call_soon(self._leave)

    def _leave(self) -> None:
        takes = [take for take in self._waiting if not take.answer.done()]
        self._waiting.clear()
        self._not_before = asyncio.get_running_loop().time() + self._pause if len(takes) > 1 else 0.0
        # Sorting keeps the order in which the takes of a slot key were asked for.
        takes.sort(key=_slot_key)
        try:
            if self._mixed:
                self._send(takes)
            else:
                self._send_each(takes)
        finally:
            self._busy = self._under_way > 0

    def _send_each(self, takes: Iterable[_Take]) -> None:
        for _, of_key in groupby(takes, _slot_key):
            self._send(list(of_key))

    def _send(self, takes: list[_Take]) -> None:
        for start in range(0, len(takes), TAKES_PER_CALL):
            together = takes[start : start + TAKES_PER_CALL]
            wanted = [
                Wanted(slot_key, [take.lease_id for take in of_key])
                for slot_key, of_key in groupby(together, _slot_key)
            ]
            self._under_way += 1
            self._call(wanted).add_done_callback(partial(self._land, together))

    def _land(self, takes: list[_Take], reply: asyncio.Future[Reply]) -> None:
        self._under_way -= 1
        try:
            self._answer(takes, reply)
        finally:
            while self._asked and self._asked[0].answer.done():
                self._asked.popleft()
            if not self._under_way:
                self._busy = False
                if self._waiting:
                    loop = reply.get_loop()
                    self._leave_soon(loop, loop.time())

    def _answer(self, takes: list[_Take], reply: asyncio.Future[Reply]) -> None:
        error = RedisConnectionError("the event loop ended") if reply.cancelled() else reply.exception()
        if isinstance(error, ClusterCrossSlotError) and takes[0].slot_key != takes[-1].slot_key:
            # Nothing was done, and it would be the same every time.
            self._mixed = False
            self._send_each([take for take in takes if not take.answer.done()])
        elif error is not None:
            _fail(takes, error)
        else:
            _settle(takes, reply.result())

    def _expire(self) -> None:
        """Fail those who have waited for too long, and come again for the next one."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        while self._asked and (self._asked[0].answer.done() or self._asked[0].until <= now):
            _fail((self._asked.popleft(),), no_answer(self._timeout))
        self._alarm = loop.call_at(self._asked[0].until, self._expire) if self._asked else None


def _fail(takes: Iterable[_Take], error: BaseException) -> None:
    for take in takes:
        if not take.answer.done():
            take.answer.set_exception(error)


def _settle(takes: list[_Take], reply: Reply) -> None:
    assert isinstance(reply, bytes)
    for take, line in zip(takes, reply.split(b"\n"), strict=True):
        if take.answer.done():
            continue
        if line == b"1":
            take.answer.set_result(_TAKEN)
        elif line == b"0":
            take.answer.set_result(_REFUSED)
        elif line.startswith(b"1 "):
            take.answer.set_result(Taken(True, tuple(line.decode().split(" ")[1:])))
        else:
            take.answer.set_exception(ResponseError(line[1:].decode()))
