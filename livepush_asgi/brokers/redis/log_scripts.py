"""The two Lua scripts of a channel's log on the server. Each is one atomic step on the keys of one channel.

A log is two keys. `<log>` is a stream. An event's id is `<offset>-<milliseconds>`: a read by offset is a
search by id, and the id has the event's time. An event has one field. Its name is the number of payload bytes
that were appended before the event, so that the size of the kept events is a difference of two names.
`<log>:head` is a text: the epoch, the last offset, all bytes so far, the bytes before and the time of an
event that is or was the oldest, the server's replication id, and the ancestors, `epoch.offset` each, the
newest first, with `!` behind the doubtful ones.

The replication id (`master_replid`) names a history of writes on the server. It is drawn at random when a
server starts as a master and when a replica becomes one. At these moments the end of a log may be lost: a
killed server loses the writes that were not on its disk, a new master lacks the writes that did not reach
it. The rest is always a prefix of the log. So an append that finds another replication id than the log's
begins a new epoch, with the next offset, and notes the offset at which the old epoch ended on this server.
Up to it, a position of the old epoch names the same event; beyond it, a lost event. If the epoch stayed, the
offsets of lost events would be given to other events. A restart that lost nothing begins a new epoch too, at
no cost: no position is beyond the noted offset.

A new master cannot know which writes did not reach it, so the log cannot tell whether events are missing.
The server then has a second replication id, that of the master it followed; a server that starts from its
append-only file has none. If there is a second one, the end of the old epoch is doubtful: each client that
reads past it is told of a gap.
"""

from dataclasses import dataclass

from ...wire.event import POSITION_MARK
from ..history import History
from .script import Script

# Times are in milliseconds. A channel that is read before its first event gets a head for its epoch, so that
# a client with the id `epoch.0` gets later events from any process. Clients may ask for any name, so this
# head is kept for a short time; a process that listens reads every 41 seconds at most, which renews it.
# Without it the log begins under another epoch, and a client that returns with the old one is told of a gap.
# An epoch derived from the name would need no key, but a log that was deleted, evicted or flushed would
# begin again under the same epoch: a silent loss.
_KEEP_EMPTY = 120_000

# A log outlives its events, so that a quiet channel keeps its epoch: processes that listen ask for it about
# every minute. An idempotency key is remembered for at least five minutes, and for a day where events have no
# age. A writer's last call is repeated within seconds.
_LEAST_KEEP = 600_000
_LEAST_REMEMBER, _ENDLESS_REMEMBER = 300_000, 86_400_000
_REMEMBER_CALL = 300_000

# How many ancestors a log remembers, so that many restarts of the server do not make long heads.
MOST_ANCESTORS = 8
# The most events that one append, or one read, examines in order to drop them. The next call continues.
_EXAMINED_BY_APPEND, _EXAMINED_BY_READ = 50, 1000

# A server before 7.0 has no sharded pub/sub, and may replicate a script as text, so that a replica would read
# another time. It has no REDIS_VERSION_NUM either.
_BEGIN = """
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

-- Returns nil, or the error text if the user may not run a command on a key or a channel.
local function lacks(verb, name)
  if not redis.acl_check_cmd(verb, name) then
    local where = verb == VERB and '&' .. name or '~' .. string.match(log, '^[^{]*') .. '*'
    return 'NOPERM no permission for ' .. verb .. ' [+' .. string.lower(verb) .. ' ' .. where .. ']'
  end
end

local function replication()
  local info = redis.pcall('INFO', 'replication')
  if type(info) ~= 'string' or not string.find(info, 'master_replid:', 1, true) then
    error({err = 'NOPERM no permission for INFO, which has the master_replid [+info]'})
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

-- A full server refuses only the first write of a script, and never an UNLINK. So the head is written first.
local function save_new()
  save()
  -- The server may have evicted the head alone. The rest of the log cannot be continued without it.
  redis.call('UNLINK', log)
end

local function over()
  return total - base > SIZE or (AGE and since + AGE < now)
end

local function trim(looks)
  -- `base` and `since` may be of a dropped event: then the log only seems to exceed its bounds.
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

# KEYS: log, head, the writer's last call, then idempotency keys.
# ARGV: the name to publish on; a fresh epoch; the number of the writer's call, or an empty text if calls are
# never repeated; 1 to check the permissions for every command of an append; the bytes of all payloads. Then
# three for each event: payload, index of its idempotency key or 0, expected position or an empty text.
# Returns a text: the epoch, then for each event `+offset:receivers`, `=position` if its key is known, or
# `!position` if the log does not end at the expected one.
#
# The server does not roll back a script when it refuses a command. So the script makes every check and every
# read before its first write: an append is done whole or not at all. The server checks the user's permissions
# for the keys before it runs the script.
_APPEND = f"""{_BEGIN}
local channel, fresh, call, check, size = ARGV[1], ARGV[2], ARGV[3], ARGV[4] == '1', tonumber(ARGV[5])

if call ~= '' then
  local number, result = string.match(redis.call('GET', KEYS[3]) or '', '^(%d+) (.*)$')
  if number == call then
    return result
  elseif number and tonumber(number) > tonumber(call) then
    return redis.error_reply('ERR this call was given up before it came')
  end
