"""Ledger: the leases as the server keeps them. Each call is one atomic script on the keys of one slot key.

Three sorted sets per slot key. In the first, `<prefix>{<slot key>}`, a member is a lease and its score
the moment at which it expires. `:since` has the same members by the moment at which they were taken.
`:gone` has the leases that must not come back: replaced by a newer one, or given up before they were
known to be taken. All moments are microseconds of the server's clock, so that the clocks of the
processes do not matter.
"""

import asyncio
from collections.abc import Iterable
from typing import NamedTuple

from redis.asyncio import Redis

from ..brokers.batch import Batch
from ..brokers.redis_connection import Argument, Reply, no_answer
from ..brokers.redis_script import Script

# A process that was cut off for longer than its leases live brings them back; those that were replaced
# meanwhile are told apart for this many times `ttl`.
GONE_TTLS = 3

_NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
"""

# ARGV: id, cap, ttl, whether to replace, how long to remember what was replaced.
_TAKE = f"""{_NOW}
local live, since, gone = KEYS[1], KEYS[2], KEYS[3]
local id, cap, ttl, replace = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4] == '1'
for _, expired in ipairs(redis.call('ZRANGEBYSCORE', live, '-inf', now)) do
  redis.call('ZREM', live, expired)
  redis.call('ZREM', since, expired)
end
redis.call('ZREMRANGEBYSCORE', gone, '-inf', now)
if redis.call('ZSCORE', gone, id) then
  return {{0}}
end
local reply = {{1}}
local count = redis.call('ZCARD', live)
if count >= cap and not replace then
  return {{0}}
end
while count >= cap do
  local oldest = redis.call('ZRANGE', since, 0, 0)[1] or redis.call('ZRANGE', live, 0, 0)[1]
  redis.call('ZREM', since, oldest)
  if redis.call('ZREM', live, oldest) == 1 then
    count = count - 1
    redis.call('ZADD', gone, now + ARGV[5], oldest)
    redis.call('PEXPIREAT', gone, math.ceil((now + ARGV[5]) / 1000))
    reply[#reply + 1] = oldest
  end
end
redis.call('ZADD', live, now + ttl, id)
redis.call('ZADD', since, now, id)
local last = redis.call('ZRANGE', live, -1, -1, 'WITHSCORES')[2]
redis.call('PEXPIREAT', live, math.ceil(last / 1000))
redis.call('PEXPIREAT', since, math.ceil(last / 1000))
return reply
"""

# ARGV: ttl, then an id and its age for each lease. Returns the ids that are gone.
_RENEW = f"""{_NOW}
local live, since, gone = KEYS[1], KEYS[2], KEYS[3]
local replaced = {{}}
for i = 2, #ARGV, 2 do
  if redis.call('ZSCORE', gone, ARGV[i]) then
    replaced[#replaced + 1] = ARGV[i]
  else
    redis.call('ZADD', live, now + ARGV[1], ARGV[i])
    redis.call('ZADD', since, 'NX', now - ARGV[i + 1], ARGV[i])
  end
end
local last = redis.call('ZRANGE', live, -1, -1, 'WITHSCORES')[2]
if last then
  redis.call('PEXPIREAT', live, math.ceil(last / 1000))
  redis.call('PEXPIREAT', since, math.ceil(last / 1000))
end
return replaced
"""

# ARGV: how long to keep the leases from coming back, 0 for not at all, then ids.
_REMOVE = f"""{_NOW}
local live, since, gone = KEYS[1], KEYS[2], KEYS[3]
local barred = tonumber(ARGV[1])
for i = 2, #ARGV do
  redis.call('ZREM', live, ARGV[i])
  redis.call('ZREM', since, ARGV[i])
  if barred > 0 then
    redis.call('ZADD', gone, now + barred, ARGV[i])
    redis.call('PEXPIREAT', gone, math.ceil((now + barred) / 1000))
  else
    redis.call('ZREM', gone, ARGV[i])
  end
end
return 0
"""

_COUNT = f"""{_NOW}
return redis.call('ZCOUNT', KEYS[1], '(' .. string.format('%.0f', now), '+inf')
"""


class Taken(NamedTuple):
    """The answer to a take."""

    #: Whether there was a slot.
    taken: bool
    #: The leases that had to go for it.
    replaced: tuple[str, ...]


class Age(NamedTuple):
    """A lease to renew."""

    id: str
    #: How long ago it was taken, in seconds.
    age: float


class Ledger:
    """The scripts, for one cap. Each call raises a RedisError or OSError when the server is away.

    Calls are carried out in the order in which they were made, all that come together in one pipeline.
    """

    def __init__(
        self, redis: Redis, *, prefix: str, cap: int, ttl: float, replace: bool, timeout: float
    ) -> None:
        self._batch = Batch(redis, timeout=timeout)
        self._timeout = timeout
        self._prefix = prefix
        self._cap = cap
        self._ttl = round(ttl * 1_000_000)
        self._replace = replace
        self._take, self._renew, self._remove, self._count = map(Script, (_TAKE, _RENEW, _REMOVE, _COUNT))

    async def take(self, slot_key: str, lease_id: str) -> Taken:
        """Take a slot, if there is one or one may be made free."""
        arguments = (lease_id, self._cap, self._ttl, int(self._replace), self._ttl * GONE_TTLS)
        reply = await self._run(self._take, slot_key, arguments)
        assert isinstance(reply, list)
        return Taken(reply[0] == 1, _texts(reply[1:]))

    async def renew(self, slot_key: str, leases: Iterable[Age]) -> tuple[str, ...]:
        """Let leases live for another `ttl`, also those that the server lost. Return the replaced ones."""
        pairs = (argument for lease in leases for argument in (lease.id, round(lease.age * 1_000_000)))
        reply = await self._run(self._renew, slot_key, (self._ttl, *pairs))
        assert isinstance(reply, list)
        return _texts(reply)

    async def remove(self, slot_key: str, lease_ids: Iterable[str], *, barred: bool) -> None:
        """Free slots. `barred` is for leases whose taking or renewal may still be under way."""
        await self._run(self._remove, slot_key, (self._ttl if barred else 0, *lease_ids))

    async def count(self, slot_key: str) -> int:
        """Return how many leases live."""
        reply = await self._run(self._count, slot_key, ())
        assert isinstance(reply, int)
        return reply

    async def _run(self, script: Script, slot_key: str, arguments: Iterable[Argument]) -> Reply:
        # The braces put all keys of a slot key into one slot of a cluster, and away from the predecessor's.
        key = f"{self._prefix}{{{slot_key}}}"
        try:
            async with asyncio.timeout(self._timeout):
                return await script.run(self._batch, (key, f"{key}:since", f"{key}:gone"), arguments)
        except TimeoutError as error:
            raise error if str(error) else no_answer(self._timeout) from error


def _texts(ids: Iterable[Reply]) -> tuple[str, ...]:
    return tuple(id_.decode() for id_ in ids if isinstance(id_, bytes))
