"""SlotCap: at most so many live streams for each key, over all processes that share a Redis or Valkey."""

import logging
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

from redis.asyncio import Redis, RedisCluster
from redis.exceptions import AskError

from ...brokers.redis_connection import FAILURES
from ...errors import CapExceededError, SlotsUnavailableError
from ...loop import asyncio_loop
from .. import Hooks, KeyedLeases, Lease, OnFull, SlotHook, check_cap, lifetime_of
from .faults import ONE_NODE_OF_MANY
from .leases import Keeper
from .ledger import Ledger
from .requests import Taken
from .server import is_absence, server_of

logger = logging.getLogger("livepush_asgi")

OnError = Literal["open", "closed"]

# How long `aclose` waits for the server, in seconds.
CLOSE_TIMEOUT = 2.0


class SlotStatistics(NamedTuple):
    """What a `SlotCap` counts, in this process."""

    #: Leases held now.
    held: int
    #: Slots that were given since the beginning, `failed_open` among them.
    taken: int
    #: Takes that found no slot free.
    refused: int
    #: Slots given without being counted, because the server was away or refused the slot key.
    failed_open: int
    #: Leases held here that had to go for newer ones.
    replaced: int
    #: Give-backs that the server does not know of yet.
    owed: int
    #: Give-backs that it never came to know of; those leases expired.
    dropped: int
    #: Whether a server did not answer the last time.
    away: bool
    #: Slot keys that a server which answers has refused the last time: they hold another type, for example.
    refused_keys: int = 0