end

local is_new = not load()
if is_new then
  begin(fresh)
else
  local info = replication()
  -- Nearly always it is the same, and a search is cheaper than to parse the text.
  if not string.find(info, 'master_replid:' .. run .. '\\r', 1, true) then
    local current, followed = running(info)
    local doubt = string.match(followed, '[^0]') and '!' or ''
    local older, count = {{epoch .. '.' .. whole(last) .. doubt}}, 1
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

local lacking = lacks('SET', head) or lacks(VERB, channel) or (AGE and lacks('PEXPIRE', log))
if check or is_new then
  lacking = lacking or lacks('UNLINK', log) or lacks('XADD', log)
end
local known = {{}}
for i = call == '' and 3 or 4, #KEYS do
  known[KEYS[i]] = redis.call('GET', KEYS[i])
end
if check or total + size - base > SIZE or (AGE and since + AGE < now) then
  lacking = lacking or lacks('XRANGE', log) or lacks('XTRIM', log)
end
if lacking then
  return redis.error_reply(lacking)
end

if is_new then
  save_new()
end
local reply = {{epoch}}
for i = 6, #ARGV, 3 do
  local payload, name, expected = ARGV[i], KEYS[tonumber(ARGV[i + 1])], ARGV[i + 2]
  if name and known[name] then
    reply[#reply + 1] = '=' .. known[name]
  elseif expected ~= '' and not is_last(expected) then
    reply[#reply + 1] = '!' .. epoch .. '.' .. whole(last)
  else
    last = last + 1
    local offset = whole(last)
    local position = epoch .. '.' .. offset
    redis.call('XADD', log, 'MAXLEN', '=', EVENTS, offset .. '-' .. whole(now), whole(total), payload)
    total = total + #payload
    if name then
      known[name] = position
      redis.call('SET', name, position, 'PX', REMEMBER)
    end
    local receivers = redis.call(VERB, channel, MARK .. position .. '\\n' .. payload)
    reply[#reply + 1] = '+' .. offset .. ':' .. receivers
  end
end
trim({_EXAMINED_BY_APPEND})
save()
if AGE then
  redis.call('PEXPIRE', log, AGE)
end
reply = table.concat(reply, ' ')
if call ~= '' then
  redis.call('SET', KEYS[3], call .. ' ' .. reply, 'PX', {_REMEMBER_CALL})
end
return reply
"""

# KEYS: log, head. ARGV: the first wanted offset; the most events; a fresh epoch; 1 to check the permissions
# for every command of a read; the most bytes of payload, which the first event may exceed.
# Returns the epoch, the first offset that is kept, the last one, the ancestors, and the events.
_READ = f"""{_BEGIN}
if ARGV[4] == '1' then
  local lacking = lacks('SET', head) or lacks('PEXPIRE', head) or lacks('UNLINK', log)
    or lacks('XRANGE', log) or lacks('XTRIM', log) or lacks('XLEN', log)
  if lacking then
    return redis.error_reply(lacking)
  end
end
if not load() then
  begin(ARGV[3])
  save_new()
elseif over() then
  trim({_EXAMINED_BY_READ})
  save()
elseif last == 0 or KEEP then
  redis.call('PEXPIRE', head, last == 0 and KEEP_EMPTY or KEEP)
end
local records, from, left, size, count = {{}}, ARGV[1], tonumber(ARGV[2]), 0, 8
while left > 0 do
  -- A few at first: they may be large, and events that do not fit are read in vain.
  count = math.min(2 * count, left)
  local found = redis.call('XRANGE', log, from, '+', 'COUNT', count)
  left = #found == count and left - count or 0
  for _, entry in ipairs(found) do
    size = size + #entry[2][2]
    if size > tonumber(ARGV[5]) and #records > 0 then
      left = 0
      break
    end
    records[#records + 1] = entry
  end
  if left > 0 then
    from = whole(string.match(found[count][1], '^%d+') + 1)
  end
end
local first = last - redis.call('XLEN', log) + 1
return {{epoch, whole(first), whole(last), ancestors, records}}
"""


@dataclass(frozen=True, slots=True)
class Scripts:
    """The scripts for logs with certain bounds. The bounds are constants in the scripts' texts."""

    append: Script
    read: Script

    @classmethod
    def of(cls, history: History, verb: str) -> "Scripts":
        """Return the scripts that publish by PUBLISH or SPUBLISH."""
        age = None if history.age is None else max(1, round(history.age * 1000))
        remember = _ENDLESS_REMEMBER if age is None else max(age, _LEAST_REMEMBER)
        constants = {
            "EVENTS": history.events,
            "SIZE": history.size,
            "AGE": age or "false",
            "KEEP_EMPTY": _KEEP_EMPTY,
            "KEEP": "false" if age is None else max(2 * age, _LEAST_KEEP),
            "REMEMBER": remember,
            "VERB": f"'{verb}'",
            "MARK": "'" + "".join(f"\\{byte:03}" for byte in POSITION_MARK) + "'",
        }
        begin = "".join(f"local {name} = {value}\n" for name, value in constants.items())
        return cls(Script(begin + _APPEND), Script(begin + _READ))
