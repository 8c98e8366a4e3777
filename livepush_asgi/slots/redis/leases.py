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
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import islice, takewhile
from typing import Literal, NamedTuple

from redis.exceptions import ResponseError

from ...brokers.backoff import Backoff
from ...brokers.redis.connection import Reply
from ...brokers.timeouts import no_answer
from ...runtime.event_loop import start_task
from ...runtime.failure_log import FailureLog, fields
from .. import Lease
from .store import Faults, LeaseStore, is_absence

# A lease outlives two renewals that failed.
RENEWALS_PER_TTL = 3
# The pause after a call that acquired several leases, in seconds: a call costs nearly as much for one lease
# as for twenty.
BETWEEN_CALLS = 0.005
# The most leases in a call, since the call blocks the server.
LEASES_PER_CALL = 100
# The most slot keys that are renewed at once. All of them at once would block the event loop.
KEYS_AT_ONCE = 200

#: The answer to an acquire: the ids of the replaced leases; None if no slot was free; or one of FAILURES.
Answer = tuple[str, ...] | Exception | None
Verb = Literal["release", "renew", "acquire"]
Request = tuple[Verb, "LeaseRecord"]
#: Slot keys, each with its requests.
Call = list[tuple[str, list[Request]]]


class LeaseRecord:
    """A lease in this process. It is being acquired, then it is held, then it is being released."""

    __slots__ = ("asked", "lease", "since", "stored")

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        #: The time of the acquire, or of the release once it is being released; monotonic clock.
        self.since = time.monotonic()
        #: Whether a call that acquires or renews it is under way.
        self.asked = False
        #: Whether the server has it, after the calls that have ended. None: that is not known.
        self.stored: bool | None = False


