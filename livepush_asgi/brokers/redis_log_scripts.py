"""The two scripts of a channel's log on the server. Each is one atomic step on the keys of one channel.

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

from dataclasses import dataclass

from ..event import POSITION_MARK
from .history import History
from .redis_script import Script

# In milliseconds. A log outlives its events, so that a channel on which little happens keeps its epoch: who
# listens asks for it every minute or so. An idempotency key is remembered for at least five minutes, and for
# a day where events have no age. A writer's last call is repeated within seconds.
_LEAST_KEEP = 600_000
_LEAST_REMEMBER, _ENDLESS_REMEMBER = 300_000, 86_400_000
_REMEMBER_CALL = 300_000

# How many ancestors a log remembers, so that a server which restarts all the time makes no long heads.
MOST_ANCESTORS = 8
# How many events one append looks at, and one read, to let them go. What is left over goes at the next.
_LOOKS_OF_APPEND, _LOOKS_OF_READ = 50, 1000

# A server from before 7.0 has no sharded pub/sub, and may replicate scripts by their text, which this one
# must not be: it asks for the time. It does not tell scripts its version either.
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

local function replication()
  local info = redis.pcall('INFO', 'replication')
  if type(info) ~= 'string' or not string.find(info, 'master_replid:', 1, true) then
    error({err = 'ERR no master_replid, the user of the client needs the permission for INFO'})
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
  -- The server may have evicted the head alone. What it stood for cannot be continued.
  redis.call('UNLINK', log)
  epoch, last, total, base, since, run, ancestors = fresh, 0, 0, 0, now, (running(replication())), ''
end

local function save()
  local numbers = string.format('%.0f %.0f %.0f %.0f', last, total, base, since)
  local text = table.concat({epoch, numbers, run, ancestors}, ' ')
  if KEEP then
    redis.call('SET', head, text, 'PX', KEEP)
  else
    redis.call('SET', head, text)
  end
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

# KEYS: log, head, the writer's last call, then idempotency keys.
# ARGV: the name to publish on, a fresh epoch, the number of the writer's call, or nothing if it is never
# repeated. Then three for each event: payload, index of its idempotency key or 0, the expected position or
# nothing.
# Returns a text: the epoch, then for each event `+offset:receivers`, `=position` for one that was there
# already, or `!position` where the log has gone on.
_APPEND = f"""{_BEGIN}
local channel, fresh, call = ARGV[1], ARGV[2], ARGV[3]

if call ~= '' then
  local number, result = string.match(redis.call('GET', KEYS[3]) or '', '^(%d+) (.*)$')
  if number == call then
    return result
  elseif number and tonumber(number) > tonumber(call) then
    return redis.error_reply('ERR this call was given up before it came')
  end
end

if not load() then
  begin(fresh)
else
  local info = replication()
  -- Nearly always it is the same, and looking for it costs less than finding out what it is.
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

local reply = {{epoch}}
for i = 4, #ARGV, 3 do
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
    redis.call('XADD', log, 'MAXLEN', '=', EVENTS, offset .. '-' .. whole(now), whole(total), payload)
    total = total + #payload
    if key > 0 then
      redis.call('SET', KEYS[key], position, 'PX', REMEMBER)
    end
    local receivers = redis.call(VERB, channel, MARK .. position .. '\\n' .. payload)
    reply[#reply + 1] = '+' .. offset .. ':' .. receivers
  end
end
trim({_LOOKS_OF_APPEND})
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

# KEYS: log, head. ARGV: the first offset that is wanted, how many, a fresh epoch. Returns the epoch, the
# first offset that is kept, the last one, the ancestors, and the events.
_READ = f"""{_BEGIN}
if not load() then
  begin(ARGV[3])
  save()
elseif over() then
  trim({_LOOKS_OF_READ})
  save()
elseif KEEP then
  redis.call('PEXPIRE', head, KEEP)
end
local records = {{}}
if ARGV[2] ~= '0' then
  records = redis.call('XRANGE', log, ARGV[1], '+', 'COUNT', ARGV[2])
end
local first = last - redis.call('XLEN', log) + 1
return {{epoch, whole(first), whole(last), ancestors, records}}
"""


@dataclass(frozen=True, slots=True)
class Scripts:
    """The scripts for logs with certain bounds, which stand in the scripts' texts."""

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
            "KEEP": "false" if age is None else max(2 * age, _LEAST_KEEP),
            "REMEMBER": remember,
            "VERB": f"'{verb}'",
            "MARK": "'" + "".join(f"\\{byte:03}" for byte in POSITION_MARK) + "'",
        }
        begin = "".join(f"local {name} = {value}\n" for name, value in constants.items())
        return cls(Script(begin + _APPEND), Script(begin + _READ))
