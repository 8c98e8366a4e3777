"""Slots: a cap on the number of open streams of each key, such as a user.

This file is the port: `Slots`, and the `Lease` that it returns. `memory` implements it for one process, and
`redis` for all processes that share a server. The component takes a slot before a stream starts. It imports
this file only; the application chooses an implementation. Start with `Slots`, then `memory`.
"""

import logging
from collections.abc import Awaitable, Callable
from itertools import count
from os import urandom
from typing import Literal, Protocol, runtime_checkable

from ..errors import CapExceededError
from ..settings import check_whole

logger = logging.getLogger("livepush_asgi")

OnFull = Literal["refuse", "replace_oldest"]
SlotHook = Callable[[str], None]

_numbers = count()


class Lease:
    """One taken slot, which its holder gives back once.

    `replaced` has the ids of the leases that were ended to make room for this one; the caller of `take`
    announces them to the processes that hold them. `on_replaced` is called on the event loop when this lease
    is ended to make room for a newer one.
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
        """The lease's name outside this process. It is unique and never changes.

        It is drawn when it is first read: a lease of `MemorySlotCap` needs none, since no other process can
        end it.
        """
        if self._id is None:
            # The number keeps the leases of a process in order. The random part makes the id unique, also
            # after a fork, and hard to guess.
            self._id = f"{next(_numbers):010x}{urandom(11).hex()}"
        return self._id

    @property
    def given_back(self) -> bool:
        """Whether the slot has been given back."""
        return self._give_back is None


@runtime_checkable
class Slots(Protocol):
    """At most `cap` open streams for each slot key.

    An implementation whose `take` never waits long sets `bounded = True`. A request then awaits `take`
    directly, without a task and without a time-out.
    """

    @property
    def cap(self) -> int:
        """How many slots each key has."""
        ...

    async def take(self, slot_key: str, on_replaced: Callable[[], None] | None = None) -> Lease:
        """Take a slot of `slot_key` and return its lease, which the caller gives back once.

        Raises CapExceededError when all slots are taken, and SlotsUnavailableError when they cannot be
        counted and the cap fails closed. A call that is cancelled has taken nothing.
        """
        ...

    async def aclose(self) -> None:
        """Wait, for a bounded time, until every slot that was given back here is free for other processes.

        A slot that is held stays taken until its holder gives it back: several `LivePush` objects may share
        one cap.
        """
        ...


class LeasesByKey:
    """Leases for callers that name only the slot key when they release: `acquire` and `release` of a cap."""

    __slots__ = ("_leases",)

    def __init__(self) -> None:
        self._leases: dict[str, list[Lease]] = {}

    async def acquire(self, taking: Awaitable[Lease]) -> bool:
        """Keep the lease that `taking` returns. Return False if all slots are taken."""
        try:
            lease = await taking
        except CapExceededError:
            return False
        self._leases.setdefault(lease.slot_key, []).append(lease)
        return True

    def release(self, slot_key: str) -> Lease | None:
        """Give back the oldest lease of the key and return it; None if there is none."""
        leases = self._leases.get(slot_key)
        if not leases:
            return None
        lease = leases.pop(0)
        if not leases:
            del self._leases[slot_key]
        lease.give_back()
        return lease


def check_cap(cap: int, on_full: str) -> None:
    """Raise ValueError for a cap that no implementation can keep."""
    check_whole("cap", cap)
    if on_full not in ("refuse", "replace_oldest"):
        raise ValueError(f"on_full is 'refuse' or 'replace_oldest', not {on_full!r}")


def call_hook(hook: SlotHook, slot_key: str) -> None:
    """Call `on_acquire` or `on_release` of a cap. An exception is logged, so that no slot is lost by it."""
    try:
        # In a namespace the key has a prefix. The application knows the key without it.
        hook(getattr(slot_key, "plain", slot_key))
    except Exception:
        logger.exception("the slot hook %r raised", hook)
