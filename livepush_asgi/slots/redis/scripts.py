"""Scripts: each changes the leases of its slot keys in one atomic step.

Three sorted sets per slot key. In the first, `<prefix>{<slot key>}`, a member is a lease and its score
the moment at which it expires. `:since` has the same members by the moment at which they were taken.
`:gone` has tombstones: leases that must not come back, because a newer one replaced them or because they
were given up before they were known to be taken. All moments are microseconds of the server's clock, so
that the clocks of the processes do not matter.

A script reads all three sets of a slot key before it writes one, so that a key of another type raises
before anything is changed: an error reply means that nothing was done.
"""

from typing import Final

from ...brokers.redis_script import Script

_NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
"""

# Sets the expiry of a slot key's sets to that of its last lease. A lease far in the future was written before
# the server's clock stepped back: unless its holder renews it, it ends `ttl` from now. Far is later than a
# lease of a process with another `ttl` expires.
_EXPIRE = """
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
"""

# KEYS: the three of each slot key. ARGV: cap, ttl, whether to replace, how long a tombstone of a replaced
# lease lives, how long one of a lease that was given up lives; then for each slot key its words, with spaces
# between them. A word is `-` and the id of a lease to give back, `!` and the id of one to give up, or the id
# of one to take. Words are carried out in their order.
# Returns a line for each word: 1 or 0, after a 1 the ids that had to go for it; or ! and an error, which
# concerns the words of that one slot key.
_CHANGE = f"""{_NOW}
local cap, ttl, replace = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3] == '1'
local replaced_for, given_up_for = tonumber(ARGV[4]), tonumber(ARGV[5])
{_EXPIRE}
local function bar(gone, id, period)
  redis.call('ZADD', gone, now + period, id)
  redis.call('PEXPIREAT', gone, math.ceil((now + period) / 1000))
end

local function replace_oldest(live, since, gone)
  local oldest = redis.call('ZRANGE', since, 0, 0)[1] or redis.call('ZRANGE', live, 0, 0)[1]
  redis.call('ZREM', since, oldest)
  if redis.call('ZREM', live, oldest) == 0 then
    return nil
  end
  bar(gone, oldest, replaced_for)
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
  local count, lines = redis.call('ZCARD', live), {{}}
  for mark, id in string.gmatch(words, '([-!]?)(%S+)') do
    local line = '1'
    if mark ~= '' then
      count = count - redis.call('ZREM', live, id)
      redis.call('ZREM', since, id)
      if mark == '!' then
        bar(gone, id, given_up_for)
        any_gone = true
      elseif any_gone then
        redis.call('ZREM', gone, id)
      end
    elseif any_gone and redis.call('ZSCORE', gone, id) then
      line = '0'
    elseif count >= cap and not replace and not redis.call('ZSCORE', live, id) then
      line = '0'
    else
      while count >= cap and not redis.call('ZSCORE', live, id) do
        local oldest = replace_oldest(live, since, gone)
        if oldest then
          any_gone = true
          count = count - 1
          line = line .. ' ' .. oldest
        end
      end
      count = count + redis.call('ZADD', live, now + ttl, id)
      redis.call('ZADD', since, 'NX', now, id)
    end
    lines[#lines + 1] = line
  end
  expire(live, since)
  return table.concat(lines, '\\n')
end

local answers = {{}}
for k = 1, #KEYS / 3 do
  local words = ARGV[k + 5]
  local ok, answer = pcall(change, KEYS[3 * k - 2], KEYS[3 * k - 1], KEYS[3 * k], words)
  if not ok then
    local lines, fault = {{}}, '!' .. (type(answer) == 'table' and answer.err or tostring(answer))
    for _ in string.gmatch(words, '%S+') do
      lines[#lines + 1] = fault
    end
    answer = table.concat(lines, '\\n')
  end
  answers[k] = answer
end
return table.concat(answers, '\\n')
"""

# ARGV: ttl, the cap that a lease which has expired must find room in, or 0 if it comes back in any case; then
# an id and its age for each lease. Returns the ids that are gone.
_RENEW = f"""{_NOW}
local ttl, cap = tonumber(ARGV[1]), tonumber(ARGV[2])
{_EXPIRE}
local live, since, gone = KEYS[1], KEYS[2], KEYS[3]
local any_gone = redis.call('ZCARD', gone) > 0
redis.call('ZCARD', since)
local count = redis.call('ZCOUNT', live, '(' .. string.format('%.0f', now), '+inf')
local ended = {{}}
for i = 3, #ARGV, 2 do
  local id = ARGV[i]
  local expired = cap > 0 and tonumber(redis.call('ZSCORE', live, id) or 0) <= now
  if any_gone and redis.call('ZSCORE', gone, id) then
    ended[#ended + 1] = id
  elseif expired and count >= cap then
    redis.call('ZREM', live, id)
    redis.call('ZREM', since, id)
    ended[#ended + 1] = id
  else
    if expired then
      count = count + 1
    end
    redis.call('ZADD', live, now + ttl, id)
    redis.call('ZADD', since, 'NX', now - ARGV[i + 1], id)
  end
end
expire(live, since)
return ended
"""

_COUNT = f"""{_NOW}
return redis.call('ZCOUNT', KEYS[1], '(' .. string.format('%.0f', now), '+inf')
"""

CHANGE: Final = Script(_CHANGE)
RENEW: Final = Script(_RENEW)
COUNT: Final = Script(_COUNT)
