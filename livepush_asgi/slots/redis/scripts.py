"""The leases as the server keeps them: the Lua scripts, how they are called, and what their errors mean.

Each slot key has three sorted sets. In `<prefix>{<slot key>}` a member is a lease and its score the moment
at which it expires. `:since` has the same members, scored with the moment at which they were taken. `:gone`
has tombstones: leases that must not come back, because a newer one replaced them or because they were
released before the server was known to have them. All moments are microseconds of the server's clock, so the
clocks of the processes do not matter.

CHANGE reads all three sets of a slot key before it writes to one. A key of another type therefore raises
before anything is changed: an error reply means that nothing was done.
"""

import asyncio
from collections.abc import Sequence
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

from ...brokers.batch import Batch
from ...brokers.redis_command import Receiver
from ...brokers.redis_connection import Reply, address_of, no_answer, pool_of
from ...brokers.redis_log import Call
from ...brokers.redis_routes import Routes
from ...brokers.redis_script import Script
from ...brokers.redis_tag import tag_of
from ...loop import asyncio_loop

_NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
"""

# KEYS: the three of each slot key. ARGV: cap, ttl, '1' to replace the oldest lease when all slots are taken,
# '1' if a lease that has expired comes back only where a slot is free, how long the tombstone of a replaced
# lease lives; then for each slot key its words, with spaces between them. A word is
#   -ID      release a lease
#   !ID      release a lease that may still be on its way to the server: it leaves a tombstone
#   +ID:AGE  renew a lease that was taken AGE microseconds ago
#   ID       acquire a lease
# Words are carried out in their order. The reply has a line for each word: 1, or 0 for a lease that was not
# acquired or has ended; after a 1 the ids that were replaced. A line with ! and an error stands for each
# word of a slot key that the server refuses.
CHANGE: Final = Script(
    _NOW
    + """
local cap, ttl, replaces, strict = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3] == '1', ARGV[4] == '1'
local replaced_for = tonumber(ARGV[5])

-- The sets expire with their last lease. A lease far in the future was written before the server's clock
-- stepped back: unless its holder renews it, it ends `ttl` from now. Far is later than any lease of a process
-- with another `ttl` expires.
local function expire(live, since)
  local last = redis.call('ZRANGE', live, -1, -1, 'WITHSCORES')[2]
  if not last then
    return
  end
  local far = now + math.max(10 * ttl, 600 * 1000000)
  if tonumber(last) > far then
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', live, far, '+inf')) do
      redis.call('ZADD', live, now + ttl, id)
    end
    last = redis.call('ZRANGE', live, -1, -1, 'WITHSCORES')[2]
  end
  redis.call('PEXPIREAT', live, math.ceil(last / 1000))
  redis.call('PEXPIREAT', since, math.ceil(last / 1000))
end

local function bury(gone, id, period)
  redis.call('ZADD', gone, now + period, id)
  redis.call('PEXPIREAT', gone, math.ceil((now + period) / 1000))
end

local function replace_oldest(live, since, gone)
  local oldest = redis.call('ZRANGE', since, 0, 0)[1] or redis.call('ZRANGE', live, 0, 0)[1]
  redis.call('ZREM', since, oldest)
  if redis.call('ZREM', live, oldest) == 0 then
    return nil
  end
  bury(gone, oldest, replaced_for)
  return oldest
end

