"""The slot port, and `MemorySlotCap`, which keeps to it inside one process.

A slot is a lease: taken before a stream starts, renewed while it lives, given back once. Giving
back never waits, so that it can be done on any ending, in the middle of a cancellation too.
"""

import logging
from collections.abc import Callable
from itertools import count
from os import urandom
from typing import Literal, Protocol, runtime_checkable

from ..errors import CapExceededError

logger = logging.getLogger("livepush_asgi")

OnFull = Literal["refuse", "replace_oldest"]
SlotHook = Callable[[str], None]

DEFAULT_TTL = 60.0

_numbers = count()


class Lease:
    """One taken slot.

    `replaced` names the leases (by id) that had to go so that this one could be taken; whoever
    took the slot tells the processes that hold them. `on_replaced` is called, on the event loop,
    when this lease is the one that has to go.
    """

    __slots__ = ("_give_back", "_id", "on_replaced", "replaced", "slot_key")

    def __init__(
        self,
        slot_key: str,
        give_back: Callable[["Lease"], None],
        on_replaced: Callable[[], None] | None = None,
    ) -> None:
        # An empty slot key is almost certainly a bug in the caller.
        if not isinstance(slot_key, str) or not slot_key:
            raise ValueError(f"a slot key is a non-empty str, not {slot_key!r}")
        self._id: str | None = None
        self.slot_key = slot_key
        self.on_replaced = on_replaced
        self.replaced: tuple[str, ...] = ()
        self._give_back: Callable[[Lease], None] | None = give_back

    def give_back(self) -> None:
        """Give the slot back. Returns at once, never raises, and does nothing the second time."""
        give_back, self._give_back = self._give_back, None
        if give_back is not None:
            give_back(self)

    @property
    def id(self) -> str:
        """Its name outside of this process: no other lease has it.

        It may be asked for as soon as `take` has returned, and never changes. It is drawn when first asked
        for: a `SlotCap` does so before it asks the server, while a lease of `MemorySlotCap`, which no other
        process can replace, has none until then.
        """
        if self._id is None:
            self._id = _new_id()
        return self._id

    @property
    def given_back(self) -> bool:
        """Whether the slot has been given back."""
        return self._give_back is None


def _new_id() -> str:
    # The number has the leases of a process in order where two were taken at the same moment. What is drawn
    # for each makes it one of its kind, also after a fork, and not to be guessed.
    return f"{next(_numbers):010x}{urandom(11).hex()}"


@runtime_checkable
class Slots(Protocol):
    """At most `cap` live streams for each key."""

    @property
    def cap(self) -> int:
        """How many slots each key has."""
        ...

    async def take(self, slot_key: str, on_replaced: Callable[[], None] | None = None) -> Lease:
        """Take a slot of `slot_key` and return its lease, which the caller gives back once.

        Raises CapExceededError when all are taken and SlotsUnavailableError when that cannot be
        known and the cap fails closed. A call that is cancelled has taken nothing.
        """
        ...

    async def aclose(self) -> None:
        """Wait, for a bounded time, until it is known outside what was given back here.

        What is held stays its holder's, who gives it back: several `LivePush` objects may share one cap.
        """
        ...


class Hooks:
    """The two callbacks of a cap. A hook that raises is logged: it must not cost anyone a slot."""

    __slots__ = ("_on_acquire", "_on_release")

    def __init__(self, on_acquire: SlotHook | None, on_release: SlotHook | None) -> None:
        self._on_acquire = on_acquire
        self._on_release = on_release

    def acquired(self, slot_key: str) -> None:
        """Tell that a slot of this key was taken."""
        self._call(self._on_acquire, slot_key)

    def released(self, slot_key: str) -> None:
        """Tell that a slot of this key was given back."""
        self._call(self._on_release, slot_key)

    @staticmethod
    def _call(hook: SlotHook | None, slot_key: str) -> None:
        if hook is None:
            return
        try:
            # In a namespace the key has a prefix, which the application did not give it.
            hook(getattr(slot_key, "plain", slot_key))
        except Exception:
            logger.exception("the slot hook %r raised", hook)