class Records(dict[str, LeaseRecord]):
    """Records by lease id, and by slot key as well; the oldest first."""

    def __init__(self) -> None:
        super().__init__()
        self.by_key: dict[str, dict[str, LeaseRecord]] = {}

    def add(self, record: LeaseRecord) -> None:
        """Add a record."""
        lease_id = record.lease.id
        self[lease_id] = record
        self.by_key.setdefault(record.lease.slot_key, {})[lease_id] = record

    def discard(self, lease: Lease) -> LeaseRecord | None:
        """Remove the record of a lease and return it, or None."""
        lease_id, slot_key = lease.id, lease.slot_key
        record = self.pop(lease_id, None)
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

    def __init__(self, store: LeaseStore, faults: Faults) -> None:
        #: Leases that were ended here because a newer one took their place.
        self.replaced = 0
        #: Releases that were given up without a confirmation.
        self.dropped = 0
        #: Leases that are held.
        self.held = Records()
        #: Leases that were released here and that the server may still have.
        self.releases = Records()
        self._store = store
        self._faults = faults
        self._timeout = store.settings.timeout
        self._renewal_interval = store.settings.ttl / RENEWALS_PER_TTL
        self._backoff = Backoff()
        self._failures = FailureLog()
        self._reset(None)

    def _reset(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """Begin on an event loop. Nothing of an earlier one is under way any more."""
        self._loop = loop
        self._task: asyncio.Task[None] | None = None
        # Set when the task has to look again at what is to be done, and when.
        self._changed = asyncio.Event()
        self._renew_at = self._retry_at = 0.0
        # Leases that are neither held nor abandoned yet, the oldest first. The alarm is for the first one
        # that has no answer.
        self._acquiring: dict[LeaseRecord, asyncio.Future[Answer]] = {}
        self._alarm: asyncio.TimerHandle | None = None
        # For the next call: acquires, and slot keys to release, or with True also to renew.
        self._waiting: list[LeaseRecord] = []
        self._due: dict[str, bool] = {}
        # Slot keys that wait for the next retry, which renews them.
        self._failed: dict[str, bool] = {}
        # By lease id, for callers that wait until the server has confirmed a release.
        self._confirmations: dict[str, asyncio.Future[None]] = {}
        # Calls under way; whether the next ones will leave soon, and when they may.
        self._under_way = 0
        self._flushing = False
        self._not_before = 0.0

    @property
    def running(self) -> bool:
        """Whether the task runs, and does not end with its event loop. It notices when a server is back."""
        return self._task is not None and not self._task.done() and not self._task.cancelling()

    def acquire(self, record: LeaseRecord) -> asyncio.Future[Answer]:
        """Ask the server for a lease. The caller calls `hold` or `abandon` afterwards, in any case.

        A lease whose future is cancelled is not acquired, unless the call was sent already.
        """
        loop = self._start()
        self._acquiring[record] = answer = loop.create_future()
        self._waiting.append(record)
        if self._alarm is None:
            self._alarm = loop.call_later(self._timeout, self._expire)
        if not self._flushing:
            self._flush_soon()
        return answer

    def hold(self, record: LeaseRecord) -> None:
        """Hold a lease. One that the server may not have is renewed as soon as possible."""
        if not record.stored:
            self._start()
            self._failed[record.lease.slot_key] = True
            self._changed.set()
        self.held.add(record)
        self._acquiring.pop(record, None)

    def abandon(self, record: LeaseRecord) -> None:
        """Release a lease if it was acquired, or may have been."""
        self._acquiring.pop(record, None)
        self._release(record)

    def release(self, lease: Lease) -> None:
        """Stop holding a lease, and release it on the server as soon as possible."""
        record = self.held.discard(lease)
        if record is not None:
            # RuntimeError: the event loop is closed. Another loop sends the release, or the lease expires.
            with contextlib.suppress(RuntimeError):
                self._release(record)

    def end(self, lease_ids: Iterable[str]) -> None:
        """Release the leases of these ids that are held here, and call their `on_replaced`."""
        for lease_id in lease_ids:
            record = self.held.get(lease_id)
            if record is None:
                continue
            self.replaced += 1
            record.lease.release()
            try:
                if record.lease.on_replaced is not None:
                    record.lease.on_replaced()
            except Exception as error:
                self._failures.log(
                    logging.ERROR,
                    "slots: telling the holder of a replaced slot failed",
                    error=error,
                    extra=fields("slot_holder_untold"),
                )

    async def released(self, lease_ids: Iterable[str], timeout: float) -> None:
        """Wait until the server has confirmed these releases, for `timeout` seconds at most."""
        loop = asyncio.get_running_loop()
        waiting = [
            self._confirmations.setdefault(lease_id, loop.create_future())
            for lease_id in lease_ids
            if lease_id in self.releases
        ]
        if waiting:
            await asyncio.wait(waiting, timeout=timeout)

    async def aclose(self, timeout: float) -> None:
        """Wait until the server has confirmed every release, for `timeout` seconds at most.

        Nothing is renewed afterwards if nothing is held.
        """
        task = self._task
        if task is None or not self.running or self._loop is not asyncio.get_running_loop():
            return
        self._retry_at = 0.0
        self._changed.set()
        await self.released(list(self.releases), timeout)
        if not self.held and not self._acquiring:
            task.cancel()
            await asyncio.wait([task])
            self._drop(self.releases.values())

    # --- the task -----------------------------------------------------------------------------------------

    @property
    def _busy(self) -> bool:
        return bool(self._acquiring or self.held or self.releases)

    def _start(self) -> asyncio.AbstractEventLoop:
        """Start the task if it does not run, and return the event loop."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._task is not None and not self._task.done() and not self._task.get_loop().is_closed():
                raise RuntimeError("a SlotCap is used on one event loop at a time; make one for each")
            self._reset(loop)
            # The streams of the earlier event loop have ended.
            for record in list(self.held.values()):
                record.lease.release()
            self._due = dict.fromkeys(self.releases.by_key, False)
        if self._task is None or self._task.done():
            self._task = start_task(self._run(), "livepush slot renewal")
        return loop

    async def _run(self) -> None:
        while self._busy:
            self._changed.clear()
            self._plan(time.monotonic())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(self._renew_at, self._retry_at) - time.monotonic()):
                    await self._changed.wait()

    def _plan(self, now: float) -> None:
        """Send the renewals and retries that are due, and schedule the next retry."""
        if now >= self._renew_at:
            self._renew_at = now + self._renewal_interval * random.uniform(0.7, 1.0)
            self._retry_at = 0.0
            self._failed |= dict.fromkeys(self.held.by_key, True)
        if now >= self._retry_at:
            self._retry_at = math.inf
            expired = now - self._store.settings.ttl
            self._drop(takewhile(lambda each: each.since <= expired, self.releases.values()))
            self._retry()
        if self._due:
            self._flush_soon()
        if not self._failed and not self._faults:
            self._backoff.reset()
        elif self._retry_at == math.inf and (self._failed or self._faults.away):
            self._retry_at = now + self._backoff.next_delay()

    def _retry(self) -> None:
        """Renew the slot keys that failed. To a server that is away one of its keys is sent, as a probe."""
        failed = {key: True for key in self._failed if key in self.held.by_key or key in self.releases.by_key}
        away, silent = self._faults.away, set(self._faults.away)
        self._failed = {}
        if not away:
            self._due |= failed
            return
        for slot_key in {**failed, **self.held.by_key}:
            place = self._store.server_of(slot_key)
            if place in silent:
                silent.remove(place)
                self._due[slot_key] = True
            elif slot_key in failed:
                (self._failed if place in away else self._due)[slot_key] = True
        if not self._acquiring:
            # No slot key is left to probe these servers. The next acquire will.
            for place in silent:
                del away[place]

    # --- calls --------------------------------------------------------------------------------------------

    def _release(self, record: LeaseRecord) -> None:
        """Release a lease on the server as soon as possible, unless the server cannot have it."""
        if record.stored is False and not record.asked:
            self._wake_if_idle()
            return
        record.since = time.monotonic()
        self.releases.add(record)
        slot_key = record.lease.slot_key
        if self._faults.is_away(slot_key):
            self._failed[slot_key] = True
        else:
            self._due.setdefault(slot_key, False)
            if not self._flushing:
                self._flush_soon()

    def _drop(self, records: Iterable[LeaseRecord]) -> None:
        """Give up on releases; the leases expire."""
        for record in list(records):
            self._confirm(record)
            self.dropped += 1

    def _confirm(self, record: LeaseRecord) -> None:
        """Forget a release, and wake the caller that waits for it."""
        self.releases.discard(record.lease)
        if self._confirmations and (waiting := self._confirmations.pop(record.lease.id, None)):
            waiting.set_result(None)

    def _wake_if_idle(self) -> None:
        if not self._busy:
            self._changed.set()

    def _flush_soon(self) -> None:
        # Not at once, so that one call carries all requests of this turn of the event loop.
        if not self._flushing and not (self._store.one and self._under_way):
            asyncio.get_running_loop().call_soon(self._flush)
            self._flushing = True

    def _flush(self) -> None:
        """Send the requests that have gathered."""
        now = time.monotonic()
        if now < self._not_before:
            asyncio.get_running_loop().call_later(self._not_before - now, self._flush)
            return
        self._flushing = False
        # When the event loop ends, no task of a call may be started.
        if self.running:
            acquires = [record for record in self._waiting if self._waiter(record)]
            self._waiting.clear()
            if len(acquires) > 1:
                self._not_before = now + min(BETWEEN_CALLS, self._timeout / 10)
            for call in self._calls(acquires):
                self._send(call)

    def _calls(self, acquires: list[LeaseRecord]) -> Iterator[Call]:
        """Return the calls for these acquires and for the slot keys that are due, each of a bounded size."""
        room = max(1, KEYS_AT_ONCE - self._under_way)
        due = {slot_key: self._due.pop(slot_key) for slot_key in list(islice(self._due, room))}
        requests: dict[str, list[Request]] = defaultdict(list)
        for slot_key in {*due, *[each.lease.slot_key for each in acquires]} & self.releases.by_key.keys():
            requests[slot_key] = [("release", each) for each in self.releases.of(slot_key)]
        for slot_key in due:
            if due[slot_key]:
                requests[slot_key] += [("renew", each) for each in self.held.of(slot_key) if not each.asked]
        for each in acquires:
            requests[each.lease.slot_key].append(("acquire", each))
        return self._bounded(requests)

    def _bounded(self, requests: dict[str, list[Request]]) -> Iterator[Call]:
        call: Call = []
        size = 0
        for slot_key, of_key in requests.items():
            alone = not self._store.mixes_keys or slot_key in self._faults.refused
            for start in range(0, len(of_key), LEASES_PER_CALL):
                part = of_key[start : start + LEASES_PER_CALL]
                cost = LEASES_PER_CALL if alone else len(part)
                if call and size + cost > LEASES_PER_CALL:
                    yield call
                    call, size = [], 0
                call.append((slot_key, part))
                size += cost
        if call:
            yield call

    def _send(self, call: Call) -> None:
        self._under_way += 1
        words = [(slot_key, _words(requests)) for slot_key, requests in call]
        self._store.change(words, _Receiver(call, self._take_reply))

    def _take_reply(self, call: Call, reply: Reply | Exception) -> None:
        self._under_way -= 1
        if not isinstance(reply, Exception):
            self._settle(call, reply)
        elif len(call) > 1 and not is_absence(reply):
            # The server did nothing, because of one slot key. So each slot key is sent by itself.
            for of_key in call:
                self._send([of_key])
        else:
            for slot_key, requests in call:
                self._fail(slot_key, requests, reply)
        if self._waiting or self._due:
            self._flush_soon()
        self._wake_if_idle()

    def _settle(self, call: Call, reply: Reply) -> None:
        assert isinstance(reply, bytes)
        lines = iter(reply.split(b"\n"))
        for slot_key, requests in call:
            answers = list(islice(lines, len(requests)))
            if answers[0].startswith(b"!"):
                self._fail(slot_key, requests, ResponseError(answers[0][1:].decode()))
                continue
            if self._faults:
                self._note(slot_key, None)
            for (verb, record), answer in zip(requests, answers, strict=True):
                if verb == "release":
                    self._confirm(record)
                    continue
                record.asked, record.stored = False, answer != b"0"
                if verb == "acquire":
                    self._settle_acquire(record, answer)
                elif not record.stored:
                    self.end([record.lease.id])

    def _settle_acquire(self, record: LeaseRecord, answer: bytes) -> None:
        waiter = self._waiter(record)
        if waiter is None:
            return
        if not record.stored and self.releases.of(record.lease.slot_key):
            # A slot that was released since the call was sent may be free for it.
            self._waiting.append(record)
        else:
            waiter.set_result(tuple(answer.decode().split(" ")[1:]) if record.stored else None)

    def _fail(self, slot_key: str, requests: list[Request], error: Exception) -> None:
        self._failed[slot_key] = True
        self._note(slot_key, error)
        for verb, record in requests:
            if verb != "release":
                record.asked = False
                if not self._store.has_refused(error):
                    record.stored = None
            if verb == "acquire" and (waiter := self._waiter(record)):
                waiter.set_result(error)

    def _note(self, slot_key: str, error: Exception | None) -> None:
        """Note that a call for a slot key failed, or that it was executed."""
        # An event loop that ends is no failure of the server.
        if self.running:
            if self._faults.note(slot_key, error):
                # The server is back. It may have lost its data, so all leases are renewed soon.
                soon = time.monotonic() + min(1.0, self._renewal_interval)
                self._renew_at, self._retry_at = min(self._renew_at, soon), 0.0
            self._changed.set()

    def _waiter(self, record: LeaseRecord) -> asyncio.Future[Answer] | None:
        """Return the future of the caller that waits for the answer to an acquire, if one does."""
        answer = self._acquiring.get(record)
        return None if answer is None or answer.done() else answer

    def _expire(self) -> None:
        """Fail the acquires that have waited for too long, and set the alarm for the next one."""
        self._alarm = None
        now = time.monotonic()
        for record, answer in list(self._acquiring.items()):
            left = record.since + self._timeout - now
            if left > 0:
                self._alarm = asyncio.get_running_loop().call_later(left, self._expire)
                return
            if not answer.done():
                error = no_answer(self._timeout)
                self._note(record.lease.slot_key, error)
                answer.set_result(error)


class _Receiver(NamedTuple):
    """Hands over a call with its reply, or with one of FAILURES."""

    call: Call
    take_reply: Callable[[Call, Reply | Exception], None]

    def done(self) -> bool:
        return False

    def set_result(self, reply: Reply, /) -> None:
        self.take_reply(self.call, reply)

    def set_exception(self, error: Exception, /) -> None:
        self.take_reply(self.call, error)


def _words(requests: list[Request]) -> str:
    """Return the words of the script for one slot key, and note on the records that they are sent."""
    now = time.monotonic()
    words = []
    for verb, record in requests:
        word = record.lease.id
        if verb == "release":
            word = f"{'-' if record.stored and not record.asked else '!'}{word}"
        else:
            record.asked = True
        words.append(f"+{word}:{(now - record.since) * 1e6:.0f}" if verb == "renew" else word)
    return " ".join(words)
