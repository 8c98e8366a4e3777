"""The leases on the server: the calls of the Lua scripts, and the meaning of their errors.

`change.lua` says how the server stores the leases.
"""

import asyncio
import logging
import re
import time
from collections.abc import Sequence
from importlib.resources import files
from typing import Final

from redis.asyncio import Redis, RedisCluster
from redis.exceptions import (
    AskError,
    ClusterDownError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)

from ...brokers.redis.connection import Argument, Reply, address_of, pool_of
from ...brokers.redis.pipeline import Pipeline, Receiver
from ...brokers.redis.script import Call, Script, tag_of
from ...brokers.redis.slot_router import SlotRouter

logger = logging.getLogger("livepush_asgi")

# The most refused slot keys that are remembered; the oldest are forgotten first.
MOST_REFUSED_KEYS = 1000
# A server that goes away again and again is logged at most once in this time, in seconds.
LOG_INTERVAL = 10.0

CHANGE: Final = Script((files(__package__) / "change.lua").read_text())
# A score is in microseconds of the server's clock.
COUNT: Final = Script("""
local time = redis.call('TIME')
return redis.call('ZCOUNT', KEYS[1], string.format('(%d%06d', time[1], time[2]), '+inf')
""")

# A process that was cut off for longer than `ttl` renews its expired leases when it is back. So the tombstone
# of a replaced lease lives for this many times `ttl`.
TOMBSTONE_TTLS = 3

# What messages say of the server of a `Redis`, which has to have all keys.
ONE_NODE_OF_MANY = (
    "is one node of a cluster and has only some of the keys: give SlotCap a redis.asyncio.RedisCluster"
)

# The error replies of a server that can serve no key now: by class if redis-py has one, since it then removes
# the code from the text. Every other error reply is about the keys of the call.
_ABSENT = (ClusterDownError, OutOfMemoryError, ReadOnlyError)
_ABSENT_CODES = ["BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MISCONF", "NOREPLICAS", "OOM", "READONLY"]


def is_absence(error: object) -> bool:
    """Return whether an error is about the server as a whole, and not about the keys of the call."""
    if not isinstance(error, ResponseError):
        return True
    return isinstance(error, _ABSENT) or str(error).partition(" ")[0] in _ABSENT_CODES


class LeaseStore:
    """Runs the scripts of one cap, on one server or on the nodes of a cluster, within `timeout` seconds each.

    Raises TypeError for a client that is not redis-py's asyncio client.
    """

    def __init__(
        self,
        redis: Redis | RedisCluster,
        *,
        prefix: str,
        cap: int,
        ttl: float,
        replaces: bool,
        strict: bool,
        timeout: float,
    ) -> None:
        self._prefix = prefix
        microseconds = round(ttl * 1_000_000)
        self._settings = (cap, microseconds, int(replaces), int(strict), microseconds * TOMBSTONE_TTLS)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._router: SlotRouter | None = None
        if isinstance(redis, RedisCluster):
            self._router = SlotRouter(redis, timeout=timeout)
            where = "Redis Cluster at {}:{}".format(*self._router.cluster.first.address)
        else:
            self._pipeline = Pipeline(redis, timeout=timeout)
            where = address_of(pool_of(redis))
        #: The name of the server or cluster in messages.
        self.where = where
        #: Whether all keys are on one server.
        self.one = self._router is None
        #: Whether one call may change several slot keys. A node of a cluster refuses that.
        self.mixes_keys = self.one
        #: Whether the server turned out to be one node of a cluster, so that it has only some of the keys.
        self.partial = False

    def place_of(self, slot_key: str) -> str:
        """Return the name of the server that has a slot key, as far as known."""
        node = self._router.cluster.known_node_of(tag_of(slot_key)) if self._router else None
        return "Redis node at {}:{}".format(*node.address) if node else self.where

    def change(self, words: Sequence[tuple[str, str]], receiver: Receiver) -> None:
        """Run CHANGE with the words of each slot key. The receiver gets the reply, or one of FAILURES."""
        keys: list[str] = []
        for slot_key, _ in words:
            keys += self._keys(slot_key)
        arguments: list[Argument] = [*self._settings, *(of_key for _, of_key in words)]
        if self._router is not None:
            self._router.start(Call(CHANGE, tag_of(words[0][0]), keys, arguments), receiver)
            return
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop = loop
            # Its reply arrives before the reply to the first call.
            self._pipeline.submit(b"CLUSTER", b"INFO").add_done_callback(self._learn_size)
        CHANGE.send(self._pipeline, keys, arguments, receiver)

    async def count(self, slot_key: str) -> int:
        """Return how many leases have not expired. Raises one of FAILURES."""
        keys = self._keys(slot_key)[:1]
        if self._router is None:
            counted = await COUNT.run(self._pipeline, keys, ())
        else:
            counted = await self._router.run(Call(COUNT, tag_of(slot_key), keys, ()))
        assert isinstance(counted, int)
        return counted

    def has_refused(self, error: BaseException) -> bool:
        """Return whether an error is about the keys of the call, and the call changed nothing."""
        # While a slot moves, an earlier attempt whose reply was lost may have been executed.
        moving = not self.one and isinstance(error, (AskError, TryAgainError))
        return not moving and not is_absence(error)

    def _keys(self, slot_key: str) -> tuple[str, str, str]:
        # The braces put all keys of a slot key into one slot of a cluster, and away from the predecessor's.
        key = f"{self._prefix}{{{tag_of(slot_key)}}}"
        return key, f"{key}:since", f"{key}:gone"

    def _learn_size(self, info: asyncio.Future[Reply]) -> None:
        # An error means that the server is no cluster, or that the user may not ask. In the second case the
        # server answers MOVED for a key of another node.
        known = not info.cancelled() and info.exception() is None
        found = re.search(r"cluster_size:(\d+)", str(info.result())) if known else None
        self.mixes_keys = found is None
        self.partial = found is not None and int(found[1]) > 1