class KeyedLeases:
    """Leases by key, for callers that name only the key when they give a slot back."""

    __slots__ = ("_leases",)

    def __init__(self) -> None:
        self._leases: dict[str, list[Lease]] = {}

    def add(self, lease: Lease) -> None:
        """Remember a lease under its key."""
        self._leases.setdefault(lease.slot_key, []).append(lease)

    def give_back(self, slot_key: str) -> Lease | None:
        """Give back the oldest remembered lease of the key and return it; None if there is none."""
        leases = self._leases.get(slot_key)
        if not leases:
            return None
        lease = leases.pop(0)
        if not leases:
            del self._leases[slot_key]
        lease.give_back()
        return lease


def check_cap(cap: int, on_full: str) -> None:
    """Raise ValueError for a cap that could never be kept."""
    if isinstance(cap, bool) or not isinstance(cap, int) or cap < 1:
        raise ValueError(f"a cap is a whole number from 1 up, not {cap!r}")
    if on_full not in ("refuse", "replace_oldest"):
        raise ValueError(f"on_full is 'refuse' or 'replace_oldest', not {on_full!r}")


def lifetime_of(ttl: float | None, ttl_seconds: float | None) -> float:
    """Return how long a lease lives, in seconds. Raises ValueError for two answers, or one not above 0."""
    if ttl is not None and ttl_seconds is not None:
        raise ValueError("ttl and ttl_seconds are two names for one thing; give one of them")
    given = ttl if ttl is not None else ttl_seconds
    lifetime = DEFAULT_TTL if given is None else given
    if not lifetime > 0:
        raise ValueError(f"ttl is in seconds and more than 0, not {lifetime!r}")
    return float(lifetime)


class MemorySlotCap:
    """At most `cap` live streams for each key, in this process.

    With `on_full="replace_oldest"` the newest stream wins and the oldest of the key ends with the
    reason `replaced`. For a cap over several processes there is `SlotCap`, over Redis.
    """

    def __init__(
        self,
        cap: int = 20,
        *,
        on_full: OnFull = "refuse",
        on_acquire: SlotHook | None = None,
        on_release: SlotHook | None = None,
    ) -> None:
        check_cap(cap, on_full)
        self._cap = cap
        self._on_full = on_full
        self._hooks = Hooks(on_acquire, on_release)
        # Made once, and not for each of ten thousand leases.
        self._on_give_back = self._forget
        # A dict keeps the order in which the leases were taken, so the first one is the oldest.
        self._leases: dict[str, dict[Lease, None]] = {}
        self._keyed = KeyedLeases()

    @property
    def cap(self) -> int:
        """How many slots each key has."""
        return self._cap

    def held(self, slot_key: str) -> int:
        """Return how many slots of the key are taken."""
        return len(self._leases.get(slot_key, ()))

    async def take(self, slot_key: str, on_replaced: Callable[[], None] | None = None) -> Lease:
        """Take a slot. Raises CapExceededError when all are taken and none may be replaced."""
        lease = Lease(slot_key, self._on_give_back, None if self._on_full == "refuse" else on_replaced)
        held = self._leases.setdefault(slot_key, {})
        if len(held) >= self._cap:
            if self._on_full == "refuse":
                raise CapExceededError(slot_key, self._cap)
            self._replace(next(iter(held)))
        self._leases.setdefault(slot_key, {})[lease] = None
        self._hooks.acquired(slot_key)
        return lease

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

    async def aclose(self) -> None:
        """Do nothing: a slot is free when it has been given back, and its holder does that."""

    def _replace(self, oldest: Lease) -> None:
        oldest.give_back()
        if oldest.on_replaced is not None:
            oldest.on_replaced()

    def _forget(self, lease: Lease) -> None:
        held = self._leases[lease.slot_key]
        del held[lease]
        if not held:
            del self._leases[lease.slot_key]
        self._hooks.released(lease.slot_key)
