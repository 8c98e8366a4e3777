"""The leases of one cap in this process: acquired, renewed and released in batches.

A call to the server carries many slot keys. For each slot key it first releases, then renews, then acquires:
a slot that was released before an acquire is free for that acquire. On one server a single call is under way
at a time, and the next call carries all requests that came meanwhile. Under load it waits a little for more.
On a cluster each slot key has a call of its own, and no call waits for another node.

One task schedules renewals and retries. It runs while a lease is being acquired, is held, or is not yet
released on the server. An error about one slot key does not affect other slot keys.
"""

import asyncio
import contextlib
import logging
import math
import random
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from functools import partial
from itertools import chain, groupby, islice, takewhile
from operator import itemgetter
from typing import Literal

from redis.exceptions import ClusterCrossSlotError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from ...brokers.backoff import Backoff
from ...brokers.redis.connection import Reply
from ...brokers.timeouts import no_answer
from ...runtime.event_loop import start_task
from .. import Lease
from .store import Faults, LeaseStore, is_absence

logger = logging.getLogger("livepush_asgi")

# A lease outlives two renewals that failed.
RENEWALS_PER_TTL = 3
# The pause after a call that acquired several leases, in seconds: a call costs nearly as much for one lease
# as for twenty.
BETWEEN_CALLS = 0.005
# The most leases in a call, since the call blocks the server.
LEASES_PER_CALL = 100
# The most slot keys that are renewed at once. All of them at once would block the event loop.
KEYS_AT_ONCE = 200
# The most releases that are kept while the server is away. Each lease expires on it after `ttl` anyway.
MOST_RELEASES = 100_000

#: The ids of the leases that were replaced; None if no slot was free.
Acquired = tuple[str, ...] | None
Verb = Literal["release", "renew", "acquire"]
#: A request for one lease: its slot key, the verb, the lease.
Request = tuple[str, Verb, "LeaseRecord"]
#: The requests of each slot key.
Call = list[tuple[str, list[Request]]]


class LeaseRecord:
    """A lease in this process. It is being acquired, then it is held, then it is being released."""

    __slots__ = ("answer", "known", "lease", "renewing", "sent", "since")

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        #: The time of the acquire, or of the release once the lease is given back; monotonic clock.
        self.since = time.monotonic()
        #: Whether a call that acquires or renews it may have reached the server.
        self.sent = False
        #: Whether the server is known to have it, and no such call is still under way.
        self.known = False
        #: Whether a call that renews it is under way.
        self.renewing = False
        #: The answer to the acquire, while a caller waits for it.
        self.answer: asyncio.Future[Acquired] | None = None

    @property
    def waits(self) -> bool:
        """Whether a caller waits for the answer to the acquire."""
        return self.answer is not None and not self.answer.done()


class Records:
    """Records by lease id and by slot key, the oldest first."""

    def __init__(self) -> None:
        self.by_id: dict[str, LeaseRecord] = {}
        self.by_key: dict[str, dict[str, LeaseRecord]] = {}

    def __len__(self) -> int:
        return len(self.by_id)

    def add(self, record: LeaseRecord) -> None:
        """Add a record."""
        lease_id, slot_key = record.lease.id, record.lease.slot_key
        self.by_id[lease_id] = record
        self.by_key.setdefault(slot_key, {})[lease_id] = record

    def pop(self, lease: Lease) -> LeaseRecord | None:
        """Remove the record of a lease and return it, or None."""
        lease_id, slot_key = lease.id, lease.slot_key
        record = self.by_id.pop(lease_id, None)
        if record is not None:
            of_key = self.by_key[slot_key]
            del of_key[lease_id]
            if not of_key:
                del self.by_key[slot_key]
        return record

    def of(self, slot_key: str) -> Collection[LeaseRecord]:
        """Return the records of a slot key."""
        return self.by_key.get(slot_key, {}).values()


