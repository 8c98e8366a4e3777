"""The leases on the server: the calls of the Lua scripts, and the meaning of their errors.

`change.lua` says how the server stores the leases.
"""

import asyncio
import logging
import re
import time
from collections.abc import Sequence
from importlib.resources import files
from typing import Final, NamedTuple

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
from ...runtime.failure_log import fields

logger = logging.getLogger("livepush_asgi")

# The most refused slot keys that are remembered.
MAX_REFUSED_KEYS = 1000
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

# A part of messages about a server that is used through a `Redis`, which has to have all keys.
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


class Settings(NamedTuple):
    """The settings of a cap that matter to its leases; `ttl` and `timeout` are in seconds."""

    cap: int
    ttl: float
    timeout: float
    replaces: bool
    fails_open: bool


class LeaseStore:
    """Runs the scripts of one cap, on one server or on the nodes of a cluster.

    Raises TypeError for a client that is not redis-py's asyncio client.
    """

    def __init__(self, redis: Redis | RedisCluster, prefix: str, settings: Settings) -> None:
        self.settings = settings
        self._prefix = prefix
        ttl = round(settings.ttl * 1_000_000)
        replaces, strict = int(settings.replaces), int(not settings.fails_open)
        self._arguments = (settings.cap, ttl, replaces, strict, ttl * TOMBSTONE_TTLS)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._router: SlotRouter | None = None
        if isinstance(redis, RedisCluster):
            self._router = SlotRouter(redis, timeout=settings.timeout)
            where = "Redis Cluster at {}:{}".format(*self._router.cluster.first.address)
        else:
            self._pipeline = Pipeline(redis, timeout=settings.timeout)
            where = address_of(pool_of(redis))
        #: The name of the server or cluster in messages.
        self.where = where
        #: Whether all keys are on one server.
        self.one = self._router is None
        #: Whether one call may change several slot keys. A node of a cluster refuses that.
        self.mixes_keys = self.one
        #: Whether the server turned out to be one node of a cluster, so that it has only some of the keys.
        self.partial = False

    def server_of(self, slot_key: str) -> str:
        """Return the name of the server that has a slot key, as far as known."""
        node = self._router.cluster.known_node_of(tag_of(slot_key)) if self._router else None
        return "Redis node at {}:{}".format(*node.address) if node else self.where

    def change(self, words: Sequence[tuple[str, str]], receiver: Receiver) -> None:
        """Run CHANGE with the words of each slot key. The receiver gets the reply, or one of FAILURES."""
        keys: list[str] = []
        for slot_key, _ in words:
            keys += self._keys(slot_key)
        arguments: list[Argument] = [*self._arguments, *[of_key for _, of_key in words]]
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
        if found is not None and int(found[1]) > 1:
            self.note_partial()
        else:
            self.partial = False

    def note_partial(self) -> None:
        """Note that the server is one node of a cluster, so that no slot can be taken. Logs that once."""
        if not self.partial:
            self.partial = True
            logger.warning(
                "slots: %s %s",
                self.where,
                ONE_NODE_OF_MANY,
                extra=fields("slots_unusable", server=self.where),
            )


class Faults:
    """Servers that are away, and slot keys that are refused. Each change is logged once for all keys."""

    def __init__(self, store: LeaseStore) -> None:
        #: Servers that did not answer the last time, and whether the log says so.
        self.away: dict[str, bool] = {}
        #: Slot keys that a server refused the last time, and when that was.
        self.refused: dict[str, float] = {}
        self._store = store
        fails_open = store.settings.fails_open
        self._meanwhile = "streams are let in uncounted" if fails_open else "no stream is let in"
        self._logged_at: dict[str, float] = {}

    def __bool__(self) -> bool:
        return bool(self.away or self.refused)

    def is_away(self, slot_key: str) -> bool:
        """Return whether the server of a slot key did not answer the last time."""
        return bool(self.away) and self._store.server_of(slot_key) in self.away

    def note(self, slot_key: str, error: Exception | None) -> bool:
        """Note that a call for a slot key failed, or that it was executed.

        Return whether its server was away until now.
        """
        place = self._store.server_of(slot_key)
        if error is not None and is_absence(error):
            self._note_absence(place, error)
            return False
        if error is not None:
            self._note_refusal(slot_key, error)
        elif self.refused.pop(slot_key, None) and not self.refused:
            logger.warning(
                "slots: %s refuses no slot key any more",
                self._store.where,
                extra=fields("slots_accepted", server=self._store.where),
            )
        is_back = place in self.away
        if is_back and self.away.pop(place):
            logger.warning("slots: %s is back", place, extra=fields("slots_back", server=place))
        return is_back

    def _note_absence(self, place: str, error: Exception) -> None:
        if place not in self.away:
            now = time.monotonic()
            self.away[place] = now - self._logged_at.get(place, -LOG_INTERVAL) >= LOG_INTERVAL
            if self.away[place]:
                self._logged_at[place] = now
                logger.warning(
                    "slots: %s cannot be asked, %s: %s",
                    place,
                    self._meanwhile,
                    error,
                    extra=fields("slots_away", server=place, error=str(error)),
                )

    def _note_refusal(self, slot_key: str, error: Exception) -> None:
        # A node of a cluster answers MOVED for the keys of other nodes.
        if self._store.one and isinstance(error, AskError):
            self._store.note_partial()
        now = time.monotonic()
        forgotten = now - max(2 * self._store.settings.ttl, LOG_INTERVAL)
        self.refused = {key: at for key, at in self.refused.items() if at > forgotten}
        if not self.refused and not self._store.partial:
            where = self._store.where
            logger.warning(
                "slots: %s refuses %r, %s: %s",
                where,
                slot_key,
                self._meanwhile,
                error,
                extra=fields("slots_refused", server=where, slot_key=slot_key, error=str(error)),
            )
        if len(self.refused) < MAX_REFUSED_KEYS:
            self.refused[slot_key] = now
