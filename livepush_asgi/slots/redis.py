"""SlotCap: at most so many live streams for each key, over all processes that share a Redis or Valkey."""

from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

from redis.asyncio import Redis

from ..brokers.redis_connection import FAILURES, address_of, pool_of
from ..errors import CapExceededError, SlotsUnavailableError
from . import Hooks, KeyedLeases, Lease, OnFull, SlotHook, check_cap
from .keeper import Keeper
from .ledger import Ledger
from .takes import Taken

OnError = Literal["open", "closed"]

DEFAULT_TTL = 60.0
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
    #: Slots given without asking, because the server was away.
    failed_open: int
    #: Leases held here that had to go for newer ones.
    replaced: int
    #: Give-backs that the server does not know of yet.
    owed: int
    #: Give-backs that it never came to know of; those leases expired.
    dropped: int
    #: Whether the server did not answer the last time.
    away: bool


class SlotCap:
    """At most `cap` live streams for each key.

    A slot is a lease on the server that lives for `ttl` seconds and is renewed by this process for as
    long as the stream lives; the slots of a process that crashed are free after `ttl`. `ttl_seconds`
    is another name for `ttl`, which is 60 if neither is given. A server that lost its data is told
    again at the next renewal.

    With `on_full="replace_oldest"` the newest stream wins and the oldest of the key has to go. While the
    server is away, `on_error="open"` lets streams in, up to `cap` for each key in this process, and
    counts them when it is back; `"closed"` refuses them. No take waits longer than `timeout` seconds.

    The client stays its owner's. It talks to one server, or one node of a cluster, and not through a proxy
    that spreads keys over several: one call takes slots of several keys. Use one cap on one event loop at
    a time.
    """

    def __init__(
        self,
        redis: Redis,
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
        lifetime = _lifetime(ttl, ttl_seconds)
        self._where = address_of(pool_of(redis))
        self._cap = cap
        self._on_full = on_full
        self._on_error = on_error
        self._hooks = Hooks(on_acquire, on_release)
        # Made once, and not for each of ten thousand leases.
        self._on_give_back = self._give_back
        self._keyed = KeyedLeases()
        self._ledger = Ledger(
            redis,
            prefix=key_prefix,
            cap=cap,
            ttl=lifetime,
            replace=on_full == "replace_oldest",
            timeout=timeout,
        )
        meanwhile = "streams are let in uncounted" if on_error == "open" else "no stream is let in"
        self._keeper = Keeper(self._ledger, ttl=lifetime, where=self._where, meanwhile=meanwhile)
        self._taken = self._refused = self._failed_open = 0

    @property
    def cap(self) -> int:
        """How many slots each key has."""
        return self._cap

    async def take(self, slot_key: str, on_replaced: Callable[[], None] | None = None) -> Lease:
        """Take a slot and return its lease. Its `replaced` names leases of other processes only.

        Raises CapExceededError when all are taken and none may be replaced, and SlotsUnavailableError
        when the server does not answer and the cap fails closed; UnicodeError for a key that is not
        UTF-8. A call that is cancelled has taken nothing.
        """
        lease = Lease(slot_key, self._on_give_back, on_replaced)
        # A key that cannot be sent is the caller's fault; nothing of it may be begun or owed.
        slot_key.encode()
        if self._on_error == "open" and self._keeper.trying:
            return self._let_in(lease)
        self._keeper.begin(lease)
        try:
            answer = await self._ledger.take(slot_key, lease.id)
        except FAILURES as error:
            self._keeper.failed(error)
            if self._on_error == "open":
                return self._let_in(lease)
            self._keeper.abandon(lease)
            raise SlotsUnavailableError(
                f"no slot of {slot_key!r} can be taken, {self._where} does not answer: {error}"
            ) from error
        except BaseException:
            self._keeper.abandon(lease)
            raise
        self._keeper.reached()
        return self._accept(lease, answer)

    async def acquire(self, slot_key: str) -> bool:
        """Take a slot by its key alone; False if all are taken. Pairs with `release`."""
        try:
            lease = await self.take(slot_key)
        except CapExceededError:
            return False
        self._keyed.add(lease)
        return True

    async def release(self, slot_key: str) -> None:
        """Give back a slot that `acquire` took; nothing if there is none."""
        self._keyed.give_back(slot_key)

    def replaced(self, ids: Iterable[str]) -> None:
        """End the leases of these ids that are held here: a newer one took their place elsewhere.

        Without being told, this process learns it at its next renewal.
        """
        self._keeper.end(ids)

    async def held(self, slot_key: str) -> int:
        """Return how many slots of the key are taken, by all processes. Asks the server.

        Raises SlotsUnavailableError if it does not answer.
        """
        try:
            return await self._ledger.count(slot_key)
        except FAILURES as error:
            raise SlotsUnavailableError(f"{self._where} does not answer: {error}") from error

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
            away=self._keeper.away,
        )

    async def aclose(self) -> None:
        """Give back every slot that is held here, and wait up to 2 seconds until the server knows."""
        for held in self._keeper.holdings:
            held.lease.give_back()
        await self._keeper.aclose(CLOSE_TIMEOUT)

    def _accept(self, lease: Lease, answer: Taken) -> Lease:
        if not answer.taken:
            self._keeper.forget(lease)
            self._refused += 1
            raise CapExceededError(lease.slot_key, self._cap)
        self._keeper.hold(lease, sure=True)
        if answer.replaced:
            lease.replaced = tuple(id_ for id_ in answer.replaced if self._keeper.holdings.get(id_) is None)
            self._keeper.end(answer.replaced)
        return self._given(lease)

    def _let_in(self, lease: Lease) -> Lease:
        """Give a slot without asking, within what is known here: this process alone may be at the cap."""
        mine = self._keeper.holdings.of(lease.slot_key)
        if len(mine) >= self._cap:
            if self._on_full == "refuse":
                self._keeper.abandon(lease)
                self._refused += 1
                raise CapExceededError(lease.slot_key, self._cap)
            self._keeper.end([held.lease.id for held in mine[: len(mine) - self._cap + 1]])
        self._failed_open += 1
        self._keeper.hold(lease, sure=False)
        return self._given(lease)

    def _given(self, lease: Lease) -> Lease:
        self._taken += 1
        self._hooks.acquired(lease.slot_key)
        return lease

    def _give_back(self, lease: Lease) -> None:
        self._keeper.give_back(lease)
        self._hooks.released(lease.slot_key)


def _lifetime(ttl: float | None, ttl_seconds: float | None) -> float:
    if ttl is not None and ttl_seconds is not None:
        raise ValueError("ttl and ttl_seconds are two names for one thing; give one of them")
    given = ttl if ttl is not None else ttl_seconds
    lifetime = DEFAULT_TTL if given is None else given
    if not lifetime > 0:
        raise ValueError(f"ttl is in seconds and more than 0, not {lifetime!r}")
    return float(lifetime)
