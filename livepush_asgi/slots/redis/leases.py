"""Keeper: one task that has the leases of a process renewed and tries again what a server did not take.

It lives while a lease is being taken, is held, or is still to be given back. It never waits for a server.
"""

import asyncio
import contextlib
import logging
import math
import random
import time
from collections.abc import Iterable
from weakref import ReferenceType, ref

from ...brokers.backoff import Backoff
from ...loop import asyncio_loop
from .. import Lease
from .faults import Faults
from .holdings import Held, Holdings
from .ledger import Ledger
from .renewals import Renewals
from .requests import Requests, Taken
from .returns import Returns
from .server import Server

logger = logging.getLogger("livepush_asgi")

# A lease outlives two renewals that failed.
RENEWALS_PER_TTL = 3


class Keeper:
    """What one `SlotCap` holds, and what it owes the server."""

    def __init__(self, server: Server, ledger: Ledger, *, ttl: float, timeout: float, meanwhile: str) -> None:
        self.holdings = Holdings()
        self.returns = Returns(ttl)
        self.faults = Faults(ledger.place_of, ttl=ttl, where=server.where, meanwhile=meanwhile)
        #: Leases that were ended here because a newer one took their place.
        self.replaced = 0
        self._place_of = ledger.place_of
        self._renewals = Renewals(self.holdings, server, ledger, listener=self, end=self.end)
        self._requests = Requests(
            ledger.change, self.returns, self.faults, timeout=timeout, mixed=server.one, listener=self
        )
        self._ttl = ttl
        self._taking: set[str] = set()
        # Slot keys that have to be renewed before all are.
        self._again: set[str] = set()
        self._renewed_at = self._renew_at = 0.0
        self._retry_at = math.inf
        self._backoff = Backoff()
        self._task: asyncio.Task[None] | None = None
        # By the names of the servers.
        self._renewing: dict[str, asyncio.Task[None]] = {}
        # The event is made anew with the task: it belongs to the event loop.
        self._changed = asyncio.Event()
        self._loop: ReferenceType[asyncio.AbstractEventLoop] | None = None

    @property
    def running(self) -> bool:
        """Whether the task runs, and is not about to end with its event loop."""
        return self._task is not None and not self._task.done() and not self._task.cancelling()

    @property
    def _busy(self) -> bool:
        return bool(self._taking or self.returns or self.holdings)

    def is_trying(self, slot_key: str) -> bool:
        """Return whether the server of a slot key is away and will be noticed when it is back."""
        return self.faults.is_away(slot_key) and self._task is not None and self._busy

    def take(self, lease: Lease) -> asyncio.Future[Taken]:
        """Ask the server for a lease. `hold`, `forget` or `abandon` follows. See `Requests.take`."""
        # The task starts here, before anything waits: when the event loop ends, which cancels what runs,
        # none may be started any more.
        self._enter_loop()
        self._taking.add(lease.id)
        self._start()
        return self._requests.take(lease.slot_key, lease.id)

    def hold(self, lease: Lease, *, sent: bool, sure: bool) -> None:
        """Keep a lease. One that the server may not know, not `sure`, is renewed as soon as possible."""
        if not sure:
            self._enter_loop()
            self._again.add(lease.slot_key)
        self.holdings.add(Held(lease, sent=sent, sure=sure))
        self._taking.discard(lease.id)
        if not sure:
            self._start()
            self._changed.set()

    def forget(self, lease: Lease) -> None:
        """Note that a lease was not taken."""
        self._taking.discard(lease.id)
        self._changed.set()

    def abandon(self, lease: Lease, *, sure: bool = False) -> None:
        """Give back a lease that may have been taken, or for `sure` was, if it was asked for."""
        if lease.id in self._taking:
            self._owe(lease, sure=sure)
            self._taking.discard(lease.id)

    def give_back(self, lease: Lease) -> None:
        """Hold a lease no more, and tell the server as soon as possible."""
        held = self.holdings.pop(lease.id)
        if held is None:
            return
        if held.sent:
            self._owe(lease, sure=held.sure)
        else:
            self._wake()

    def end(self, lease_ids: Iterable[str]) -> None:
        """Give back those of the leases that are held here, as replaced, and tell their holders."""
        for lease_id in lease_ids:
            held = self.holdings.get(lease_id)
            if held is not None:
                self.replaced += 1
                held.lease.give_back()
                _tell_replaced(held.lease)

    def answered(self, slot_key: str) -> None:
        """Hear that a call for a slot key was carried out."""
        if self.faults.answered(slot_key):
            # It may have lost its data meanwhile.
            self._renew_at = min(self._renew_at, self._renewed_at + min(1.0, self._ttl / RENEWALS_PER_TTL))
            self._changed.set()
        elif not self._busy:
            self._changed.set()

    def failed(self, slot_key: str, error: BaseException) -> None:
        """Hear that a call for a slot key was not carried out, or may not have been."""
        # An event loop that is ending is not the server's fault.
        if self.running:
            self.faults.failed(slot_key, error)
            self._changed.set()

    async def confirm(self, lease: Lease, timeout: float) -> None:
        """Wait until the server knows that a lease was given back, or is known to be away.

        It takes no longer than `timeout` seconds.
        """
        if not self.faults.is_away(lease.slot_key):
            await self.returns.wait([lease.id], timeout)

    async def aclose(self, timeout: float) -> None:
        """Wait until the server knows all that was given back, no longer than `timeout` seconds.

        Nothing is renewed afterwards if nothing is held.
        """
        task = self._task
        if task is None or task.get_loop() is not asyncio_loop():
            return
        self._send_returns(again=True)
        await self.returns.wait(self.returns.ids(), timeout)
        if not self.holdings and not self._taking:
            tasks = {task, *self._renewing.values()}
            for each in tasks:
                each.cancel()
            await asyncio.wait(tasks)
            self.returns.drop_all()

    def _owe(self, lease: Lease, *, sure: bool) -> None:
        self.returns.add(lease, sure=sure)
        self._wake()
        # RuntimeError: no event loop runs. The lease expires, unless this is used on another one before that.
        with contextlib.suppress(RuntimeError):
            if self.running:
                self._requests.send_returns()

    def _wake(self) -> None:
        # RuntimeError: the event loop is closed.
        with contextlib.suppress(RuntimeError):
            self._changed.set()

    def _enter_loop(self) -> None:
        loop = asyncio_loop()
        if self._loop is None or self._loop() is not loop:
            self._leave_loop()
            self._loop = ref(loop)

    def _start(self) -> None:
        # An eager task runs before it is kept here, and may have ended then.
        if self._task is None or self._task.done():
            self._changed = asyncio.Event()
            self._renew_at = self._next_renewal()
            self._retry_at = math.inf
            self._task = asyncio_loop().create_task(self._run(), name="livepush slot keeper")

    def _leave_loop(self) -> None:
        """Give back what an earlier event loop left behind: the streams ended with it."""
        if self._task is not None and not self._task.get_loop().is_closed():
            raise RuntimeError("a SlotCap is used on one event loop at a time; make one for each")
        self._task = None
        self._renewing.clear()
        self._taking.clear()
        self.returns.requeue()
        for held in self.holdings:
            held.lease.give_back()

    async def _run(self) -> None:
        task = asyncio.current_task()
        try:
            while self._busy:
                self._round()
                if self._busy:
                    await self._wait()
        finally:
            # An eager task that ends at once is not kept yet, and its caller sees that it is done.
            if self._task is task:
                self._task = None

    def _round(self) -> None:
        """Begin to renew what is due, and send again the returns that have failed."""
        self._changed.clear()
        now = time.monotonic()
        retry = now >= self._retry_at
        if retry:
            self._retry_at = math.inf
        if now >= self._renew_at:
            self._renewed_at, self._renew_at = now, self._next_renewal()
            self._again.clear()
            self._renew(self.holdings.slot_keys())
        elif retry:
            again, self._again = self._again, set()
            self._renew(again)
        self._send_returns(again=retry)
        self._plan()

    def _renew(self, slot_keys: Iterable[str]) -> None:
        """Begin to renew the leases of these slot keys: by a task for each server, as one may not answer."""
        places: dict[str, list[str]] = {}
        for slot_key in slot_keys:
            places.setdefault(self._place_of(slot_key), []).append(slot_key)
        for place, of_place in places.items():
            if place in self._renewing:
                self._again.update(of_place)
                continue
            task = asyncio_loop().create_task(
                self._renew_at_place(place, of_place), name="livepush slot renewal"
            )
            # An eager task may have ended by now.
            if not task.done():
                self._renewing[place] = task

    async def _renew_at_place(self, place: str, slot_keys: list[str]) -> None:
        try:
            failed = await self._renewals.renew(slot_keys)
            self._again |= failed
        finally:
            if self._renewing.get(place) is asyncio.current_task():
                del self._renewing[place]
            self._wake()

    def _plan(self) -> None:
        """Say when to try again what has failed."""
        if self.faults.away and not (self._again or self._renewing or self._taking or self.returns):
            # The failed calls have been given up. Another call has to find out when the server is back.
            self._again = self.faults.probes(self.holdings.slot_keys())
        if self._again or self.returns.any_failed or self.returns.any_due:
            if self._retry_at == math.inf:
                self._retry_at = time.monotonic() + self._backoff.next_delay()
        elif not self.faults.away and not self._renewing:
            self._backoff.reset()

    async def _wait(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(self._renew_at, self._retry_at) - time.monotonic()):
                await self._changed.wait()

    def _next_renewal(self) -> float:
        return time.monotonic() + self._ttl / RENEWALS_PER_TTL * random.uniform(0.7, 1.0)

    def _send_returns(self, *, again: bool) -> None:
        if again:
            self.returns.retry()
        if self.returns.any_due:
            self._requests.send_returns()


def _tell_replaced(lease: Lease) -> None:
    if lease.on_replaced is None:
        return
    try:
        lease.on_replaced()
    except Exception:
        logger.exception("slots: telling the holder of a replaced slot failed")
