"""Faults: which servers do not answer now and which slot keys they refuse. Logs each change once per cap."""

import logging
import time
from collections.abc import Callable, Iterable

from redis.exceptions import AskError

from .server import is_absence

logger = logging.getLogger("livepush_asgi")

# The error for a client that knows one node of a cluster; its keys answer MOVED.
ONE_NODE_OF_MANY = (
    "is one node of a cluster and has only some of the keys: give SlotCap a redis.asyncio.RedisCluster"
)
# So many refused keys are remembered; of any more the first ones are forgotten.
MOST_KEYS = 1000
# A server that comes and goes is in the log once in so many seconds.
LOG_INTERVAL = 10.0


class Faults:
    """The faults of now. An error is either about a whole server or about one slot key; see `is_absence`."""

    def __init__(self, place_of: Callable[[str], str], *, ttl: float, where: str, meanwhile: str) -> None:
        self._place_of = place_of
        self._ttl = ttl
        self._where = where
        self._meanwhile = meanwhile
        # Servers that are away, and whether the log says so.
        self._away: dict[str, bool] = {}
        # Slot keys that are refused, and when they were refused last.
        self._refused: dict[str, float] = {}
        self._logged: dict[str, float] = {}

    @property
    def away(self) -> bool:
        """Whether a server did not answer the last time."""
        return bool(self._away)

    @property
    def refused_keys(self) -> int:
        """How many slot keys are refused by a server that answers."""
        return len(self._refused)

    def is_away(self, slot_key: str) -> bool:
        """Return whether the server of a slot key did not answer the last time."""
        return bool(self._away) and self._place_of(slot_key) in self._away

    def is_refused(self, slot_key: str) -> bool:
        """Return whether a slot key was refused the last time."""
        return slot_key in self._refused

    def failed(self, slot_key: str, error: BaseException) -> None:
        """Note an error that a call for a slot key ended with."""
        if is_absence(error):
            self._is_away(self._place_of(slot_key), error)
        else:
            self._is_refused(slot_key, error)

    def answered(self, slot_key: str) -> bool:
        """Note that a call for a slot key was carried out. Return whether its server was away until now."""
        was_away = self.is_away(slot_key)
        if was_away:
            self._is_back(self._place_of(slot_key))
        if slot_key in self._refused:
            del self._refused[slot_key]
            if not self._refused:
                logger.warning("slots: %s refuses no slot key any more", self._where)
        return was_away

    def probes(self, slot_keys: Iterable[str]) -> set[str]:
        """Return one of these slot keys for each server that is away, and forget servers that have none."""
        probes = {
            place: slot_key for slot_key in slot_keys if (place := self._place_of(slot_key)) in self._away
        }
        self._away = {place: logged for place, logged in self._away.items() if place in probes}
        return set(probes.values())

    def _is_away(self, place: str, error: BaseException) -> None:
        if place not in self._away:
            now = time.monotonic()
            self._away[place] = now - self._logged.get(place, -LOG_INTERVAL) >= LOG_INTERVAL
            if self._away[place]:
                self._logged[place] = now
                logger.warning("slots: %s cannot be asked, %s: %s", place, self._meanwhile, error)

    def _is_back(self, place: str) -> None:
        if self._away.pop(place, False):
            logger.warning("slots: %s is back", place)

    def _is_refused(self, slot_key: str, error: BaseException) -> None:
        now = time.monotonic()
        self._forget_keys(now - max(2 * self._ttl, LOG_INTERVAL))
        if not self._refused and isinstance(error, AskError):
            logger.error("slots: %s %s", self._where, ONE_NODE_OF_MANY)
        elif not self._refused:
            logger.warning("slots: %s refuses %r, %s: %s", self._where, slot_key, self._meanwhile, error)
        self._refused.pop(slot_key, None)
        self._refused[slot_key] = now

    def _forget_keys(self, before: float) -> None:
        """Forget slot keys that nobody has asked for since, and the oldest if there are too many."""
        while self._refused:
            oldest = next(iter(self._refused))
            if len(self._refused) < MOST_KEYS and self._refused[oldest] > before:
                return
            del self._refused[oldest]
