"""Requests: one ordered queue of what this process takes and gives back, sent as few calls.

On one server a call is under way at a time, and the next one takes along all requests that came meanwhile. In
a crowd it also waits a little for more of them; a single request goes at once. There is no task and no timer
for each. In a cluster, whose scripts may not mix slot keys, each turn of the event loop sends a call for each
slot key, and none waits for another one's node.

A call that takes slots of a slot key first gives back all leases of it that the server may still have. So a
lease given back before a take is free for that take.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple, Protocol
from weakref import ReferenceType, ref

from redis.exceptions import ClusterCrossSlotError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from ...brokers.redis_connection import Reply, no_answer
from ...loop import asyncio_loop
from .faults import Faults
from .returns import Return, Returns
from .server import is_absence

# In a crowd a call leaves this long after the one before it, in seconds: it costs nearly as much for one
# take as for twenty.
BETWEEN_CALLS = 0.005
# The server does nothing else during a call. It has at most so many takes, and as many returns.
TAKES_PER_CALL = 100


class Taken(NamedTuple):
    """The answer to a take."""

    #: Whether there was a slot.
    taken: bool
    #: The leases that had to go for it.
    replaced: tuple[str, ...]


class Take:
    """A take that is waiting for its answer until `until`, by the clock of the event loop."""

    __slots__ = ("answer", "lease_id", "slot_key", "until")

    def __init__(self, slot_key: str, lease_id: str, until: float, answer: asyncio.Future[Taken]) -> None:
        self.slot_key = slot_key
        self.lease_id = lease_id
        self.until = until
        self.answer = answer


class Part(NamedTuple):
    """The part of a call that is about one slot key: first the returns, then the takes."""

    slot_key: str
    returns: Sequence[Return]
    takes: Sequence[Take]

    @property
    def words(self) -> str:
        """The words of the script; see `scripts.CHANGE`."""
        given_back = (("-" if given.sure else "!") + given.lease_id for given in self.returns)
        return " ".join((*given_back, *(take.lease_id for take in self.takes)))


_TAKEN = Taken(True, ())
_REFUSED = Taken(False, ())
_slot_key = attrgetter("slot_key")

# Makes the call. Its reply has a line for each word.
Call = Callable[[Sequence[Part]], asyncio.Future[Reply]]


class Listener(Protocol):
    """Hears what became of the calls."""

    @property
    def running(self) -> bool:
        """Whether returns may be sent: not while the event loop is ending, which starts no task any more."""
        ...

    def answered(self, slot_key: str) -> None:
        """Hear that a slot key's part of a call was carried out."""

    def failed(self, slot_key: str, error: BaseException) -> None:
        """Hear that a slot key's part of a call was not carried out, or may not have been."""


