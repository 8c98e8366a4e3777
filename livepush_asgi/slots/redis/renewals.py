"""Renewals: lets the held leases live on. Whatever becomes of one slot key, the others are renewed."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable

from ...brokers.redis_connection import FAILURES
from .holdings import Held, Holdings
from .ledger import Age, Ledger
from .requests import Listener
from .server import Server, is_absence

logger = logging.getLogger("livepush_asgi")

# So many leases go into one call: the server does nothing else meanwhile.
LEASES_PER_CALL = 200
# So many calls go out at once, lest the event loop stand still for all of them.
CALLS_AT_ONCE = 200


class Renewals:
    """Renews what is held. `end` is told the leases that have ended on the server."""

    def __init__(
        self,
        holdings: Holdings,
        server: Server,
        ledger: Ledger,
        *,
        listener: Listener,
        end: Callable[[Iterable[str]], None],
    ) -> None:
        self._holdings = holdings
        self._server = server
        self._ledger = ledger
        self._listener = listener
        self._end = end

    async def renew(self, slot_keys: Iterable[str]) -> set[str]:
        """Renew all leases of these slot keys. Return the slot keys that have to be tried again.

        A server that does not answer is not asked any more in this round, which would only take long.
        """
        waiting = deque(
            (slot_key, held[start : start + LEASES_PER_CALL])
            for slot_key in slot_keys
            for held in [self._holdings.of(slot_key)]
            for start in range(0, len(held), LEASES_PER_CALL)
        )
        again: set[str] = set()
        silent: set[str] = set()
        while waiting:
            calls = [waiting.popleft() for _ in range(min(len(waiting), CALLS_AT_ONCE))]
            if silent:
                left_out = {key for key, _ in calls if self._ledger.place_of(key) in silent}
                calls = [call for call in calls if call[0] not in left_out]
                again |= left_out
            errors = await asyncio.gather(*(self._renew_group(*call) for call in calls))
            for (slot_key, _), error in zip(calls, errors, strict=True):
                if error is not None:
                    again.add(slot_key)
                    if is_absence(error):
                        silent.add(self._ledger.place_of(slot_key))
        return again

    async def _renew_group(self, slot_key: str, group: list[Held]) -> Exception | None:
        """Renew leases of one slot key. Return the error, if there is one."""
        # A lease may have been given back since the list was made; renewing it would bring it back.
        group = [held for held in group if not held.lease.given_back]
        if not group:
            return None
        before = [(held.sent, held.sure) for held in group]
        for held in group:
            held.sent, held.sure = True, False
        now = time.monotonic()
        ages = [Age(held.lease.id, now - held.since) for held in group]
        try:
            ended = await self._ledger.renew(slot_key, ages)
        except FAILURES as error:
            self._listener.failed(slot_key, error)
            if self._server.has_refused(error):
                for held, (sent, sure) in zip(group, before, strict=True):
                    held.sent, held.sure = sent, sure
            return error
        except Exception:
            # A fault of this package. It must be heard of, and it must not end the renewals.
            logger.exception("slots: renewing the leases failed")
            return None
        self._listener.answered(slot_key)
        for held in group:
            held.sure = True
        self._end(ended)
        return None
