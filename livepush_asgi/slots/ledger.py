"""Ledger: the leases as the server keeps them. Each call is atomic on the keys of each slot key.

What the keys hold is said in `scripts`.
"""

import asyncio
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from redis.asyncio import Redis

from ..brokers.batch import Batch
from ..brokers.redis_connection import Argument, Reply, no_answer
from ..brokers.redis_script import Script
from ..loop import asyncio_loop
from . import scripts
from .takes import Taken, Takes, Wanted

# A process that was cut off for longer than its leases live brings them back; those that were replaced
# meanwhile are told apart for this many times `ttl`.
GONE_TTLS = 3


class Age(NamedTuple):
    """A lease to renew."""

    id: str
    #: How long ago it was taken, in seconds.
    age: float


class Ledger:
    """The scripts, for one cap. Each call raises a RedisError or OSError when the server is away.

    Renewals, removals and counts are carried out in the order in which they were made, all that come
    together in one pipeline. Takes wait for one another; see `Takes`.
    """

    def __init__(
        self, redis: Redis, *, prefix: str, cap: int, ttl: float, replace: bool, timeout: float
    ) -> None:
        self._batch = Batch(redis, timeout=timeout)
        self._timeout = timeout
        self._prefix = prefix
        self._ttl = round(ttl * 1_000_000)
        self._take_arguments = (cap, self._ttl, int(replace), self._ttl * GONE_TTLS)
        self._takes = Takes(self._take, timeout=timeout)

    def take(self, slot_key: str, lease_id: str) -> asyncio.Future[Taken]:
        """Take a slot, if there is one or one may be made free. Cancelled, it may have been taken."""
        return self._takes.take(slot_key, lease_id)

    async def renew(self, slot_key: str, leases: Iterable[Age]) -> tuple[str, ...]:
        """Let leases live for another `ttl`, also those that the server lost. Return the replaced ones."""
        pairs = (argument for lease in leases for argument in (lease.id, round(lease.age * 1_000_000)))
        reply = await self._run(scripts.RENEW, slot_key, (self._ttl, *pairs))
        assert isinstance(reply, list)
        return _texts(reply)

    async def remove(self, slot_key: str, lease_ids: Iterable[str], *, barred: bool) -> None:
        """Free slots. `barred` is for leases whose taking or renewal may still be under way."""
        await self._run(scripts.REMOVE, slot_key, (self._ttl if barred else 0, *lease_ids))

    async def count(self, slot_key: str) -> int:
        """Return how many leases live."""
        reply = await self._run(scripts.COUNT, slot_key, ())
        assert isinstance(reply, int)
        return reply

    def _take(self, wanted: Sequence[Wanted]) -> asyncio.Future[Reply]:
        keys: list[str] = []
        arguments: list[Argument] = [*self._take_arguments]
        for slot_key, lease_ids in wanted:
            keys += self._keys(slot_key)
            arguments.append(" ".join(lease_ids))
        reply: asyncio.Future[Reply] = asyncio_loop().create_future()
        scripts.TAKE.send(self._batch, keys, arguments, reply)
        return reply

    async def _run(self, script: Script, slot_key: str, arguments: Iterable[Argument]) -> Reply:
        # On another kind of loop the next line would not say what is wrong.
        asyncio_loop()
        try:
            async with asyncio.timeout(self._timeout):
                return await script.run(self._batch, self._keys(slot_key), arguments)
        except TimeoutError as error:
            raise error if str(error) else no_answer(self._timeout) from error

    def _keys(self, slot_key: str) -> tuple[str, str, str]:
        # The braces put all keys of a slot key into one slot of a cluster, and away from the predecessor's.
        key = f"{self._prefix}{{{slot_key}}}"
        return key, f"{key}:since", f"{key}:gone"


def _texts(ids: Iterable[Reply]) -> tuple[str, ...]:
    return tuple(id_.decode() for id_ in ids if isinstance(id_, bytes))
