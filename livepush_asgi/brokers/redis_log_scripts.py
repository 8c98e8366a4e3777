"""The two scripts of a channel's log on the server. Each is one atomic step on the keys of one channel.

A log is two keys. `<log>` is a stream: an event's id is `<offset>-<milliseconds>`, so that a read by offset
is a search by id, and the age stands in it; its one field is named by how many bytes of payload came before
it, so that the size of what is kept is a difference. `<log>:head` is a text: the epoch, the last offset, all
bytes so far, the bytes before and the time of an event that is the oldest or was it, the server's
replication id, and the ancestors, `epoch.offset` each, the newest first.

The replication id (`master_replid`) names a course of events on the server. It is drawn at random whenever a
server starts as a master and whenever a replica becomes one. These are the moments at which the end of a log
may be lost: a killed server forgets what was not on the disk, a new master what did not reach it. What is
left is always a beginning of what was there. So an append that finds another replication id than the log's
begins a new epoch, with the next offset, and notes where the old one ended for this server: up to there, a
position of the old epoch names the same event; beyond, it names one that is lost. Without that the offsets
would come again, with other events. Restarts that lost nothing begin a new epoch too, at no cost: everybody
is within what is left.
"""

# How many ancestors a log remembers, so that a server which restarts all the time makes no long heads.
MOST_ANCESTORS = 8
# How many events one append looks at, and one read, to let them go. What is left over goes at the next.
_LOOKS_OF_APPEND, _LOOKS_OF_READ = 50, 1000

# A server from before 7.0 has no sharded pub/sub, and may replicate scripts by their text, which this one
# must not be: it asks for the time. It does not tell scripts its version either.
_BEGIN = """
if not redis.REDIS_VERSION_NUM then
  return redis.error_reply('TOOOLD the server is older than Redis 7.0')
end
local log, head = KEYS[1], KEYS[2]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local epoch, last, total, base, since, run, ancestors

local function whole(number)
  return string.format('%.0f', number)
end

local function running()
  local id = string.match(redis.call('INFO', 'replication'), 'master_replid:(%w+)')
  return id or error('the server does not tell its replication id')
end

local function load()
  local text = redis.call('GET', head)
  if not text then
    return false
  end
  epoch, last, total, base, since, run, ancestors = string.match(
    text, '^(%S+) (%d+) (%d+) (%d+) (%d+) (%w+) (%S*)$')
  last, total, base, since = tonumber(last), tonumber(total), tonumber(base), tonumber(since)
  return true
end

local function begin(fresh)
  -- The server may have evicted the head alone. What it stood for cannot be continued.
  redis.call('UNLINK', log)
  epoch, last, total, base, since, run, ancestors = fresh, 0, 0, 0, now, running(), ''
end

local function save(keep)
  local text = table.concat({epoch, whole(last), whole(total), whole(base), whole(since), run, ancestors}, ' ')
  if keep > 0 then
    redis.call('SET', head, text, 'PX', whole(keep))
  else
    redis.call('SET', head, text)
  end
end

local function over(size, age)
  return total - base > size or (age > 0 and since + age < now)
end

local function trim(size, age, looks)
  -- `base` and `since` are from an event that may be gone already, so it may only look as if too much is kept.
  local most = 2
  while looks > 0 and over(size, age) do
    local oldest = redis.call('XRANGE', log, '-', '+', 'COUNT', most)
    if #oldest == 0 then
      base, since = total, now
      return
    end
    local from, gone = nil, 0
    for _, entry in ipairs(oldest) do
      local offset, at = string.match(entry[1], '^(%d+)-(%d+)$')
      base, since, from = tonumber(entry[2][1]), tonumber(at), tonumber(offset)
      local newest = from == last and not (age > 0 and since + age < now)
      if newest or not over(size, age) then
        looks = 0
        break
      end
      from, gone = from + 1, gone + 1
    end
    if gone > 0 then
      redis.call('XTRIM', log, 'MINID', '=', whole(from))
    end
    looks, most = looks - #oldest, 16
  end
end
"""