class HeldLeases:
    """Acquires, holds and releases the leases of one cap, on one event loop at a time."""

    def __init__(self, store: LeaseStore, faults: Faults, *, ttl: float, timeout: float) -> None:
        #: Leases that were ended here because a newer one took their place.
        self.replaced = 0
        #: Releases that were given up without a confirmation.
        self.dropped = 0
        self._store = store
        self._faults = faults
        self._ttl = ttl
        self._timeout = timeout
        # Whether one call may be about several slot keys. The node of a cluster that a `Redis` talks to
        # refuses that.
        self._mixed = store.one
        #: Leases that are held.
        self.held = Records()
        #: Leases that were given back and that the server may still have.
        self.releases = Records()
        # Leases that are neither held nor abandoned yet.
        self._acquiring: set[LeaseRecord] = set()
        # Acquires for the next call.
        self._waiting: list[LeaseRecord] = []
        # Acquires without an answer, the oldest first. Some may have one. The alarm is for the first.
        self._unanswered: deque[LeaseRecord] = deque()
        self._alarm: asyncio.TimerHandle | None = None
        # By lease id, for callers that wait until the server has confirmed a release.
        self._confirmations: dict[str, asyncio.Future[None]] = {}
        # Slot keys whose releases are for the next call, and whether to renew their leases as well.
        self._due: dict[str, bool] = {}
        # Slot keys that wait for the next retry. A dict keeps their order; the values mean nothing.
        self._failed: dict[str, None] = {}
        # Calls under way; whether none may leave now, or one will soon; and when the next one may leave.
        self._under_way = 0
        self._blocked = False
        self._not_before = 0.0
        self._renewed_at = self._renew_at = 0.0
        self._retry_at = math.inf
        self._backoff = Backoff()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        # The event is made anew with the task: it belongs to the event loop.
        self._changed = asyncio.Event()

    def is_away(self, slot_key: str) -> bool:
        """Return whether the server of a slot key is away, and the task will notice its return."""
        return self._faults.is_away(slot_key) and self._running and self._busy

    def acquire(self, record: LeaseRecord, loop: asyncio.AbstractEventLoop) -> asyncio.Future[Acquired]:
        """Ask the server for a lease. The caller calls `hold` or `abandon` afterwards, in any case.

        The future raises one of FAILURES if the lease was not, or may not have been, acquired. A lease whose
        future is cancelled is not acquired, unless the call was sent already.
        """
        # The task starts first: when the event loop ends, which cancels all tasks, none may be started.
        self._start(loop)
        record.answer = answer = loop.create_future()
        self._acquiring.add(record)
        self._waiting.append(record)
        self._unanswered.append(record)
        if self._alarm is None:
            self._alarm = loop.call_later(self._timeout, self._expire)
        if not self._blocked:
            self._flush_soon()
        return answer

    def hold(self, record: LeaseRecord, loop: asyncio.AbstractEventLoop) -> None:
        """Hold a lease. One that the server may not have is renewed as soon as possible."""
        if not record.known:
            self._start(loop)
            self._failed[record.lease.slot_key] = None
            self._changed.set()
        record.answer = None
        self.held.add(record)
        self._acquiring.discard(record)

    def abandon(self, record: LeaseRecord) -> None:
        """Release a lease if it was acquired, or may have been."""
        self._acquiring.discard(record)
        self._release(record)

    def release(self, lease: Lease) -> None:
        """Stop holding a lease, and release it on the server as soon as possible."""
        record = self.held.pop(lease)
        if record is not None:
            self._release(record)

    def end(self, lease_ids: Iterable[str]) -> None:
        """Give back the leases of these ids that are held here, and call their `on_replaced`."""
        for lease_id in lease_ids:
            record = self.held.by_id.get(lease_id)
            if record is not None:
                self.replaced += 1
                record.lease.release()
                _tell_replaced(record.lease)

    async def released(self, lease_ids: Iterable[str], timeout: float) -> None:
        """Wait until the server has confirmed these releases, for `timeout` seconds at most."""
        loop = asyncio.get_running_loop()
        waiting = [
            self._confirmations.setdefault(lease_id, loop.create_future())
            for lease_id in lease_ids
            if lease_id in self.releases.by_id
        ]
        if waiting:
            await asyncio.wait(waiting, timeout=timeout)

    async def aclose(self, timeout: float) -> None:
        """Wait until the server has confirmed every release, for `timeout` seconds at most.

        Nothing is renewed afterwards if nothing is held.
        """
        task = self._task
        if task is None or task.done() or task.get_loop() is not asyncio.get_running_loop():
            return
        self._due |= dict.fromkeys(self._failed.keys() & self.releases.by_key.keys(), False)
        self._flush_soon()
        await self.released(list(self.releases.by_id), timeout)
        if not self.held.by_id and not self._acquiring:
            task.cancel()
            await asyncio.wait([task])
            self._drop(self.releases.by_id.values())

    # --- the task -----------------------------------------------------------------------------------------

    @property
    def _busy(self) -> bool:
        return bool(self._acquiring or self.held.by_id or self.releases.by_id)

    @property
    def _running(self) -> bool:
        """Whether the task runs, and does not end with its event loop."""
        return self._task is not None and not self._task.done() and not self._task.cancelling()

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is not loop:
            self._enter(loop)
        if self._task is None or self._task.done():
            self._changed = asyncio.Event()
            self._renew_at, self._retry_at = self._next_renewal(), math.inf
            self._task = start_task(self._run(), "livepush slot renewal")

    def _enter(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin on another event loop, and release the leases of the earlier one: its streams have ended."""
        if self._task is not None and not self._task.done() and not self._task.get_loop().is_closed():
            raise RuntimeError("a SlotCap is used on one event loop at a time; make one for each")
        self._loop, self._task = loop, None
        self._waiting, self._unanswered, self._alarm = [], deque(), None
        self._under_way, self._blocked, self._not_before = 0, False, 0.0
        self._acquiring.clear()
        self._confirmations.clear()
        for record in list(self.held.by_id.values()):
            record.lease.release()
        self._due, self._failed = dict.fromkeys(self.releases.by_key, False), {}

    def _wake_if_idle(self) -> None:
        if not self._busy:
            # RuntimeError: the event loop is closed.
            with contextlib.suppress(RuntimeError):
                self._changed.set()

    async def _run(self) -> None:
        while self._busy:
            self._changed.clear()
            self._plan()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(self._renew_at, self._retry_at) - time.monotonic()):
                    await self._changed.wait()

    def _plan(self) -> None:
        """Send the renewals and retries that are due, and schedule the next retry."""
        now = time.monotonic()
        if now >= self._renew_at:
            self._renewed_at, self._renew_at = now, self._next_renewal()
            self._renew(self.held.by_key)
        if now >= self._retry_at:
            self._retry_at = math.inf
            self._drop(takewhile(lambda r: r.since + self._ttl <= now, self.releases.by_id.values()))
            failed, self._failed = self._failed, {}
            self._renew(key for key in failed if key in self.held.by_key or key in self.releases.by_key)
            self._probe()
        if self._retry_at == math.inf and (self._failed or self._faults.away):
            self._retry_at = now + self._backoff.next_delay()
        if self._due:
            self._flush_soon()

    def _next_renewal(self) -> float:
        return time.monotonic() + self._ttl / RENEWALS_PER_TTL * random.uniform(0.7, 1.0)

    def _renew(self, slot_keys: Iterable[str]) -> None:
        """Schedule the renewal of these slot keys. Keys whose server is away wait until it is back."""
        for slot_key in slot_keys:
            if self._faults.is_away(slot_key):
                self._failed[slot_key] = None
            else:
                self._due[slot_key] = True

    def _probe(self) -> None:
        """Send one slot key to each server that is away. Forget a server for which there is no slot key."""
        silent = set(self._faults.away)
        for slot_key in list(chain(self._failed, self.held.by_key)) if silent else ():
            place = self._store.place_of(slot_key)
            if place in silent:
                silent.remove(place)
                self._failed.pop(slot_key, None)
                self._due[slot_key] = True
        if not self._acquiring:
            for place in silent:
                del self._faults.away[place]

    # --- calls --------------------------------------------------------------------------------------------

    def _release(self, record: LeaseRecord) -> None:
        """Release a lease on the server as soon as possible, unless the server cannot have it."""
        if not (record.sent or record.renewing):
            self._wake_if_idle()
            return
        if len(self.releases.by_id) >= MOST_RELEASES:
            self._drop([next(iter(self.releases.by_id.values()))])
        record.since = time.monotonic()
        record.known = record.known and not record.renewing
        self.releases.add(record)
        slot_key = record.lease.slot_key
        # RuntimeError: the event loop is closed. Another loop sends the release, or the lease expires.
        with contextlib.suppress(RuntimeError):
            if slot_key in self._faults.refused or self._faults.is_away(slot_key):
                self._failed[slot_key] = None
                self._changed.set()
            else:
                self._due.setdefault(slot_key, False)
                if not self._blocked and self._running:
                    self._flush_soon()

    def _drop(self, records: Iterable[LeaseRecord]) -> None:
        """Give up on releases; the leases expire."""
        for record in list(records):
            self._confirm(record)
            self.dropped += 1

    def _confirm(self, record: LeaseRecord) -> None:
        """Forget a release, and wake the caller that waits for it."""
        self.releases.pop(record.lease)
        waiting = self._confirmations.pop(record.lease.id, None) if self._confirmations else None
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    def _flush_soon(self) -> None:
        # Not at once, so that one call carries all requests of this turn of the event loop.
        if not self._blocked and self._loop is not None:
            self._blocked = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Send the requests that have gathered."""
        assert self._loop is not None
        now = time.monotonic()
        if now < self._not_before:
            self._loop.call_later(self._not_before - now, self._flush)
            return
        acquires = [record for record in self._waiting if record.waits]
        self._waiting.clear()
        pause = min(BETWEEN_CALLS, self._timeout / 10)
        self._not_before = now + pause if len(acquires) > 1 else 0.0
        try:
            for call in self._calls(acquires):
                self._send(call)
        finally:
            self._blocked = self._store.one and self._under_way > 0

    def _calls(self, acquires: list[LeaseRecord]) -> Iterator[Call]:
        """Return the calls for these acquires and for the slot keys that are due, each of a bounded size."""
        due: dict[str, bool] = {}
        if self._due and self._running:
            room = max(1, KEYS_AT_ONCE - self._under_way)
            due = {slot_key: self._due.pop(slot_key) for slot_key in list(islice(self._due, room))}
        releasing = {each.lease.slot_key for each in acquires}.union(due) & self.releases.by_key.keys()
        renewing = [slot_key for slot_key, renew in due.items() if renew]
        requests: list[Request] = [
            (key, "release", each) for key in releasing for each in self.releases.of(key)
        ]
        requests += [
            (key, "renew", each) for key in renewing for each in self.held.of(key) if not each.renewing
        ]
        requests += [(each.lease.slot_key, "acquire", each) for each in acquires]
        # Sorting keeps the order of the requests for one slot key.
        requests.sort(key=_slot_key)
        together: list[Request] = []
        for slot_key, of_key in groupby(requests, _slot_key):
            if self._mixed and slot_key not in self._faults.refused:
                together += of_key
            else:
                yield from _bounded_calls(list(of_key))
        yield from _bounded_calls(together)

    def _send(self, call: Call) -> None:
        self._under_way += 1
        words = [(slot_key, _words(requests)) for slot_key, requests in call]
        self._store.change(words).add_done_callback(partial(self._take_reply, call))

    def _take_reply(self, call: Call, reply: asyncio.Future[Reply]) -> None:
        self._under_way -= 1
        try:
            error = RedisConnectionError("the event loop ended") if reply.cancelled() else reply.exception()
            if error is None:
                self._settle(call, reply.result())
            elif len(call) > 1 and not is_absence(error):
                self._mixed = self._mixed and not isinstance(error, ClusterCrossSlotError)
                # The server did nothing, because of one slot key. So each slot key is sent by itself.
                for of_key in call:
                    self._send([of_key])
            else:
                for slot_key, requests in call:
                    self._fail(slot_key, requests, error)
        finally:
            self._after_call()

    def _after_call(self) -> None:
        while self._unanswered and not self._unanswered[0].waits:
            self._unanswered.popleft()
        if self._store.one and not self._under_way:
            self._blocked = False
        if not self._blocked and (self._waiting or (self._due and self._running)):
            self._blocked = True
            self._flush()
        self._wake_if_idle()

    def _settle(self, call: Call, reply: Reply) -> None:
        assert isinstance(reply, bytes)
        lines = iter(reply.split(b"\n"))
        for slot_key, requests in call:
            answers = list(islice(lines, len(requests)))
            if answers[0].startswith(b"!"):
                self._fail(slot_key, requests, ResponseError(answers[0][1:].decode()))
                continue
            if self._faults and self._faults.answered(slot_key):
                self._server_is_back()
            for (_, verb, record), answer in zip(requests, answers, strict=True):
                if verb == "acquire":
                    self._settle_acquire(record, answer)
                elif verb == "release":
                    self._confirm(record)
                else:
                    record.sent, record.known, record.renewing = True, True, False
                    if answer == b"0":
                        self.end([record.lease.id])
        if not (self._failed or self._faults):
            self._backoff.reset()

    def _settle_acquire(self, record: LeaseRecord, answer: bytes) -> None:
        if answer == b"0" and record.waits and self.releases.of(record.lease.slot_key):
            # A slot that was released since the call was sent may be free for it.
            self._waiting.append(record)
            return
        record.sent = record.known = answer != b"0"
        if record.answer is not None and not record.answer.done():
            record.answer.set_result(tuple(answer.decode().split(" ")[1:]) if record.known else None)

    def _fail(self, slot_key: str, requests: list[Request], error: BaseException) -> None:
        refused = self._store.has_refused(error)
        for _, verb, record in requests:
            if verb != "acquire":
                self._failed[slot_key] = None
            elif record.answer is not None and not record.answer.done():
                record.sent = not refused
                record.answer.set_exception(error)
            if verb == "renew":
                record.renewing = False
                if not refused:
                    record.sent, record.known = True, False
        # An event loop that ends is no failure of the server.
        if self._running:
            if self._faults.failed(slot_key, error):
                self._server_is_back()
            self._changed.set()

    def _server_is_back(self) -> None:
        # It may have lost its data, so all leases are renewed soon.
        self._renew_at = min(self._renew_at, self._renewed_at + min(1.0, self._ttl / RENEWALS_PER_TTL))
        self._retry_at = 0.0
        self._changed.set()

    def _expire(self) -> None:
        """Fail the acquires that have waited for too long, and set the alarm for the next one."""
        assert self._loop is not None
        self._alarm = None
        now = time.monotonic()
        while self._unanswered:
            record = self._unanswered[0]
            left = record.since + self._timeout - now
            if record.waits and left > 0:
                self._alarm = self._loop.call_later(left, self._expire)
                return
            self._unanswered.popleft()
            if record.waits:
                slot_key = record.lease.slot_key
                self._fail(slot_key, [(slot_key, "acquire", record)], no_answer(self._timeout))


_slot_key = itemgetter(0)


def _bounded_calls(requests: list[Request]) -> Iterator[Call]:
    for start in range(0, len(requests), LEASES_PER_CALL):
        bounded = requests[start : start + LEASES_PER_CALL]
        yield [(slot_key, list(of_key)) for slot_key, of_key in groupby(bounded, _slot_key)]


def _words(requests: list[Request]) -> str:
    """Return the words of the script for one slot key, and note on the records that they are sent."""
    now = time.monotonic()
    words = []
    for _, verb, record in requests:
        if verb == "acquire":
            record.sent = True
            words.append(record.lease.id)
        elif verb == "release":
            words.append(f"{'-' if record.known else '!'}{record.lease.id}")
        else:
            record.renewing = True
            words.append(f"+{record.lease.id}:{(now - record.since) * 1e6:.0f}")
    return " ".join(words)


def _tell_replaced(lease: Lease) -> None:
    if lease.on_replaced is None:
        return
    try:
        lease.on_replaced()
    except Exception:
        logger.exception("slots: telling the holder of a replaced slot failed")
