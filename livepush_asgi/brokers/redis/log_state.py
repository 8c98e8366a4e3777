"""The state of a channel's log on the server, as both scripts load and save it.

A log is two keys. `<log>` is a stream: an event's id is `<offset>-<milliseconds>`, so that a read by offset
is a search by id, and the age stands in it; its one field is named by how many bytes of payload came before
it, so that the size of what is kept is a difference. `<log>:head` is a text: the epoch, the last offset, all
bytes so far, the bytes before and the time of an event that is the oldest or was it, the server's
replication id, and the ancestors, `epoch.offset` each, the newest first, `!` behind the doubtful ones.

The replication id (`master_replid`) names a course of events on the server. It is drawn at random whenever a
server starts as a master and whenever a replica becomes one. These are the moments at which the end of a log
may be lost: a killed server forgets what was not on the disk, a new master what did not reach it. What is
left is always a beginning of what was there. So an append that finds another replication id than the log's
begins a new epoch, with the next offset, and notes where the old one ended for this server: up to there, a
position of the old epoch names the same event; beyond, it names one that is lost. Without that the offsets
would come again, with other events. Restarts that lost nothing begin a new epoch too, at no cost: everybody
is within what is left.

What a new master lost it had never had, so nobody can tell from the log whether something is missing. It
has a second replication id, that of the master it followed, and a server that starts from its append-only
file has none. Where there is one the end of the old epoch is doubtful: each client is told when it passes.
"""

# A server from before 7.0 has no sharded pub/sub, and may replicate scripts by their text, which this one
# must not be: it asks for the time. It does not tell scripts its version either.
BEGIN = """
if not redis.REDIS_VERSION_NUM then
  return redis.error_reply('ERR this server is too old, Redis 7.0 or a Valkey is needed')
end
local log, head = KEYS[1], KEYS[2]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local epoch, last, total, base, since, run, ancestors

local function whole(number)
  return string.format('%.0f', number)
end

-- Returns nothing, or the error for a user that may not run a command on a key or a channel.
local function lacks(verb, name)
  if not redis.acl_check_cmd(verb, name) then
    local where = verb == VERB and '&' .. name or '~' .. string.match(log, '^[^{]*') .. '*'
    return 'NOPERM no permission for ' .. verb .. ' [+' .. string.lower(verb) .. ' ' .. where .. ']'
  end
end

local function replication()
  local info = redis.pcall('INFO', 'replication')
  if type(info) ~= 'string' or not string.find(info, 'master_replid:', 1, true) then
    error({err = 'NOPERM no permission for INFO, which tells the master_replid [+info]'})
  end
  return info
end

local function running(info)
  return string.match(info, 'master_replid:(%w+)'), string.match(info, 'master_replid2:(%w*)') or ''
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
  epoch, last, total, base, since, run, ancestors = fresh, 0, 0, 0, now, (running(replication())), ''
end

local function save()
  local numbers = string.format('%.0f %.0f %.0f %.0f', last, total, base, since)
  local text = table.concat({epoch, numbers, run, ancestors}, ' ')
  local keep = last == 0 and KEEP_EMPTY or KEEP
  if keep then
    redis.call('SET', head, text, 'PX', keep)
  else
    redis.call('SET', head, text)
  end
end

-- The server refuses a script for want of memory at the first write only, and never an UNLINK. So the head
-- is written first.
local function save_new()
  save()
  -- The server may have evicted the head alone. What it stood for cannot be continued.
  redis.call('UNLINK', log)
end

local function over()
  return total - base > SIZE or (AGE and since + AGE < now)
end

local function trim(looks)
  -- `base` and `since` may be from an event that is gone already, and only look as if too much were kept.
  local most = 2
  while looks > 0 and over() do
    local oldest = redis.call('XRANGE', log, '-', '+', 'COUNT', most)
    if #oldest == 0 then
      base, since = total, now
      return
    end
    local from, gone = nil, 0
    for _, entry in ipairs(oldest) do
      local offset, at = string.match(entry[1], '^(%d+)-(%d+)$')
      base, since, from = tonumber(entry[2][1]), tonumber(at), tonumber(offset)
      local newest = from == last and not (AGE and since + AGE < now)
      if newest or not over() then
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
