"""Slots: a cap on the number of open streams of each key, such as a user.

This file is the port: `Slots`, and the `Lease` that it returns. It also has what the implementations share.
`memory` is for one process, and `redis` for all processes that share a server. The component acquires a slot
before a stream starts. It imports this file only; the application chooses an implementation. Start with
`Slots`, then `memory`.
"""

import logging
from collections import deque
from collections.abc import Callable
from itertools import count
from os import urandom
from typing import Literal, Protocol, runtime_checkable

from ..errors import CapExceededError
from ..runtime.failure_log import FailureLog, fields
from ..settings import check_whole

OnFull = Literal["refuse", "replace_oldest"]
SlotHook = Callable[[str], None]

_numbers = count()


class Lease:
    """One acquired slot, which its holder releases once.

    `replaced` has the ids of the leases that were ended to make room for this one; the caller of
    `acquire_lease` announces them to the processes that hold them. `on_replaced` is called on the event loop
    when this lease is ended to make room for a newer one.
    """

    __slots__ = ("_id", "_on_release", "on_replaced", "replaced", "slot_key")

    def __init__(
        self,
        slot_key: str,
        on_release: Callable[["Lease"], None],
        on_replaced: Callable[[], None] | None = None,
    ) -> None:
        # An empty slot key is almost certainly a bug in the caller.
        if not isinstance(slot_key, str) or not slot_key:
            raise ValueError(f"a slot key is a non-empty str, not {slot_key!r}")
        self._id: str | None = None
        self.slot_key = slot_key
        self.on_replaced = on_replaced
        self.replaced: tuple[str, ...] = ()
        self._on_release: Callable[[Lease], None] | None = on_release

    def release(self) -> None:
        """Release the slot. Returns at once, never raises, and does nothing the second time."""
        on_release, self._on_release = self._on_release, None
        if on_release is not None:
            on_release(self)

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
    def released(self) -> bool:
        """Whether the slot has been released."""
        return self._on_release is None


@runtime_checkable
class Slots(Protocol):
    """At most `cap` open streams for each slot key.

    An implementation whose `acquire_lease` never waits long sets `bounded = True`. A request then awaits it
    directly, without a task and without a time-out.
    """

    @property
    def cap(self) -> int:
        """How many slots each key has."""
        ...

    async def acquire_lease(self, slot_key: str, on_replaced: Callable[[], None] | None = None) -> Lease:
        """Acquire a slot of `slot_key` and return its lease, which the caller releases once.

        Raises CapExceededError when all slots are taken, and SlotsUnavailableError when they cannot be
        counted and the cap fails closed. A call that is cancelled has acquired nothing.
        """
        ...

    async def aclose(self) -> None:
        """Wait, for a bounded time, until every slot that was released here is free for other processes.

        A slot that is held stays taken until its holder releases it: several `LivePush` objects may share one
        cap.
        """
        ...


class BaseSlotCap(Slots):
    """What all caps have: the settings, the hooks, and `acquire` and `release` by the slot key alone."""

    def __init__(
        self, cap: int, on_full: OnFull, on_acquire: SlotHook | None, on_release: SlotHook | None
    ) -> None:
        check_whole("cap", cap)
        if on_full not in ("refuse", "replace_oldest"):
            raise ValueError(f"on_full is 'refuse' or 'replace_oldest', not {on_full!r}")
        self._cap = cap
        self._replaces = on_full == "replace_oldest"
        self._on_acquire = on_acquire
        self._on_release = on_release
        self._failures = FailureLog()
        # The leases that `acquire` got and `release` has not released yet, the oldest first.
        self._acquired_by_key: dict[str, deque[Lease]] = {}

    @property
    def cap(self) -> int:
        """How many slots each key has."""
        return self._cap

    async def acquire(self, slot_key: str) -> bool:
        """Acquire a slot, which `release` frees and `aclose` does not. Return False if all are taken."""
        try:
            lease = await self.acquire_lease(slot_key)
        except CapExceededError:
            return False
        self._acquired_by_key.setdefault(slot_key, deque()).append(lease)
        return True

    async def release(self, slot_key: str) -> None:
        """Release the oldest slot that `acquire` got. Does nothing if there is none."""
        self._release_oldest(slot_key)

    def _release_oldest(self, slot_key: str) -> Lease | None:
        leases = self._acquired_by_key.get(slot_key)
        if leases is None:
            return None
        lease = leases.popleft()
        if not leases:
            del self._acquired_by_key[slot_key]
        lease.release()
        return lease

    def _call_hook(self, hook: SlotHook, slot_key: str) -> None:
        """Call `on_acquire` or `on_release`. An exception is logged, so that no slot is lost by it."""
        try:
            # In a namespace the key has a prefix. The application knows the key without it.
            hook(getattr(slot_key, "plain", slot_key))
        except Exception as error:
            self._failures.log(
                logging.ERROR, "the slot hook %r raised", hook, error=error, extra=fields("slot_hook_failed")
            )
