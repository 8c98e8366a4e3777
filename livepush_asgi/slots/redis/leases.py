"""The leases of one cap in this process: acquired, renewed and released in batches.

A call to the server carries many slot keys. For each slot key it first releases, then renews, then acquires:
a slot that was released before an acquire is free for that acquire. On one server a single call is under way
at a time, and the next one carries everything that has gathered meanwhile; in a crowd it waits a little for
more. On a cluster each slot key has a call of its own, and no call waits for another node.

One task says when to renew and when to try again what has failed. It lives while a lease is being acquired,
is held, or is not yet released on the server. An error about one slot key concerns no other slot key.
"""

import asyncio
import contextlib
import logging
import math
import random
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice
from operator import attrgetter
from typing import Generic, NamedTuple, TypeVar

from redis.exceptions import AskError, ClusterCrossSlotError, ResponseError

from ...brokers.backoff import Backoff
from ...brokers.redis_connection import Reply, no_answer
from ...loop import asyncio_loop, start_task
from .. import Lease
from .scripts import ONE_NODE_OF_MANY, LeaseStore, is_absence

logger = logging.getLogger("livepush_asgi")

# A lease outlives two renewals that failed.
RENEWALS_PER_TTL = 3
# In a crowd a call leaves this long after the one before it, in seconds: it costs nearly as much for one
# lease as for twenty.
BETWEEN_CALLS = 0.005
# The server does nothing else during a call. It has at most so many words of each kind.
WORDS_PER_CALL = 100
# At most so many slot keys are renewed at once, lest the event loop stand still for all of them.
KEYS_AT_ONCE = 200
# The server forgets each lease after `ttl` anyway; this bounds the memory while it is away.
MOST_RELEASES = 100_000
# So many refused slot keys are remembered; of any more the first ones are forgotten.
MOST_REFUSED_KEYS = 1000
# A server that comes and goes is in the log once in so many seconds.
LOG_INTERVAL = 10.0

#: The ids of the leases that were replaced; None if no slot was free.
Acquired = tuple[str, ...] | None


class _Acquire:
    """An acquire that waits for its answer until `deadline`, by the clock of the event loop."""

    __slots__ = ("answer", "deadline", "lease_id", "slot_key")

    def __init__(
        self, slot_key: str, lease_id: str, deadline: float, answer: asyncio.Future[Acquired]
    ) -> None:
        self.slot_key = slot_key
        self.lease_id = lease_id
        self.deadline = deadline
        self.answer = answer


class _Held:
    """A lease that is held."""

    __slots__ = ("acquired_at", "known", "lease", "renewing", "sent")

    def __init__(self, lease: Lease, *, sent: bool, known: bool) -> None:
        self.lease = lease
        #: By the monotonic clock.
        self.acquired_at = time.monotonic()
        #: Whether a call that acquires or renews it may have reached the server.
        self.sent = sent
        #: Whether the server is known to have it, with no such call still on its way.
        self.known = known
        #: Whether a call that renews it is under way.
        self.renewing = False


class _Release:
    """A lease that was given back and that the server may still have. It is `known` as in `_Held`."""

    __slots__ = ("confirmed", "expires_at", "known", "lease_id", "slot_key")

    def __init__(self, slot_key: str, lease_id: str, expires_at: float, *, known: bool) -> None:
        self.slot_key = slot_key
        self.lease_id = lease_id
        #: When the server forgets the lease by itself, by the monotonic clock.
        self.expires_at = expires_at
        self.known = known
        #: Made for a caller that waits.
        self.confirmed: asyncio.Future[None] | None = None


T = TypeVar("T")


class _Records(Generic[T]):
    """Records of leases, by id and by slot key, in the order in which they were added."""

    def __init__(self) -> None:
        self.by_id: dict[str, T] = {}
        self.by_key: dict[str, dict[str, T]] = {}

    def add(self, slot_key: str, lease_id: str, record: T) -> None:
        self.by_id[lease_id] = record
        self.by_key.setdefault(slot_key, {})[lease_id] = record

    def pop(self, slot_key: str, lease_id: str) -> T | None:
        record = self.by_id.pop(lease_id, None)
        if record is not None:
            of_key = self.by_key[slot_key]
            del of_key[lease_id]
            if not of_key:
                del self.by_key[slot_key]
        return record

    def of(self, slot_key: str) -> list[T]:
        return list(self.by_key.get(slot_key, {}).values())