# KEYS: log, head, the writer's last call, then idempotency keys.
# ARGV: channel, PUBLISH or SPUBLISH, the mark of a position, a fresh epoch; how many events, bytes and
# milliseconds to keep, how long to keep an idle head and an idempotency key; the number of the writer's call,
# or nothing if it is never repeated. Then three for each event: payload, index of its idempotency key or 0,
# the expected position or nothing.
# Returns a text: the epoch, then for each event `+offset:receivers`, `=position` for one that was there
# already, or `!position` where the log has gone on.
APPEND = f"""{_BEGIN}
local channel, verb, mark, fresh = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local events, size, age = ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7])
local keep, remember, call = tonumber(ARGV[8]), ARGV[9], ARGV[10]

if call ~= '' then
  local number, result = string.match(redis.call('GET', KEYS[3]) or '', '^(%d+) (.*)$')
  if number == call then
    return result
  elseif number and tonumber(number) > tonumber(call) then
    return redis.error_reply('LATE this call was given up before it came')
  end
end

if not load() then
  begin(fresh)
else
  local current = running()
  if run ~= current then
    local older, count = {{epoch .. '.' .. whole(last)}}, 1
    for ancestor in string.gmatch(ancestors, '[^,]+') do
      if count < {MOST_ANCESTORS} then
        older[#older + 1], count = ancestor, count + 1
      end
    end
    epoch, run, ancestors = fresh, current, table.concat(older, ',')
  end
end

local function is_last(position)
  local name, offset = string.match(position, '^(%S+)%.(%d+)$')
  if offset == '0' then
    return last == 0
  elseif tonumber(offset) ~= last or name == epoch then
    return tonumber(offset) == last
  end
  for ancestor, shared in string.gmatch(ancestors, '([^,.]+)%.(%d+)') do
    if ancestor == name then
      return last <= tonumber(shared)
    end
  end
  return false
end

local reply = {{epoch}}
for i = 11, #ARGV, 3 do
  local payload, key, expected = ARGV[i], tonumber(ARGV[i + 1]), ARGV[i + 2]
  local known = key > 0 and redis.call('GET', KEYS[key])
  if known then
    reply[#reply + 1] = '=' .. known
  elseif expected ~= '' and not is_last(expected) then
    reply[#reply + 1] = '!' .. epoch .. '.' .. whole(last)
  else
    last = last + 1
    local offset = whole(last)
    local position = epoch .. '.' .. offset
    redis.call('XADD', log, 'MAXLEN', '=', events, offset .. '-' .. whole(now), whole(total), payload)
    total = total + #payload
    if key > 0 then
      redis.call('SET', KEYS[key], position, 'PX', remember)
    end
    local receivers = redis.call(verb, channel, mark .. position .. '\\n' .. payload)
    reply[#reply + 1] = '+' .. offset .. ':' .. receivers
  end
end
trim(size, age, {_LOOKS_OF_APPEND})
save(keep)
if age > 0 then
  redis.call('PEXPIRE', log, whole(age))
end
reply = table.concat(reply, ' ')
if call ~= '' then
  redis.call('SET', KEYS[3], call .. ' ' .. reply, 'PX', 300000)
end
return reply
"""

# KEYS: log, head. ARGV: the first offset that is wanted, how many, a fresh epoch; how many bytes and
# milliseconds to keep, how long to keep an idle head. Returns the epoch, the first offset that is kept, the
# last one, the ancestors, and the events.
READ = f"""{_BEGIN}
local size, age, keep = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
if not load() then
  begin(ARGV[3])
  save(keep)
elseif over(size, age) then
  trim(size, age, {_LOOKS_OF_READ})
  save(keep)
elseif keep > 0 then
  redis.call('PEXPIRE', head, whole(keep))
end
local records = {{}}
if ARGV[2] ~= '0' then
  records = redis.call('XRANGE', log, ARGV[1], '+', 'COUNT', ARGV[2])
end
local first = last - redis.call('XLEN', log) + 1
return {{epoch, whole(first), whole(last), ancestors, records}}
"""
