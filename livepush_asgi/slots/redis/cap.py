"""SlotCap: at most so many open streams for each key, over all processes that share a Redis or Valkey."""

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

from redis.asyncio import Redis, RedisCluster

from ...brokers.redis.connection import FAILURES, named_timeout
from ...errors import CapExceededError, SlotsUnavailableError
from ...runtime.event_loop import asyncio_loop
from ...runtime.failure_log import fields
from ...settings import check_seconds
from .. import BaseSlotCap, Lease, OnFull, SlotHook
from .leases import Answer, HeldLeases, LeaseRecord
from .store import ONE_NODE_OF_MANY, Faults, LeaseStore, Settings, is_absence

logger = logging.getLogger("livepush_asgi")

OnError = Literal["open", "closed"]

DEFAULT_TTL = 60.0
# In seconds. Longer times are most likely in milliseconds.
LONGEST_TTL, LONGEST_TIMEOUT = 24 * 3600, 600
# How long `aclose` waits for the server, in seconds.
CLOSE_TIMEOUT = 2.0


class SlotStatistics(NamedTuple):
    """The figures of a `SlotCap`, for this process."""

    #: Leases held now.
    held: int
    #: Slots that were acquired since the beginning, `failed_open` among them.
    acquired: int
    #: Acquires that found no slot free.
    refused: int
    #: Slots acquired without being counted, because the server was away or refused the slot key.
    failed_open: int
    #: Leases held here that were ended to make room for newer ones.
    replaced: int
    #: Releases that the server has not confirmed yet.
    owed: int
    #: Releases that were given up without a confirmation; those leases expire.
    dropped: int
    #: Whether a server did not answer the last time.
    away: bool
    #: Slot keys that a server refused the last time, because they hold another type, for example.
    refused_keys: int = 0