local function change(live, since, gone, words)
  local any_gone = redis.call('ZCARD', gone) > 0
  redis.call('ZCARD', since)
  for _, expired in ipairs(redis.call('ZRANGEBYSCORE', live, '-inf', now)) do
    redis.call('ZREM', live, expired)
    redis.call('ZREM', since, expired)
  end
  if any_gone then
    redis.call('ZREMRANGEBYSCORE', gone, '-inf', now)
  end
  local count, lines = redis.call('ZCARD', live), {}
  for mark, id, age in string.gmatch(words, '([-!+]?)([^%s:]+):?(%d*)') do
    local line = '1'
    if mark == '-' or mark == '!' then
      count = count - redis.call('ZREM', live, id)
      redis.call('ZREM', since, id)
      if mark == '!' then
        bury(gone, id, ttl)
        any_gone = true
      elseif any_gone then
        redis.call('ZREM', gone, id)
      end
    elseif any_gone and redis.call('ZSCORE', gone, id) then
      line = '0'
    else
      local renews = mark == '+'
      local full = count >= cap and not redis.call('ZSCORE', live, id)
      while full and replaces and not renews do
        local oldest = replace_oldest(live, since, gone)
        if oldest then
          any_gone = true
          count = count - 1
          line = line .. ' ' .. oldest
        end
        full = count >= cap
      end
      if full and (strict or not renews) then
        line = '0'
      else
        count = count + redis.call('ZADD', live, now + ttl, id)
        redis.call('ZADD', since, 'NX', now - (tonumber(age) or 0), id)
      end
    end
    lines[#lines + 1] = line
  end
  expire(live, since)
  return table.concat(lines, '\\n')
end

local answers = {}
for k = 1, #KEYS / 3 do
  local words = ARGV[k + 5]
  local ok, answer = pcall(change, KEYS[3 * k - 2], KEYS[3 * k - 1], KEYS[3 * k], words)
  if not ok then
    local lines, fault = {}, '!' .. (type(answer) == 'table' and answer.err or tostring(answer))
    for _ in string.gmatch(words, '%S+') do
      lines[#lines + 1] = fault
    end
    answer = table.concat(lines, '\\n')
  end
  answers[k] = answer
end
return table.concat(answers, '\\n')
"""
)

COUNT: Final = Script(
    _NOW + "return redis.call('ZCOUNT', KEYS[1], '(' .. string.format('%.0f', now), '+inf')"
)

# A process that was cut off for longer than its leases live brings them back. So the tombstone of a replaced
# lease lives for this many times `ttl`.
TOMBSTONE_TTLS = 3

# The error of a client that knows one node of a cluster: the keys of the other nodes answer MOVED.
ONE_NODE_OF_MANY = (
    "is one node of a cluster and has only some of the keys: give SlotCap a redis.asyncio.RedisCluster"
)

# The error replies of a server that can serve no key now: by class where redis-py has one, which takes the
# code out of the text. Every other error reply is about the keys of the call.
_ABSENT = (ClusterDownError, OutOfMemoryError, ReadOnlyError)
_ABSENT_CODES = (
    "BUSY ",
    "CLUSTERDOWN ",
    "LOADING ",
    "MASTERDOWN ",
    "MISCONF ",
    "NOREPLICAS ",
    "OOM ",
    "READONLY ",
)


def is_absence(error: BaseException) -> bool:
    """Return whether an error is about the server as a whole, and not about the keys of the call."""
    if not isinstance(error, ResponseError):
        return True
    return isinstance(error, _ABSENT) or str(error).startswith(_ABSENT_CODES)


class LeaseStore:
    """Runs the scripts of one cap, on one server or on the nodes of a cluster. Each call ends in time.

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
        self._server = _Cluster(redis, timeout) if isinstance(redis, RedisCluster) else _One(redis, timeout)
        #: The name of the server or cluster in messages.
        self.where = self._server.where
        #: Whether all keys are on one server: one call may change several slot keys.
        self.one = isinstance(self._server, _One)
        self._prefix = prefix
        self._timeout = timeout
        microseconds = round(ttl * 1_000_000)
        self._settings = (cap, microseconds, int(replaces), int(strict), microseconds * TOMBSTONE_TTLS)

    @property
    def partial(self) -> bool:
        """Whether the server turned out to be one node of a cluster, so that it has only some of the keys."""
        return self._server.partial

    def place_of(self, slot_key: str) -> str:
        """Return the name of the server that has a slot key, as far as known."""
        return self._server.place_of(tag_of(slot_key))

    def change(self, slot_keys: Sequence[str], words: Sequence[str], receiver: Receiver) -> None:
        """Run CHANGE with the words of each slot key; the receiver gets the reply or one of FAILURES."""
        keys: list[str] = []
        for slot_key in slot_keys:
            keys += self._keys(slot_key)
        self._server.start(Call(CHANGE, tag_of(slot_keys[0]), keys, (*self._settings, *words)), receiver)

    async def count(self, slot_key: str) -> int:
        """Return how many leases live. Raises one of FAILURES."""
        reply: asyncio.Future[Reply] = asyncio_loop().create_future()
        self._server.start(Call(COUNT, tag_of(slot_key), self._keys(slot_key)[:1], ()), reply)
        try:
            async with asyncio.timeout(self._timeout):
                counted = await reply
        except TimeoutError as error:
            raise error if str(error) else no_answer(self._timeout) from error
        assert isinstance(counted, int)
        return counted

    def has_refused(self, error: BaseException) -> bool:
        """Return whether an error is about the keys of the call and means that nothing was done."""
        # While a slot moves, an earlier try may have been carried out whose reply was lost.
        moving = not self.one and isinstance(error, (AskError, TryAgainError))
        return not moving and not is_absence(error)

    def _keys(self, slot_key: str) -> tuple[str, str, str]:
        # The braces put all keys of a slot key into one slot of a cluster, and away from the predecessor's.
        key = f"{self._prefix}{{{tag_of(slot_key)}}}"
        return key, f"{key}:since", f"{key}:gone"


class _One:
    def __init__(self, redis: Redis, timeout: float) -> None:
        self.where = address_of(pool_of(redis))
        self.partial = False
        self._batch = Batch(redis, timeout=timeout)
        self._loop: asyncio.AbstractEventLoop | None = None

    def place_of(self, tag: str) -> str:
        return self.where

    def start(self, call: Call, receiver: Receiver) -> None:
        loop = asyncio_loop()
        if self._loop is not loop:
            self._loop = loop
            # Its reply arrives before that of the first call.
            self._batch.send(_ClusterSize(self), b"CLUSTER", b"INFO")
        call.script.send(self._batch, call.keys, call.arguments, receiver)


class _ClusterSize:
    """Learns from the reply to CLUSTER INFO whether the server has only a part of the keys."""

    def __init__(self, server: _One) -> None:
        self._server = server

    def done(self) -> bool:
        return False

    def set_result(self, reply: Reply, /) -> None:
        facts = reply if isinstance(reply, bytes) else str(reply).encode()
        lines = dict(line.partition(b":")[::2] for line in facts.splitlines())
        self._server.partial = lines.get(b"cluster_size", b"1") not in (b"0", b"1")

    def set_exception(self, error: Exception, /) -> None:
        # It is no cluster, or the user may not ask. A key of another node then answers MOVED.
        self._server.partial = False


class _Cluster:
    partial = False

    def __init__(self, redis: RedisCluster, timeout: float) -> None:
        self._routes = Routes(redis, timeout=timeout)
        host, port = self._routes.cluster.first.address
        self.where = f"Redis Cluster at {host}:{port}"

    def place_of(self, tag: str) -> str:
        node = self._routes.cluster.known_node_of(tag)
        return self.where if node is None else f"Redis node at {node.address[0]}:{node.address[1]}"

    def start(self, call: Call, receiver: Receiver) -> None:
        self._routes.start(call, receiver)
