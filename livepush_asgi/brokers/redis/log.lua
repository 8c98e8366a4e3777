-- The log of a channel. This text is the beginning of append.lua and of read.lua. Each of them is one atomic
-- step on the keys of one channel. Times are in milliseconds. log.py puts the constants of the
-- broker's History before this text: EVENTS, SIZE and AGE (false: no bound), KEEP and REMEMBER (how long a
-- head and an idempotency key are kept), VERB (PUBLISH or SPUBLISH), MARK and BATCH_MARK (begin a live payload, and
-- a message of several).
--
-- A log is two keys. `<log>` is a stream. An event's id is `<offset>-<milliseconds>`: a read by offset is a
-- search by id, and the id has the event's time. An event has one field. Its name is the number of payload
-- bytes that were appended before the event, so that the size of the kept events is a difference of two names.
-- `<log>:head` is packed by cmsgpack, which is several times faster than text: the epoch, the last offset, all
-- bytes so far, the bytes before and the time of an event that is or was the oldest, the server's replication
-- id, and a text of the ancestors, `epoch.offset` each, the newest first, with `!` behind the doubtful ones.
--
-- The replication id (`master_replid`) names a history of writes on the server. It is drawn at random when a
-- server starts as a master and when a replica becomes one. At these moments the end of a log may be lost: a
-- killed server loses the writes that were not on its disk, a new master lacks the writes that did not reach
-- it. The rest is always a prefix of the log. So an append that finds another replication id than the log's
-- begins a new epoch, with the next offset, and notes the offset at which the old epoch ended on this server.
-- Up to it, a position of the old epoch names the same event; beyond it, a lost event. If the epoch stayed,
-- the offsets of lost events would be given to other events. A restart that lost nothing begins a new epoch
-- too, at no cost: no position is beyond the noted offset.
--
-- In two cases the log cannot tell whether events are missing, and the end of the old epoch is doubtful: each
-- client that reads past it is told of a gap. A read begins a new epoch then, too, so that clients are told
-- before there is another event.
-- A new master cannot know which writes did not reach it. It has a second replication id, that of the master it
-- followed; a server that has started from a file has none.
-- A server without an append-only file has started from a snapshot, which may be hours old. INFO is asked for
-- that only when the replication id has changed.

-- How many ancestors a log remembers, so that many restarts of the server do not make long heads.
local MAX_ANCESTORS = 8

-- A server before 7.0 has no sharded pub/sub, and may replicate a script as text, so that a replica would read
-- another time. It has no REDIS_VERSION_NUM either.
if not redis.REDIS_VERSION_NUM then
  return redis.error_reply('ERR this server is too old, Redis 7.0 or a Valkey is needed')
end
local log, head = KEYS[1], KEYS[2]
local time = redis.call('TIME')
-- Milliseconds as a text, which is faster than to format the number.
local moment = time[1] .. string.sub('00000' .. time[2], -6, -4)
local now = tonumber(moment)
local epoch, last, total, base, since, run, ancestors
local packed = redis.call('GET', head)
if packed then
  epoch, last, total, base, since, run, ancestors = cmsgpack.unpack(packed)
end
-- An earlier version had a text here, which cmsgpack takes for numbers.
local is_new = type(epoch) ~= 'string'

-- A channel that is read before its first event gets a head for its epoch, so that a client with the id
-- `epoch.0` gets later events from any process. Clients may ask for any name, so this head is kept for a short
-- time; a process that listens reads every 41 seconds at most, which renews it. Without it the log begins under
-- another epoch, and a client that returns with the old one is told of a gap. An epoch derived from the name
-- would need no key, but a log that was deleted, evicted or flushed would begin again under the same epoch: a
-- silent loss.
local KEEP_EMPTY = 120000
local function whole(number)
  -- `%d` is faster, and may have 32 bits only.
  return string.format(number < 2 ^ 31 and '%d' or '%.0f', number)
end

-- Returns nil, or the error text if the user may not run a command on a key or a channel.
local function lacks(verb, name)
  if not redis.acl_check_cmd(verb, name) then
    local where = verb == VERB and '&' .. name or '~' .. string.match(log, '^[^{]*') .. '*'
    return 'NOPERM no permission for ' .. verb .. ' [+' .. string.lower(verb) .. ' ' .. where .. ']'
  end
end

-- Returns a field in the text of INFO, or nil if the server does not have it.
local function field(info, name)
  if type(info) ~= 'string' then
    error({err = 'NOPERM no permission for INFO, which has the ' .. name .. ' [+info]'})
  end
  return string.match(info, name .. ':(%w+)')
end
local function running(info)
  return field(info, 'master_replid') or error({err = 'ERR this server has no replication id'})
end

local function begin(fresh, info)
  epoch, last, total, base, since, run, ancestors = fresh, 0, 0, 0, now, running(info), ''
end

-- Returns whether the server has another replication id than the log.
local function is_another_run(info)
  -- Nearly always it is the same, and a search is cheaper than to parse the text.
  return type(info) ~= 'string' or not string.find(info, 'master_replid:' .. run .. '\r', 1, true)
end

-- Returns whether the end of the log may be lost, if the server has another replication id than the log.
local function is_doubtful(info)
  local followed = field(info, 'master_replid2') or ''
  return string.match(followed, '[^0]') or field(redis.pcall('INFO', 'persistence'), 'aof_enabled') ~= '1'
end

local function begin_epoch(fresh, info)
  local current, doubt = running(info), is_doubtful(info) and '!' or ''
  local older, count = {epoch .. '.' .. whole(last) .. doubt}, 1
  for ancestor in string.gmatch(ancestors, '[^,]+') do
    if count < MAX_ANCESTORS then
      older[#older + 1], count = ancestor, count + 1
    end
  end
  epoch, run, ancestors = fresh, current, table.concat(older, ',')
end

-- A full server refuses only the first write of a script, and never an UNLINK. So a new head is written first.
local function save(begins)
  local text = cmsgpack.pack(epoch, last, total, base, since, run, ancestors)
  local keep = last == 0 and KEEP_EMPTY or KEEP
  if keep then
    redis.call('SET', head, text, 'PX', keep)
  else
    redis.call('SET', head, text)
  end
  if begins then
    -- The server may have evicted the head alone. The rest of the log cannot be continued without it.
    redis.call('UNLINK', log)
  end
end

-- Drops events until the log has its bounds, or until that many were looked at. Returns whether it had to.
local function trim(looks)
  local function over()
    return total - base > SIZE or (AGE and since + AGE < now)
  end
  local is_over = over()
  -- `base` and `since` may be of a dropped event: then the log only seems to exceed its bounds.
  local most = 2
  while looks > 0 and over() do
    local oldest = redis.call('XRANGE', log, '-', '+', 'COUNT', most)
    if #oldest == 0 then
      base, since = total, now
      break
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
  return is_over
end