class SlotCap(BaseSlotCap):
    """At most `cap` open streams for each key, counted on a server.

    A slot is a lease that lives for `ttl` seconds on the server. This process renews it as long as the stream
    is open; the slots of a process that crashed are free after `ttl`. `ttl_seconds` is another name for
    `ttl`, which is 60 if neither is given. A server that lost its data gets the leases again at the next
    renewal. With `on_full="replace_oldest"` a new stream is always let in, and the oldest stream of the key
    ends. Its page has to close it, see `MemorySlotCap`.

    `on_error` says what happens when a key cannot be counted, because its server is away or because the
    server refuses that one key (it holds another type, the user has no permission for it). With `"open"`
    the cap lets streams in uncounted, up to `cap` for each key in this process, and counts them as soon as
    it can. With `"closed"` it refuses them, and a lease that expired while its process was stopped or cut off
    ends if the key is full by then. A refused key does not affect other keys. A server counts as away when it
    cannot be reached, does not answer, or replies that it can serve no key now (LOADING, BUSY, READONLY, OOM,
    MISCONF, NOREPLICAS, CLUSTERDOWN, MASTERDOWN). The log has a line when a server goes away or comes back,
    and when the first key is refused or the last one is accepted again.

    `acquire_lease` waits for at most `timeout` seconds. A slot that is released in this process is free for
    every later `acquire_lease`.

    The client is a `Redis` or a `RedisCluster`; the cap does not close it. In a cluster each node counts its
    own keys. With a `Redis` that talks to one node of a cluster of several, every `acquire_lease` raises. A
    proxy that spreads keys over several servers does not work. Use one cap on one event loop at a time.
    Several `LivePush` objects may share it.
    """

    #: See `Slots`: a request awaits `acquire_lease` directly. A task for each call would cost 40 µs.
    bounded = True

    def __init__(
        self,
        redis: Redis | RedisCluster,
        *,
        cap: int = 20,
        ttl: float | None = None,
        ttl_seconds: float | None = None,
        key_prefix: str = "livepush:slot:",
        on_full: OnFull = "refuse",
        on_error: OnError = "open",
        timeout: float = 2.0,
        on_acquire: SlotHook | None = None,
        on_release: SlotHook | None = None,
    ) -> None:
        super().__init__(cap, on_full, on_acquire, on_release)
        if on_error not in ("open", "closed"):
            raise ValueError(f"on_error is 'open' or 'closed', not {on_error!r}")
        check_seconds("timeout", timeout, LONGEST_TIMEOUT)
        if ttl is not None and ttl_seconds is not None:
            raise ValueError("ttl and ttl_seconds are two names for one thing; give one of them")
        lifetime = next((given for given in (ttl, ttl_seconds) if given is not None), DEFAULT_TTL)
        check_seconds("ttl", lifetime, LONGEST_TTL)
        # One bound method for all leases.
        self._released = self._lease_released
        self._settings = Settings(cap, lifetime, timeout, self._replaces, on_error == "open")
        self._store = LeaseStore(redis, key_prefix, self._settings)
        self._faults = Faults(self._store)
        self._leases = HeldLeases(self._store, self._faults)
        self._acquired = self._refused = self._failed_open = 0
        self._wrong_loop_logged = False

    async def acquire_lease(self, slot_key: str, on_replaced: Callable[[], None] | None = None) -> Lease:
        """Acquire a slot and return its lease, which the server has stored by then.

        The lease's `replaced` names leases of other processes only. In this process, `on_replaced` was
        called.

        Raises CapExceededError when all are taken and none may be replaced. Raises SlotsUnavailableError when
        the key cannot be counted and the cap fails closed, when the client talks to one node of a cluster
        that does not have all keys, or when the event loop is not asyncio's; ValueError for a key that cannot
        be encoded as UTF-8, before anything is sent. A call that is cancelled has acquired nothing.
        """
        lease = Lease(slot_key, self._released, on_replaced)
        self._check(slot_key)
        record, leases = LeaseRecord(lease), self._leases
        away = self._faults.away and self._faults.is_away(slot_key)
        try:
            if away and self._settings.fails_open and leases.running:
                replaced = self._let_in(slot_key)
            else:
                replaced = self._replaced_by(slot_key, await leases.acquire(record))
        except BaseException:
            leases.abandon(record)
            raise
        leases.hold(record)
        if replaced:
            lease.replaced = tuple(lease_id for lease_id in replaced if lease_id not in leases.held)
            leases.end(replaced)
        self._acquired += 1
        if self._on_acquire is not None:
            self._call_hook(self._on_acquire, slot_key)
        return lease

    async def release(self, slot_key: str) -> None:
        """Release the oldest slot that `acquire` got. Does nothing if there is none.

        Returns when the server has confirmed, after `timeout` seconds at the latest, and at once while the
        server is known to be away. The slot is released in any case, also when the call is cancelled.
        """
        lease = self._release_oldest(slot_key)
        if lease is not None and not self._faults.is_away(slot_key):
            await self._leases.released([lease.id], self._settings.timeout)

    def replaced(self, ids: Iterable[str]) -> None:
        """End the leases of these ids that this process holds: another process has replaced them.

        Calls their `on_replaced`, and ignores ids that this process does not hold. The cost does not depend
        on the number of held leases. Without this call a process learns of it at its next renewal.
        """
        self._leases.end(ids)

    async def held(self, slot_key: str) -> int:
        """Ask the server how many slots of the key are taken, by all processes.

        Raises SlotsUnavailableError if it does not answer or refuses the key.
        """
        self._check(slot_key)
        try:
            async with asyncio.timeout(self._settings.timeout):
                return await self._store.count(slot_key)
        except FAILURES as error:
            cause = named_timeout(error, self._settings.timeout)
            raise self._unavailable("the slots of {!r} cannot be counted", slot_key, cause) from error

    def statistics(self) -> SlotStatistics:
        """Return the figures of this process."""
        return SlotStatistics(
            held=len(self._leases.held),
            acquired=self._acquired,
            refused=self._refused,
            failed_open=self._failed_open,
            replaced=self._leases.replaced,
            owed=len(self._leases.releases),
            dropped=self._leases.dropped,
            away=bool(self._faults.away),
            refused_keys=len(self._faults.refused),
        )

    async def aclose(self) -> None:
        """Wait up to 2 seconds until the server has confirmed all slots that were released here.

        Slots that are still held stay taken, and are renewed as long as the event loop runs: another
        `LivePush` may share this cap. Slots that `acquire` got stay taken until they are released.
        """
        await self._leases.aclose(CLOSE_TIMEOUT)

    def _check(self, slot_key: str) -> None:
        """Raise ValueError for a key that cannot be sent, and SlotsUnavailableError on trio's event loop."""
        try:
            slot_key.encode()
            asyncio_loop()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"the slot key {slot_key!r} cannot be encoded as UTF-8: it has a lone surrogate, as text has "
                "that was decoded with 'surrogateescape'"
            ) from error
        except RuntimeError as error:
            if not self._wrong_loop_logged:
                self._wrong_loop_logged = True
                logger.error(
                    "slots: no slot can be taken: %s", error, extra=fields("slots_unusable", error=str(error))
                )
            raise SlotsUnavailableError(f"no slot of {slot_key!r} can be taken: {error}") from error

    def _replaced_by(self, slot_key: str, answer: Answer) -> tuple[str, ...]:
        """Return the ids of the leases that a new one has replaced. Raises if there is no slot for it."""
        if self._store.partial or (isinstance(answer, Exception) and not self._settings.fails_open):
            raise self._unavailable("no slot of {!r} can be taken", slot_key, answer)
        if isinstance(answer, Exception):
            return self._let_in(slot_key)
        if answer is None:
            raise self._full(slot_key)
        return answer

    def _let_in(self, slot_key: str) -> tuple[str, ...]:
        """Let a stream in without the server. The cap applies to the leases of this process alone."""
        mine = [record.lease.id for record in self._leases.held.of(slot_key)]
        if len(mine) >= self._cap:
            if not self._replaces:
                raise self._full(slot_key)
            self._leases.end(mine[: len(mine) - self._cap + 1])
        self._failed_open += 1
        return ()

    def _full(self, slot_key: str) -> CapExceededError:
        self._refused += 1
        return CapExceededError(slot_key, self._cap)

    def _lease_released(self, lease: Lease) -> None:
        self._leases.release(lease)
        if self._on_release is not None:
            self._call_hook(self._on_release, lease.slot_key)

    def _unavailable(self, what: str, slot_key: str, error: object) -> SlotsUnavailableError:
        outcome = "does not answer" if is_absence(error) else "refuses this key"
        cause = f"{self._store.server_of(slot_key)} {outcome}: {error}"
        if self._store.partial:
            cause = f"{self._store.where} {ONE_NODE_OF_MANY}"
        return SlotsUnavailableError(f"{what.format(slot_key)}, {cause}")