class SlotCap:
    """At most `cap` live streams for each key.

    A slot is a lease on the server that lives for `ttl` seconds and is renewed by this process for as
    long as the stream lives; the slots of a process that crashed are free after `ttl`. `ttl_seconds`
    is another name for `ttl`, which is 60 if neither is given. A server that lost its data is told
    again at the next renewal.

    With `on_full="replace_oldest"` the newest stream wins and the oldest of the key has to go.

    `on_error` says what happens when a key cannot be counted, because its server is away or because the
    server refuses that one key (it holds another type, the user has no permission for it). With `"open"`
    the cap lets streams in uncounted, up to `cap` for each key in this process, and counts them as soon as
    it can; with `"closed"` it refuses them, and a lease that expired while its process stood still or was cut
    off ends if the key is full by then. A refused key concerns no other key. A server counts as away when it
    cannot be reached, does not answer, or says that it can serve no key now (LOADING, BUSY, READONLY, OOM,
    MISCONF, NOREPLICAS, CLUSTERDOWN, MASTERDOWN). The log has a line when a server goes away or comes back,
    and when the first key is refused or the last one is not any more.

    No take waits longer than `timeout` seconds. A slot that is given back in this process is free for any
    take that comes after it.

    The client stays its owner's. It is a `Redis`, or a `RedisCluster`, of which each node counts its own
    keys; a `Redis` that talks to one node of a cluster of several is refused at the first take. A proxy that
    spreads keys over several servers will not do. Use one cap on one event loop at a time. Several `LivePush`
    objects may share it.
    """

    #: No take waits longer than `timeout`, so a request awaits it itself. A task for each costs 40 µs.
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
        check_cap(cap, on_full)
        if on_error not in ("open", "closed"):
            raise ValueError(f"on_error is 'open' or 'closed', not {on_error!r}")
        if not timeout > 0:
            raise ValueError(f"timeout is in seconds and more than 0, not {timeout!r}")
        lifetime = lifetime_of(ttl, ttl_seconds)
        self._cap = cap
        self._on_full = on_full
        self._on_error = on_error
        self._timeout = timeout
        self._hooks = Hooks(on_acquire, on_release)
        # Made once, and not for each of ten thousand leases.
        self._on_give_back = self._give_back
        self._keyed = KeyedLeases()
        self._server = server_of(redis, timeout=timeout)
        self._ledger = Ledger(
            self._server,
            prefix=key_prefix,
            cap=cap,
            ttl=lifetime,
            replace=on_full == "replace_oldest",
            strict=on_error == "closed",
        )
        meanwhile = "streams are let in uncounted" if on_error == "open" else "no stream is let in"
        self._keeper = Keeper(self._server, self._ledger, ttl=lifetime, timeout=timeout, meanwhile=meanwhile)
        self._taken = self._refused = self._failed_open = 0
        self._told_loop = False

    @property
    def cap(self) -> int:
        """How many slots each key has."""
        return self._cap

    async def take(self, slot_key: str, on_replaced: Callable[[], None] | None = None) -> Lease:
        """Take a slot and return its lease, whose id the server knows by then.

        The lease's `replaced` names leases of other processes only; holders in this process were told.

        Raises CapExceededError when all are taken and none may be replaced. Raises SlotsUnavailableError when
        the key cannot be counted and the cap fails closed, when the client talks to one node of a cluster
        that does not have all keys, or when the event loop is not asyncio's; ValueError for a key that cannot
        be encoded as UTF-8, before anything is sent. A call that is cancelled has taken nothing.
        """
        lease = Lease(slot_key, self._on_give_back, on_replaced)
        self._check(slot_key)
        if self._on_error == "open" and self._keeper.is_trying(slot_key):
            return self._let_in(lease, sent=False)
        try:
            answer = await self._keeper.take(lease)
        except FAILURES as error:
            return self._take_failed(lease, error)
        except BaseException:
            self._keeper.abandon(lease)
            raise
        if self._server.partial:
            self._keeper.abandon(lease, sure=True)
            raise self._one_node_of_many(slot_key)
        return self._accept(lease, answer)

    async def acquire(self, slot_key: str) -> bool:
        """Take a slot by its key alone; False if all are taken. Pairs with `release`.

        The slot stays taken until it is released or this process ends, also after `aclose`.
        """
        try:
            lease = await self.take(slot_key)
        except CapExceededError:
            return False
        self._keyed.add(lease)
        return True

    async def release(self, slot_key: str) -> None:
        """Give back a slot that `acquire` took; nothing if there is none.

        Returns when the server knows, after `timeout` seconds at the latest, and at once while the server is
        known to be away. The slot is given back in any case, also when the call is cancelled.
        """
        lease = self._keyed.give_back(slot_key)
        if lease is not None:
            await self._keeper.confirm(lease, self._timeout)

    def replaced(self, ids: Iterable[str]) -> None:
        """End the leases of these ids that are held here: a newer one took their place elsewhere.

        Their `on_replaced` is called; ids that are not held here are ignored. It costs the same however many
        leases are held. Without being told, this process learns it at its next renewal.
        """
        self._keeper.end(ids)

    async def held(self, slot_key: str) -> int:
        """Return how many slots of the key are taken, by all processes. Asks the server.

        Raises SlotsUnavailableError if it does not answer or refuses the key.
        """
        self._check(slot_key)
        try:
            return await self._ledger.count(slot_key)
        except FAILURES as error:
            raise SlotsUnavailableError(
                f"the slots of {slot_key!r} cannot be counted, {self._cause(slot_key, error)}"
            ) from error

    def statistics(self) -> SlotStatistics:
        """Return what was counted in this process until now."""
        return SlotStatistics(
            held=len(self._keeper.holdings),
            taken=self._taken,
            refused=self._refused,
            failed_open=self._failed_open,
            replaced=self._keeper.replaced,
            owed=len(self._keeper.returns),
            dropped=self._keeper.returns.dropped,
            away=self._keeper.faults.away,
            refused_keys=self._keeper.faults.refused_keys,
        )

    async def aclose(self) -> None:
        """Wait up to 2 seconds until the server knows of all slots that were given back here.

        A slot that is still held stays its holder's, and is renewed as long as the event loop runs: another
        `LivePush` may share this cap. What `acquire` took stays taken until it is released.
        """
        await self._keeper.aclose(CLOSE_TIMEOUT)

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
            if not self._told_loop:
                self._told_loop = True
                logger.error("slots: no slot can be taken: %s", error)
            raise SlotsUnavailableError(f"no slot of {slot_key!r} can be taken: {error}") from error

    def _accept(self, lease: Lease, answer: Taken) -> Lease:
        if not answer.taken:
            self._keeper.forget(lease)
            self._refused += 1
            raise CapExceededError(lease.slot_key, self._cap)
        self._keeper.hold(lease, sent=True, sure=True)
        if answer.replaced:
            lease.replaced = tuple(id_ for id_ in answer.replaced if self._keeper.holdings.get(id_) is None)
            self._keeper.end(answer.replaced)
        return self._given(lease)

    def _take_failed(self, lease: Lease, error: Exception) -> Lease:
        # After a refusal nothing is on the server, so that there is nothing to give back.
        sent = not self._server.has_refused(error)
        misdirected = self._server.one and isinstance(error, AskError)
        if self._on_error == "open" and not misdirected:
            return self._let_in(lease, sent=sent)
        if sent:
            self._keeper.abandon(lease)
        else:
            self._keeper.forget(lease)
        if misdirected:
            raise self._one_node_of_many(lease.slot_key) from error
        raise SlotsUnavailableError(
            f"no slot of {lease.slot_key!r} can be taken, {self._cause(lease.slot_key, error)}"
        ) from error

    def _cause(self, slot_key: str, error: Exception) -> str:
        outcome = "does not answer" if is_absence(error) else "refuses this key"
        return f"{self._ledger.place_of(slot_key)} {outcome}: {error}"

    def _one_node_of_many(self, slot_key: str) -> SlotsUnavailableError:
        return SlotsUnavailableError(
            f"no slot of {slot_key!r} can be taken, {self._server.where} {ONE_NODE_OF_MANY}"
        )

    def _let_in(self, lease: Lease, *, sent: bool) -> Lease:
        """Give a slot without its being counted. The cap holds among the leases of this process alone."""
        mine = self._keeper.holdings.of(lease.slot_key)
        if len(mine) >= self._cap:
            if self._on_full == "refuse":
                if sent:
                    self._keeper.abandon(lease)
                else:
                    self._keeper.forget(lease)
                self._refused += 1
                raise CapExceededError(lease.slot_key, self._cap)
            self._keeper.end([held.lease.id for held in mine[: len(mine) - self._cap + 1]])
        self._failed_open += 1
        self._keeper.hold(lease, sent=sent, sure=False)
        return self._given(lease)

    def _given(self, lease: Lease) -> Lease:
        self._taken += 1
        self._hooks.acquired(lease.slot_key)
        return lease

    def _give_back(self, lease: Lease) -> None:
        self._keeper.give_back(lease)
        self._hooks.released(lease.slot_key)