class _Part(NamedTuple):
    """The part of a call that is about one slot key."""

    slot_key: str
    releases: Sequence[_Release]
    renewals: Sequence[_Held]
    acquires: Sequence[_Acquire]

    def words(self) -> str:
        """Return the words of the script; see `scripts.CHANGE`."""
        now = time.monotonic()
        words = [("-" if release.known else "!") + release.lease_id for release in self.releases]
        words += [f"+{held.lease.id}:{(now - held.acquired_at) * 1e6:.0f}" for held in self.renewals]
        words += [acquire.lease_id for acquire in self.acquires]
        return " ".join(words)


class _Answers:
    """Receives the reply to one call."""

    __slots__ = ("_leases", "_parts", "loop")

    def __init__(self, leases: "HeldLeases", loop: asyncio.AbstractEventLoop, parts: Sequence[_Part]) -> None:
        self._leases = leases
        self._parts = parts
        self.loop = loop

    def done(self) -> bool:
        return False

    def set_result(self, reply: Reply, /) -> None:
        self._leases.answered(self.loop, self._parts, reply)

    def set_exception(self, error: Exception, /) -> None:
        self._leases.answered(self.loop, self._parts, error)


class Faults:
    """The servers that are away and the slot keys that are refused. Each change is logged once for all keys.

    `meanwhile` says in the log what becomes of new streams.
    """

    def __init__(self, store: LeaseStore, *, ttl: float, meanwhile: str) -> None:
        #: Servers that did not answer the last time, and whether the log says so.
        self.away: dict[str, bool] = {}
        #: Slot keys that a server refused the last time, and when that was.
        self.refused: dict[str, float] = {}
        self._store = store
        self._meanwhile = meanwhile
        self._remember_for = max(2 * ttl, LOG_INTERVAL)
        self._logged_at: dict[str, float] = {}

    def is_away(self, slot_key: str) -> bool:
        """Return whether the server of a slot key did not answer the last time."""
        return bool(self.away) and self._store.place_of(slot_key) in self.away

    def failed(self, slot_key: str, error: BaseException) -> bool:
        """Note the error of a call for a slot key. Return whether its server was away and has answered."""
        if is_absence(error):
            self._note_away(self._store.place_of(slot_key), error)
            return False
        self._note_refused(slot_key, error)
        return self._note_answer(slot_key)

    def answered(self, slot_key: str) -> bool:
        """Note that a call for a slot key was carried out. Return whether its server was away until now."""
        if self.refused.pop(slot_key, None) is not None and not self.refused:
            logger.warning("slots: %s refuses no slot key any more", self._store.where)
        return self._note_answer(slot_key)

    def _note_answer(self, slot_key: str) -> bool:
        place = self._store.place_of(slot_key)
        if place not in self.away:
            return False
        if self.away.pop(place):
            logger.warning("slots: %s is back", place)
        return True

    def _note_away(self, place: str, error: BaseException) -> None:
        if place in self.away:
            return
        now = time.monotonic()
        self.away[place] = now - self._logged_at.get(place, -LOG_INTERVAL) >= LOG_INTERVAL
        if self.away[place]:
            self._logged_at[place] = now
            logger.warning("slots: %s cannot be asked, %s: %s", place, self._meanwhile, error)

    def _note_refused(self, slot_key: str, error: BaseException) -> None:
        now = time.monotonic()
        while self.refused:
            oldest = next(iter(self.refused))
            if len(self.refused) < MOST_REFUSED_KEYS and self.refused[oldest] > now - self._remember_for:
                break
            del self.refused[oldest]
        if not self.refused:
            self._log_refusal(slot_key, error)
        self.refused.pop(slot_key, None)
        self.refused[slot_key] = now

    def _log_refusal(self, slot_key: str, error: BaseException) -> None:
        if isinstance(error, AskError):
            logger.error("slots: %s %s", self._store.where, ONE_NODE_OF_MANY)
        else:
            logger.warning(
                "slots: %s refuses %r, %s: %s", self._store.where, slot_key, self._meanwhile, error
            )


