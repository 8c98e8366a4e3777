-- Releases, renews and acquires the leases of some slot keys.
--
-- A slot key has three sorted sets. In `<prefix>{<slot key>}` a member is a lease, and its score the time at
-- which it expires. `:since` has the same members; the score is the time at which the lease was acquired.
-- `:gone` has tombstones: leases that must not come back, because a newer lease replaced them or because they
-- were released while their acquire could still be on its way. All times are microseconds of the server's
-- clock, so the clocks of the processes do not matter.
--
-- All three sets of a slot key are read before one is written. So a key of another type raises before the
-- first write: after an error reply the slot key is unchanged.
--
-- KEYS: the three sets of each slot key. ARGV: cap; ttl; '1' to replace the oldest lease when all slots are
-- taken; '1' if an expired lease comes back only while a slot is free; the lifetime of the tombstone of a
-- replaced lease; then for each slot key its words, with spaces between them. A word is
--   -ID      release a lease
--   !ID      release a lease that may still be on its way to the server: it leaves a tombstone
--   +ID:AGE  renew a lease that was acquired AGE microseconds ago
--   ID       acquire a lease
-- Words are executed in order. The reply has a line for each word: 1, or 0 for a lease that was not acquired
-- or has ended; after a 1 the ids of the replaced leases. If the server refuses a slot key, the line of each
-- of its words is ! and the error.

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local cap, ttl, replaces, strict = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3] == '1', ARGV[4] == '1'
local replaced_for = tonumber(ARGV[5])

-- The sets expire with their last lease. A lease that expires far in the future was written before the
-- server's clock stepped back: unless its holder renews it, it ends `ttl` from now. `far` is later than the
-- expiry of any lease of a process with another `ttl`.
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
  return table.concat(lines, '\n')
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
    answer = table.concat(lines, '\n')
  end
  answers[k] = answer
end
return table.concat(answers, '\n')
