"""Scripts: what the ledger has the server do, each atomic on the keys of the slot keys it is called for.

Three sorted sets per slot key. In the first, `<prefix>{<slot key>}`, a member is a lease and its score
the moment at which it expires. `:since` has the same members by the moment at which they were taken.
`:gone` has the leases that must not come back: replaced by a newer one, or given up before they were
known to be taken. All moments are microseconds of the server's clock, so that the clocks of the
processes do not matter.
"""

from typing import Final

from ..brokers.redis_script import Script

_NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
"""

# Has the server forget the leases of a slot key together with the last of them.
_EXPIRE = """
local function expire(live, since)
  local last = redis.call('ZRANGE', live, -1, -1, 'WITHSCORES')[2]
  if last then
    redis.call('PEXPIREAT', live, math.ceil(last / 1000))
    redis.call('PEXPIREAT', since, math.ceil(last / 1000))
  end
end
"""

# KEYS: the three of each slot key. ARGV: cap, ttl, whether to replace, how long to remember what was
# replaced, then the ids for each slot key, with spaces between them.
# Returns a line for each id: 1 or 0, after a 1 the ids that had to go for it; or ! and an error, which
# concerns the takes of that one slot key. Those taken at one moment are in the order of their ids.
_TAKE = f"""{_NOW}{_EXPIRE}
local cap, ttl, replace, barred = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3] == '1', tonumber(ARGV[4])

local function replace_oldest(live, since, gone)
  local oldest = redis.call('ZRANGE', since, 0, 0)[1] or redis.call('ZRANGE', live, 0, 0)[1]
  redis.call('ZREM', since, oldest)
  if redis.call('ZREM', live, oldest) == 0 then
    return nil
  end
  redis.call('ZADD', gone, now + barred, oldest)
  redis.call('PEXPIREAT', gone, math.ceil((now + barred) / 1000))
  return oldest
end

local function take(live, since, gone, ids)
  for _, expired in ipairs(redis.call('ZRANGEBYSCORE', live, '-inf', now)) do
    redis.call('ZREM', live, expired)
    redis.call('ZREM', since, expired)
  end
  local any_gone = redis.call('EXISTS', gone) == 1
  if any_gone then
    redis.call('ZREMRANGEBYSCORE', gone, '-inf', now)
  end
  local count, lines = redis.call('ZCARD', live), {{}}
  for id in string.gmatch(ids, '%S+') do
    local line = '1'
    if (count >= cap and not replace) or (any_gone and redis.call('ZSCORE', gone, id)) then
      line = '0'
    else
      while count >= cap do
        local oldest = replace_oldest(live, since, gone)
        if oldest then
          count = count - 1
          line = line .. ' ' .. oldest
        end
      end
      redis.call('ZADD', live, now + ttl, id)
      redis.call('ZADD', since, now, id)
      count = count + 1
    end
    lines[#lines + 1] = line
  end
  expire(live, since)
  return table.concat(lines, '\\n')
end

local answers = {{}}
for k = 1, #KEYS / 3 do
  local ids = ARGV[k + 4]
  local ok, answer = pcall(take, KEYS[3 * k - 2], KEYS[3 * k - 1], KEYS[3 * k], ids)
  if not ok then
    local lines, fault = {{}}, '!' .. (type(answer) == 'table' and answer.err or tostring(answer))
    for _ in string.gmatch(ids, '%S+') do
      lines[#lines + 1] = fault
    end
    answer = table.concat(lines, '\\n')
  end
  answers[k] = answer
end
return table.concat(answers, '\\n')
"""

# ARGV: ttl, then an id and its age for each lease. Returns the ids that are gone.
_RENEW = f"""{_NOW}{_EXPIRE}
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
expire(live, since)
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

TAKE: Final = Script(_TAKE)
RENEW: Final = Script(_RENEW)
REMOVE: Final = Script(_REMOVE)
COUNT: Final = Script(_COUNT)
