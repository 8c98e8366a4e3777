"""Keeper: one task that renews the leases of a process and tells the server which ones it gave back.

It lives while a lease is being taken, is held, or is still to be given back.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Coroutine, Iterable
from weakref import ReferenceType, ref

from ..brokers.backoff import Backoff
from ..brokers.redis_connection import FAILURES
from ..loop import asyncio_loop
from . import Lease
from .holdings import Held, Holdings
from .ledger import Age, Ledger
from .returns import LEASES_PER_CALL, Group, Returns

logger = logging.getLogger("livepush_asgi")

# A lease outlives two renewals that failed.
RENEWALS_PER_TTL = 3
# So many calls go out at once, lest the event loop stand still for all of them.
CALLS_AT_ONCE = 200


class Keeper:
    """What one `SlotCap` holds, and what it owes the server."""

    def __init__(self, ledger: Ledger, *, ttl: float, where: str, meanwhile: str) -> None:
        self.holdings = Holdings()
        self.returns = Returns(ttl)
        #: Leases that were ended here because a newer one took their place.
        self.replaced = 0
        #: Whether the server did not answer the last time.
        self.away = False
        self._ledger = ledger
        self._ttl = ttl
        self._where = where
        self._meanwhile = meanwhile
        self._taking: set[str] = set()
        self._renew_at = 0.0
        self._backoff = Backoff()
        self._task: asyncio.Task[None] | None = None
        # The event is made anew with the task: it belongs to the event loop.
        self._changed = asyncio.Event()
        self._loop: ReferenceType[asyncio.AbstractEventLoop] | None = None

    @property
    def trying(self) -> bool:
        """Whether the server is away and will be noticed when it is back, without being asked again."""
        return self.away and self._task is not None and bool(self.returns or self.holdings)

    @property
    def _busy(self) -> bool:
        return bool(self._taking or self.returns or self.holdings)

    def begin(self, lease: Lease) -> None:
        """Note that a lease is being taken. `hold`, `forget` or `abandon` follows.

        The task starts here, before anything waits: when the event loop ends, which cancels what runs,
        none may be started any more.
        """
        self._start()
        self._taking.add(lease.id)

    def hold(self, lease: Lease, *, sure: bool) -> None:
        """Keep a lease. One that the server may not know, not `sure`, is told at once."""
        self._taking.discard(lease.id)
        self.holdings.add(Held(lease, sure=sure))
        if not sure:
            self._renew_at = 0.0
            self._changed.set()

    def forget(self, lease: Lease) -> None:
        """Note that a lease was not to be had."""
        self._taking.discard(lease.id)
        self._changed.set()

    def abandon(self, lease: Lease) -> None:
        """Give back a lease of which nobody knows whether it was taken, if it was begun."""
        if lease.id in self._taking:
            self._taking.discard(lease.id)
            self._owe(lease, sure=False)

    def give_back(self, lease: Lease) -> None:
        """Hold a lease no more, and tell the server as soon as possible."""
        held = self.holdings.pop(lease.id)
        if held is not None:
            self._owe(lease, sure=held.sure)

    def reached(self) -> None:
        """Note that the server answered."""
        if self.away:
            self.away = False
            logger.warning("slots: %s is back", self._where)

    def failed(self, error: BaseException) -> None:
        """Note that the server did not answer, or refused."""
        if not self.away:
            self.away = True
            logger.warning("slots: %s cannot be asked, %s: %s", self._where, self._meanwhile, error)

    def end(self, lease_ids: Iterable[str]) -> None:
        """Give back those of the leases that are held here, as replaced, and tell their holders."""
        for lease_id in lease_ids:
            held = self.holdings.get(lease_id)
            if held is not None:
                self.replaced += 1
                held.lease.give_back()
                _tell_replaced(held.lease)

    async def aclose(self, timeout: float) -> None:
        """Wait until everything is told, no longer than `timeout` seconds, and stop."""
        task = self._task
        if task is None or task.get_loop() is not asyncio.get_running_loop():
            return
        self._changed.set()
        await asyncio.wait({task}, timeout=timeout)
        task.cancel()
        await asyncio.wait({task})
        self.returns.drop_all()

    def _owe(self, lease: Lease, *, sure: bool) -> None:
        self.returns.add(lease, sure=sure)
        # A RuntimeError says that the event loop is closed. Then nobody is left to tell; the lease expires.
        with contextlib.suppress(RuntimeError):
            self._changed.set()

    def _start(self) -> None:
        loop = asyncio_loop()
        if self._loop is None or self._loop() is not loop:
            self._leave_loop()
            self._loop = ref(loop)
        if self._task is None:
            self._changed = asyncio.Event()
            self._renew_at = self._next_renewal()
            self._task = loop.create_task(self._run(), name="livepush slot keeper")

    def _leave_loop(self) -> None:
        """Give back what an earlier event loop left behind: the streams ended with it."""
        if self._task is not None and not self._task.get_loop().is_closed():
            raise RuntimeError("a SlotCap is used on one event loop at a time; make one for each")
        self._task = None
        self._taking.clear()
        for held in self.holdings:
            held.lease.give_back()

    async def _run(self) -> None:
        task = asyncio.current_task()
        try:
            while self._busy:
                delay = await self._round()
                if self._busy:
                    await self._wait(delay)
        finally:
            if self._task is task:
                self._task = None

    async def _round(self) -> float | None:
        """Tell the server all there is to tell. Return how long to wait, in seconds, if that failed."""
        self._changed.clear()
        try:
            told = await self._tell_returns() + await self._renew()
        except FAILURES as error:
            self.failed(error)
        except Exception:
            # A fault of this package. It must be heard of, and it must not end the renewals.
            logger.exception("slots: renewing the leases failed")
        else:
            if told:
                self.reached()
            self._backoff.reset()
            return None
        self._renew_at = 0.0
        return self._backoff.next_delay()

    async def _wait(self, delay: float | None) -> None:
        if delay is not None:
            await asyncio.sleep(delay)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._renew_at - time.monotonic()):
                await self._changed.wait()

    async def _tell_returns(self) -> int:
        self.returns.drop_expired()
        groups = list(self.returns.groups())
        await _all(self._tell_group(group) for group in groups)
        return len(groups)

    async def _tell_group(self, group: Group) -> None:
        await self._ledger.remove(group.slot_key, group.lease_ids, barred=not group.sure)
        self.returns.done(group.lease_ids)

    async def _renew(self) -> int:
        if time.monotonic() < self._renew_at:
            return 0
        self._renew_at = self._next_renewal()
        leases = self.holdings.by_key()
        await _all(
            self._renew_group(slot_key, held[start : start + LEASES_PER_CALL])
            for slot_key, held in leases
            for start in range(0, len(held), LEASES_PER_CALL)
        )
        return len(leases)

    def _next_renewal(self) -> float:
        return time.monotonic() + self._ttl / RENEWALS_PER_TTL * random.uniform(0.7, 1.0)

    async def _renew_group(self, slot_key: str, group: list[Held]) -> None:
        # A lease may have been given back since the list was made; renewing it would bring it back.
        group = [held for held in group if not held.lease.given_back]
        for held in group:
            held.sure = False
        now = time.monotonic()
        replaced = await self._ledger.renew(
            slot_key, [Age(held.lease.id, now - held.since) for held in group]
        )
        for held in group:
            held.sure = True
        self.end(replaced)


async def _all(calls: Iterable[Coroutine[None, None, None]]) -> None:
    """Make calls, so many at once, and raise the first error. None is begun after a slice that had one."""
    waiting = list(calls)
    while waiting:
        now, waiting = waiting[:CALLS_AT_ONCE], waiting[CALLS_AT_ONCE:]
        outcomes = await asyncio.gather(*now, return_exceptions=True)
        errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        if errors:
            for call in waiting:
                call.close()
            raise errors[0]


def _tell_replaced(lease: Lease) -> None:
    if lease.on_replaced is None:
        return
    try:
        lease.on_replaced()
    except Exception:
        logger.exception("slots: telling the holder of a replaced slot failed")