class HeldLeases:
    """Acquires, holds and releases the leases of one cap, on one event loop at a time."""

    # Acquires that have not left. `_asked` has all that wait for an answer, by their deadlines, and some that
    # have one.
    _waiting: list[_Acquire]
    _asked: deque[_Acquire]
    _alarm: asyncio.TimerHandle | None
    # Calls under way. `_blocked` is whether nothing may be sent now, or a flush is scheduled.
    _under_way: int
    _blocked: bool
    _not_before: float

    def __init__(self, store: LeaseStore, *, ttl: float, timeout: float, meanwhile: str) -> None:
        self.faults = Faults(store, ttl=ttl, meanwhile=meanwhile)
        #: Leases that were ended here because a newer one took their place.
        self.replaced = 0
        #: Releases that the server was never told of.
        self.dropped = 0
        self._store = store
        self._ttl = ttl
        self._timeout = timeout
        self._pause = min(BETWEEN_CALLS, timeout / 10)
        # Whether one call may be about several slot keys.
        self._mixed = store.one
        self._held: _Records[_Held] = _Records()
        self._releases: _Records[_Release] = _Records()
        self._acquiring: set[str] = set()
        # Slot keys to be sent, and whether their leases are to be renewed as well.
        self._due: dict[str, bool] = {}
        # Slot keys that wait for the next retry: renewals and releases that have failed.
        self._failed: dict[str, None] = {}
        self._renewed_at = self._renew_at = 0.0
        self._retry_at = math.inf
        self._backoff = Backoff()
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        # The event is made anew with the task: it belongs to the event loop.
        self._changed = asyncio.Event()
        self._reset()

    def __len__(self) -> int:
        return len(self._held.by_id)

    def __contains__(self, lease_id: str) -> bool:
        return lease_id in self._held.by_id

    @property
    def owed(self) -> int:
        """How many releases the server does not know of yet."""
        return len(self._releases.by_id)

    def of(self, slot_key: str) -> list[Lease]:
        """Return the leases of a slot key that are held, the oldest first."""
        return [held.lease for held in self._held.of(slot_key)]

    def is_away(self, slot_key: str) -> bool:
        """Return whether the server of a slot key is away and will be noticed when it is back."""
        return bool(self.faults.away) and self._running and self._busy and self.faults.is_away(slot_key)

    def acquire(self, lease: Lease, loop: asyncio.AbstractEventLoop) -> asyncio.Future[Acquired]:
        """Ask the server for a lease. `hold`, `forget` or `abandon` follows.

        The future raises one of FAILURES when the lease was not acquired, or may have been. Cancel it and
        nothing is acquired, if the call has not left yet.
        """
        if self._loop is not loop:
            self._enter(loop)
        # The task starts here, before anything waits: when the event loop ends, which cancels what runs, no
        # task may be started any more.
        if self._task is None or self._task.done():
            self._start()
        deadline = loop.time() + self._timeout
        acquire = _Acquire(lease.slot_key, lease.id, deadline, loop.create_future())
        self._acquiring.add(acquire.lease_id)
        self._waiting.append(acquire)
        self._asked.append(acquire)
        if self._alarm is None:
            self._alarm = loop.call_at(deadline, self._expire)
        if not self._blocked:
            self._flush_soon()
        return acquire.answer

    def hold(self, lease: Lease, *, sent: bool, known: bool) -> None:
        """Hold a lease. One that the server may not know is renewed as soon as possible."""
        slot_key, lease_id = lease.slot_key, lease.id
        if not known:
            self._enter(asyncio_loop())
        self._held.add(slot_key, lease_id, _Held(lease, sent=sent, known=known))
        self._acquiring.discard(lease_id)
        if not known:
            self._failed[slot_key] = None
            self._start()
            self._changed.set()

    def forget(self, lease: Lease) -> None:
        """Note that a lease was not acquired."""
        self._acquiring.discard(lease.id)
        self._wake_if_idle()

    def abandon(self, lease: Lease, *, known: bool = False) -> None:
        """Release a lease that may have been acquired, or that is `known` to have been."""
        if lease.id in self._acquiring:
            self._acquiring.discard(lease.id)
            self._release(lease, known=known)

    def release(self, lease: Lease) -> None:
        """Hold a lease no more, and tell the server as soon as possible."""
        held = self._held.pop(lease.slot_key, lease.id)
        if held is None:
            return
        if held.sent or held.renewing:
            self._release(lease, known=held.known and not held.renewing)
        else:
            self._wake_if_idle()

    def end(self, lease_ids: Iterable[str]) -> None:
        """Give back those of the leases that are held here, as replaced, and tell their holders."""
        for lease_id in lease_ids:
            held = self._held.by_id.get(lease_id)
            if held is not None:
                self.replaced += 1
                held.lease.give_back()
                _tell_replaced(held.lease)

    async def released(self, lease_ids: Iterable[str], timeout: float) -> None:
        """Wait until the server has confirmed these releases, for `timeout` seconds at most."""
        loop = asyncio.get_running_loop()
        waiting = set()
        for lease_id in lease_ids:
            release = self._releases.by_id.get(lease_id)
            if release is not None:
                if release.confirmed is None or release.confirmed.get_loop() is not loop:
                    release.confirmed = loop.create_future()
                waiting.add(release.confirmed)
        if waiting:
            await asyncio.wait(waiting, timeout=timeout)

    async def aclose(self, timeout: float) -> None:
        """Wait until the server has confirmed every release, for `timeout` seconds at most.

        Nothing is renewed afterwards if nothing is held.
        """
        task = self._task
        if task is None or task.get_loop() is not asyncio_loop():
            return
        self._due.update((slot_key, False) for slot_key in self._releases.by_key if slot_key in self._failed)
        self._flush_soon()
        await self.released(list(self._releases.by_id), timeout)
        if not self._held.by_id and not self._acquiring:
            task.cancel()
            await asyncio.wait([task])
            for release in list(self._releases.by_id.values()):
                self._drop(release)

    # --- the event loop -----------------------------------------------------------------------------------

    @property
    def _busy(self) -> bool:
        return bool(self._acquiring or self._held.by_id or self._releases.by_id)

    @property
    def _running(self) -> bool:
        """Whether the task runs, and does not end with its event loop."""
        return self._task is not None and not self._task.done() and not self._task.cancelling()

    def _reset(self) -> None:
        self._waiting = []
        self._asked = deque()
        self._alarm = None
        self._under_way = 0
        self._blocked = False
        self._not_before = 0.0

    def _enter(self, loop: asyncio.AbstractEventLoop) -> None:
        """Release what an earlier event loop left behind: its streams ended with it."""
        if self._loop is loop:
            return
        if self._task is not None and not self._task.get_loop().is_closed():
            raise RuntimeError("a SlotCap is used on one event loop at a time; make one for each")
        self._loop = loop
        self._task = None
        self._reset()
        self._acquiring.clear()
        for held in list(self._held.by_id.values()):
            held.lease.give_back()
        self._due = dict.fromkeys(self._releases.by_key, False)
        self._failed.clear()

    def _start(self) -> None:
        if self._task is None or self._task.done():
            self._changed = asyncio.Event()
            self._renew_at = self._next_renewal()
            self._retry_at = math.inf
            self._task = start_task(self._run(), "livepush slot renewal")

    def _wake_if_idle(self) -> None:
        # RuntimeError: the event loop is closed.
        if not self._busy:
            with contextlib.suppress(RuntimeError):
                self._changed.set()

    async def _run(self) -> None:
        task = asyncio.current_task()
        try:
            while self._busy:
                self._changed.clear()
                self._plan()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(self._renew_at, self._retry_at) - time.monotonic()):
                        await self._changed.wait()
        finally:
            # The finalizer of a task that an earlier loop left behind comes here too, and is not meant.
            if self._task is task:
                self._task = None

    def _plan(self) -> None:
        """Renew and retry what is due, and say when to retry what has failed."""
        now = time.monotonic()
        if now >= self._renew_at:
            self._renewed_at, self._renew_at = now, self._next_renewal()
            self._renew(self._held.by_key)
        if now >= self._retry_at:
            self._retry_at = math.inf
            self._drop_expired(now)
            failed, self._failed = self._failed, {}
            self._renew(failed)
            self._probe()
        if self._retry_at == math.inf and (self._failed or self.faults.away):
            self._retry_at = now + self._backoff.next_delay()
        if self._due:
            self._flush_soon()

    def _next_renewal(self) -> float:
        return time.monotonic() + self._ttl / RENEWALS_PER_TTL * random.uniform(0.7, 1.0)

    def _renew(self, slot_keys: Iterable[str]) -> None:
        """Have the leases of these slot keys renewed. Where the server is away they wait until it is back."""
        for slot_key in slot_keys:
            if self.faults.is_away(slot_key):
                self._failed[slot_key] = None
            else:
                self._due[slot_key] = True

    def _probe(self) -> None:
        """Ask each server that is away about one slot key. Forget a server that has none of them."""
        silent = set(self.faults.away)
        for slot_key in (*self._failed, *self._held.by_key) if silent else ():
            place = self._store.place_of(slot_key)
            if place in silent:
                silent.remove(place)
                self._failed.pop(slot_key, None)
                self._due[slot_key] = True
        if not self._acquiring:
            for place in silent:
                del self.faults.away[place]

    def _note_fault(self, slot_key: str, error: BaseException) -> None:
        # An event loop that is ending is not the server's fault.
        if self._running:
            if self.faults.failed(slot_key, error):
                self._server_is_back()
            self._changed.set()

    def _server_is_back(self) -> None:
        # It may have lost its data, so all leases are renewed soon.
        self._renew_at = min(self._renew_at, self._renewed_at + min(1.0, self._ttl / RENEWALS_PER_TTL))
        self._retry_at = 0.0
        self._changed.set()

    # --- releases -----------------------------------------------------------------------------------------

    def _release(self, lease: Lease, *, known: bool) -> None:
        slot_key, lease_id, now = lease.slot_key, lease.id, time.monotonic()
        if len(self._releases.by_id) >= MOST_RELEASES:
            self._drop(next(iter(self._releases.by_id.values())))
        self._releases.add(slot_key, lease_id, _Release(slot_key, lease_id, now + self._ttl, known=known))
        # RuntimeError: the event loop is closed. The lease expires, unless another loop sends this earlier.
        with contextlib.suppress(RuntimeError):
            if slot_key in self.faults.refused or self.faults.is_away(slot_key):
                self._failed[slot_key] = None
                self._changed.set()
            else:
                self._due.setdefault(slot_key, False)
                if not self._blocked and self._running:
                    self._flush_soon()

    def _confirm(self, release: _Release) -> None:
        """Forget a release; who waits for it need not wait any more."""
        self._releases.pop(release.slot_key, release.lease_id)
        if release.confirmed is not None and not release.confirmed.done():
            # RuntimeError: the caller waited on an event loop that has ended.
            with contextlib.suppress(RuntimeError):
                release.confirmed.set_result(None)

    def _drop(self, release: _Release) -> None:
        self._confirm(release)
        self.dropped += 1

    def _drop_expired(self, now: float) -> None:
        for release in list(self._releases.by_id.values()):
            if release.expires_at > now:
                return
            self._drop(release)

    # --- calls --------------------------------------------------------------------------------------------

    def _flush_soon(self) -> None:
        if self._blocked or self._loop is None:
            return
        # Not at once: everything that is asked for in this turn of the event loop goes along.
        self._blocked = True
        if self._not_before and self._loop.time() < self._not_before:
            self._loop.call_at(self._not_before, self._flush)
        else:
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        assert self._loop is not None
        acquires = [acquire for acquire in self._waiting if not acquire.answer.done()]
        self._waiting.clear()
        self._not_before = self._loop.time() + self._pause if len(acquires) > 1 else 0.0
        try:
            for parts in self._calls(self._parts(acquires)):
                self._send(self._loop, parts)
        finally:
            self._blocked = self._store.one and self._under_way > 0

    def _parts(self, acquires: list[_Acquire]) -> Iterator[_Part]:
        """Return what is to be sent, by slot key. Sorting keeps the order of the acquires of a slot key."""
        due = self._take_due() if self._running else {}
        acquires.sort(key=_slot_key)
        for slot_key, of_key in groupby(acquires, _slot_key):
            yield from self._parts_of(slot_key, list(of_key), renew=due.pop(slot_key, False))
        for slot_key, renew in due.items():
            yield from self._parts_of(slot_key, [], renew=renew)

    def _take_due(self) -> dict[str, bool]:
        room = max(1, KEYS_AT_ONCE - self._under_way)
        if len(self._due) <= room:
            due, self._due = self._due, {}
            return due
        return {slot_key: self._due.pop(slot_key) for slot_key in list(islice(self._due, room))}

    def _parts_of(self, slot_key: str, acquires: list[_Acquire], *, renew: bool) -> Iterator[_Part]:
        """Return parts of a bounded size, each with at least as many releases as acquires while it can be."""
        releases = self._releases.of(slot_key)
        renewals = [held for held in self._held.of(slot_key) if not held.renewing] if renew else []
        for start in range(0, max(len(releases), len(renewals), len(acquires)), WORDS_PER_CALL):
            words = slice(start, start + WORDS_PER_CALL)
            part = _Part(slot_key, releases[words], renewals[words], acquires[words])
            for held in part.renewals:
                held.renewing = True
            yield part

    def _calls(self, parts: Iterable[_Part]) -> Iterator[list[_Part]]:
        """Put parts together, except those of slot keys that were refused the last time."""
        call: list[_Part] = []
        size = 0
        for part in parts:
            if not self._mixed or part.slot_key in self.faults.refused:
                yield [part]
                continue
            weight = max(len(part.releases), len(part.renewals), len(part.acquires))
            if call and size + weight > WORDS_PER_CALL:
                yield call
                call, size = [], 0
            call.append(part)
            size += weight
        if call:
            yield call

    def _send(self, loop: asyncio.AbstractEventLoop, parts: list[_Part]) -> None:
        self._under_way += 1
        slot_keys, words = [part.slot_key for part in parts], [part.words() for part in parts]
        self._store.change(slot_keys, words, _Answers(self, loop, parts))

    def answered(
        self, loop: asyncio.AbstractEventLoop, parts: Sequence[_Part], outcome: Reply | Exception
    ) -> None:
        """Take the reply to a call, or the error that it ended with."""
        if loop is not self._loop:
            return
        self._under_way -= 1
        try:
            if not isinstance(outcome, Exception):
                self._settle(parts, outcome)
            elif len(parts) > 1 and not is_absence(outcome):
                self._mixed = self._mixed and not isinstance(outcome, ClusterCrossSlotError)
                # Nothing was done, and one slot key is the cause: each is sent by itself.
                for part in parts:
                    unanswered = [acquire for acquire in part.acquires if not acquire.answer.done()]
                    self._send(loop, [part._replace(acquires=unanswered)])
            else:
                for part in parts:
                    self._fail(part, outcome)
        finally:
            while self._asked and self._asked[0].answer.done():
                self._asked.popleft()
            if self._store.one and not self._under_way:
                self._blocked = False
            if self._waiting or (self._due and self._running):
                self._flush_soon()
            self._wake_if_idle()

    def _settle(self, parts: Sequence[_Part], reply: Reply) -> None:
        assert isinstance(reply, bytes)
        lines = iter(reply.split(b"\n"))
        for part in parts:
            releases, renewals, acquires = (list(islice(lines, len(of_kind))) for of_kind in part[1:])
            first = next(iter((*releases, *renewals, *acquires)), b"")
            if first.startswith(b"!"):
                self._fail(part, ResponseError(first[1:].decode()))
                continue
            if (self.faults.away or self.faults.refused) and self.faults.answered(part.slot_key):
                self._server_is_back()
            for release in part.releases:
                self._confirm(release)
            for held, line in zip(part.renewals, renewals, strict=True):
                held.sent, held.known, held.renewing = True, True, False
                if line == b"0":
                    self.end([held.lease.id])
            self._answer(part.slot_key, part.acquires, acquires)
        if not (self._failed or self.faults.away or self.faults.refused):
            self._backoff.reset()

    def _answer(self, slot_key: str, acquires: Sequence[_Acquire], lines: Iterable[bytes]) -> None:
        # A slot that was released since the call left may be free for an acquire that found none.
        again = slot_key in self._releases.by_key
        for acquire, line in zip(acquires, lines, strict=True):
            if acquire.answer.done():
                continue
            if line == b"1":
                acquire.answer.set_result(())
            elif line != b"0":
                acquire.answer.set_result(tuple(line.decode().split(" ")[1:]))
            elif again:
                self._waiting.append(acquire)
            else:
                acquire.answer.set_result(None)

    def _fail(self, part: _Part, error: Exception) -> None:
        if part.releases or part.renewals:
            self._failed[part.slot_key] = None
        refused = self._store.has_refused(error)
        for held in part.renewals:
            held.renewing = False
            if not refused:
                held.sent, held.known = True, False
        self._note_fault(part.slot_key, error)
        for acquire in part.acquires:
            if not acquire.answer.done():
                acquire.answer.set_exception(error)

    def _expire(self) -> None:
        """Fail the acquires that have waited for too long, and come again for the next one."""
        assert self._loop is not None
        now = self._loop.time()
        while self._asked and (self._asked[0].answer.done() or self._asked[0].deadline <= now):
            acquire = self._asked.popleft()
            if not acquire.answer.done():
                self._fail(_Part(acquire.slot_key, (), (), (acquire,)), no_answer(self._timeout))
        self._alarm = self._loop.call_at(self._asked[0].deadline, self._expire) if self._asked else None


_slot_key = attrgetter("slot_key")


def _tell_replaced(lease: Lease) -> None:
    if lease.on_replaced is None:
        return
    try:
        lease.on_replaced()
    except Exception:
        logger.exception("slots: telling the holder of a replaced slot failed")