class Requests:
    """For one event loop at a time. No take waits longer than `timeout` seconds for its answer.

    `mixed` is whether one call may be for several slot keys. `listener` hears what became of the calls.
    """

    # Takes that have not left.
    _waiting: list[Take]
    # By their deadlines: takes without an answer, and some that have one.
    _asked: deque[Take]
    _alarm: asyncio.TimerHandle | None
    # Whether a call is about to leave, and how many are under way.
    _leaving: bool
    _under_way: int
    _not_before: float

    def __init__(
        self,
        call: Call,
        returns: Returns,
        faults: Faults,
        *,
        timeout: float,
        mixed: bool,
        listener: Listener,
    ) -> None:
        self._call = call
        self._returns = returns
        self._faults = faults
        self._timeout = timeout
        self._pause = min(BETWEEN_CALLS, timeout / 10)
        self._one_at_a_time = self._mixed = mixed
        self._listener = listener
        self._loop: ReferenceType[asyncio.AbstractEventLoop] | None = None
        self._reset()

    def take(self, slot_key: str, lease_id: str) -> asyncio.Future[Taken]:
        """Ask for a slot. Cancel what is returned and it is not taken, if the call has not left yet.

        It raises a RedisError or OSError when the slot was not taken, or may have been.
        """
        loop = self._enter_loop()
        take = Take(slot_key, lease_id, loop.time() + self._timeout, loop.create_future())
        self._waiting.append(take)
        self._asked.append(take)
        if self._alarm is None:
            self._alarm = loop.call_at(take.until, self._expire)
        self._leave_soon(loop)
        return take.answer

    def send_returns(self) -> None:
        """Send the returns that are due, soon. Raises RuntimeError where no event loop runs."""
        self._leave_soon(self._enter_loop())

    def _enter_loop(self) -> asyncio.AbstractEventLoop:
        loop = asyncio_loop()
        if self._loop is None or self._loop() is not loop:
            self._loop = ref(loop)
            self._reset()
        return loop

    def _reset(self) -> None:
        self._waiting = []
        self._asked = deque()
        self._alarm = None
        self._leaving = False
        self._under_way = 0
        self._not_before = 0.0

    def _leave_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._leaving or (self._one_at_a_time and self._under_way):
            return
        # Not at once: all requests of this turn of the loop go along.
        self._leaving = True
        if loop.time() < self._not_before:
            loop.call_at(self._not_before, self._leave)
        else:
            loop.call_soon(self._leave)

    def _leave(self) -> None:
        self._leaving = False
        takes = [take for take in self._waiting if not take.answer.done()]
        self._waiting.clear()
        self._not_before = asyncio.get_running_loop().time() + self._pause if len(takes) > 1 else 0.0
        for parts in self._calls(self._parts(takes)):
            self._send(parts)

    def _parts(self, takes: list[Take]) -> Iterator[Part]:
        """Return what is asked, by slot key. Sorting keeps the order of the takes of a slot key."""
        takes.sort(key=_slot_key)
        due = self._returns.take_due() if self._listener.running else {}
        for slot_key, of_key in groupby(takes, _slot_key):
            due.pop(slot_key, None)
            yield from _split(slot_key, self._returns.of(slot_key), list(of_key))
        for slot_key, retry in due.items():
            if not retry and (self._faults.is_away(slot_key) or self._faults.is_refused(slot_key)):
                # It waits for the next retry.
                self._returns.failed(slot_key)
            else:
                yield from _split(slot_key, self._returns.of(slot_key), [])

    def _calls(self, parts: Iterable[Part]) -> Iterator[list[Part]]:
        """Put parts together, except those of slot keys that were refused the last time."""
        call: list[Part] = []
        size = 0
        for part in parts:
            alone = not self._mixed or self._faults.is_refused(part.slot_key)
            weight = max(len(part.takes), len(part.returns))
            if alone:
                yield [part]
                continue
            if call and size + weight > TAKES_PER_CALL:
                yield call
                call, size = [], 0
            call.append(part)
            size += weight
        if call:
            yield call

    def _send(self, parts: list[Part]) -> None:
        self._under_way += 1
        self._call(parts).add_done_callback(partial(self._land, parts))

    def _land(self, parts: list[Part], reply: asyncio.Future[Reply]) -> None:
        self._under_way -= 1
        try:
            self._answer(parts, reply)
        finally:
            while self._asked and self._asked[0].answer.done():
                self._asked.popleft()
            if self._waiting or (self._returns.any_due and self._listener.running):
                self._leave_soon(reply.get_loop())

    def _answer(self, parts: list[Part], reply: asyncio.Future[Reply]) -> None:
        error = RedisConnectionError("the event loop ended") if reply.cancelled() else reply.exception()
        if error is None:
            self._settle(parts, reply.result())
        elif len(parts) > 1 and not is_absence(error):
            # Nothing was done, and one slot key is the cause: each is asked for by itself.
            self._mixed = self._mixed and not isinstance(error, ClusterCrossSlotError)
            for part in parts:
                self._send([part._replace(takes=[take for take in part.takes if not take.answer.done()])])
        else:
            for part in parts:
                self._fail(part, error)

    def _settle(self, parts: list[Part], reply: Reply) -> None:
        assert isinstance(reply, bytes)
        lines = reply.split(b"\n")
        start = 0
        for part in parts:
            middle = start + len(part.returns)
            end = middle + len(part.takes)
            if start < end and lines[start].startswith(b"!"):
                self._fail(part, ResponseError(lines[start][1:].decode()))
                start = end
                continue
            answers, start = lines[middle:end], end
            if part.returns:
                self._returns.done(given.lease_id for given in part.returns)
            self._listener.answered(part.slot_key)
            # A slot that was given back since the call left may be free for a take that found none.
            more = bool(self._returns.of(part.slot_key))
            for take, line in zip(part.takes, answers, strict=True):
                if more and line == b"0" and not take.answer.done():
                    self._waiting.append(take)
                else:
                    _answer(take, line)

    def _fail(self, part: Part, error: BaseException) -> None:
        if part.returns:
            self._returns.failed(part.slot_key)
        self._listener.failed(part.slot_key, error)
        for take in part.takes:
            if not take.answer.done():
                take.answer.set_exception(error)

    def _expire(self) -> None:
        """Fail the takes that have waited for too long, and come again for the next one."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        while self._asked and (self._asked[0].answer.done() or self._asked[0].until <= now):
            take = self._asked.popleft()
            if not take.answer.done():
                self._fail(Part(take.slot_key, (), (take,)), no_answer(self._timeout))
        self._alarm = loop.call_at(self._asked[0].until, self._expire) if self._asked else None


def _split(slot_key: str, returns: list[Return], takes: list[Take]) -> Iterator[Part]:
    """Return parts of a bounded size, each with at least as many returns as takes while there are any."""
    for start in range(0, max(len(returns), len(takes)), TAKES_PER_CALL):
        end = start + TAKES_PER_CALL
        yield Part(slot_key, returns[start:end], takes[start:end])


def _answer(take: Take, line: bytes) -> None:
    if take.answer.done():
        return
    if line == b"1":
        take.answer.set_result(_TAKEN)
    elif line == b"0":
        take.answer.set_result(_REFUSED)
    else:
        take.answer.set_result(Taken(True, tuple(line.decode().split(" ")[1:])))