class Faults:
    """The servers that are away and the slot keys that are refused. Each change is logged once for all keys.

    `meanwhile` is the part of the log line that says how new streams are treated.
    """

    def __init__(self, store: LeaseStore, *, ttl: float, meanwhile: str) -> None:
        #: Servers that did not answer the last time, and whether the log says so.
        self.away: dict[str, bool] = {}
        #: Slot keys that a server refused the last time, and when that was.
        self.refused: dict[str, float] = {}
        self._store = store
        self._meanwhile = meanwhile
        self._remember_for = max(2 * ttl, LOG_INTERVAL)
        self._logged_at: dict[str, float] = {}

    def __bool__(self) -> bool:
        return bool(self.away or self.refused)

    def is_away(self, slot_key: str) -> bool:
        """Return whether the server of a slot key did not answer the last time."""
        return bool(self.away) and self._store.place_of(slot_key) in self.away

    def failed(self, slot_key: str, error: BaseException) -> bool:
        """Note the error of a call for a slot key. Return whether its server was away until now."""
        if not is_absence(error):
            # A node of a cluster answers MOVED for the keys of other nodes.
            self._store.partial |= self._store.one and isinstance(error, AskError)
            self._note_refused(slot_key, error)
            return self._note_answer(slot_key)
        place, now = self._store.place_of(slot_key), time.monotonic()
        if place not in self.away:
            self.away[place] = now - self._logged_at.get(place, -LOG_INTERVAL) >= LOG_INTERVAL
            if self.away[place]:
                self._logged_at[place] = now
                logger.warning("slots: %s cannot be asked, %s: %s", place, self._meanwhile, error)
        return False

    def answered(self, slot_key: str) -> bool:
        """Note that a call for a slot key was executed. Return whether its server was away until now."""
        if self.refused.pop(slot_key, None) is not None and not self.refused:
            logger.warning("slots: %s refuses no slot key any more", self._store.where)
        return self._note_answer(slot_key)

    def _note_answer(self, slot_key: str) -> bool:
        was_away = self.is_away(slot_key)
        if was_away and self.away.pop(place := self._store.place_of(slot_key)):
            logger.warning("slots: %s is back", place)
        return was_away

    def _note_refused(self, slot_key: str, error: BaseException) -> None:
        now = time.monotonic()
        while self.refused:
            oldest = next(iter(self.refused))
            if len(self.refused) < MOST_REFUSED_KEYS and self.refused[oldest] > now - self._remember_for:
                break
            del self.refused[oldest]
        if not self.refused:
            refusal = f"refuses {slot_key!r}, {self._meanwhile}: {error}"
            logger.warning(
                "slots: %s %s", self._store.where, ONE_NODE_OF_MANY if self._store.partial else refusal
            )
        self.refused.pop(slot_key, None)
        self.refused[slot_key] = now
