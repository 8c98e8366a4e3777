"""The two scripts of a channel's log on the server. Each is one atomic step on the keys of one channel."""

from dataclasses import dataclass

from ...event import POSITION_MARK
from ..history import History
from .log_state import BEGIN
from .script import Script

# In milliseconds. A channel that is read before anything was published gets a head for its epoch, so that a
# client that was told `epoch.0` gets what comes, in whatever process. Any client may ask for any name, so
# this head is kept for a short time only; a process that listens reads every 41 seconds at most, which renews
# it. When it is gone the log begins under another epoch, and a client that returns with the old one is told
# of a gap. An epoch that is derived from the name instead of being stored would need no key, but two logs of
# one name would have the same epoch when the first one is deleted, evicted or flushed: a loss in silence.
_KEEP_EMPTY = 120_000

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

# KEYS: log, head, the writer's last call, then idempotency keys.
# ARGV: the name to publish on, a fresh epoch, the number of the writer's call, or nothing if it is never
# repeated, 1 to check the permissions for all that an append may ever need, and the bytes of all payloads.
# Then three for each event: payload, index of its idempotency key or 0, the expected position or nothing.
# Returns a text: the epoch, then for each event `+offset:receivers`, `=position` for one that was there
# already, or `!position` where the log has gone on.
#
# The server does not undo what a script has done before a command is refused. So everything that can be
# refused is checked, and everything is read, before the first write: an append is done whole or not at all.
# The user's permissions for the keys are checked by the server, before it runs the script.
_APPEND = f"""{BEGIN}
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

# KEYS: log, head. ARGV: the first offset that is wanted, how many, a fresh epoch, 1 to check the permissions
# for all that a read may ever need, and how many bytes of payload at most, one event at least.
# Returns the epoch, the first offset that is kept, the last one, the ancestors, and the events.
_READ = f"""{BEGIN}
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
  trim({_LOOKS_OF_READ})
  save()
elseif last == 0 or KEEP then
  redis.call('PEXPIRE', head, last == 0 and KEEP_EMPTY or KEEP)
end
local records, from, left, size, count = {{}}, ARGV[1], tonumber(ARGV[2]), 0, 8
while left > 0 do
  -- A few at first: they may be large, and what does not fit is read in vain.
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
            "KEEP_EMPTY": _KEEP_EMPTY,
            "KEEP": "false" if age is None else max(2 * age, _LEAST_KEEP),
            "REMEMBER": remember,
            "VERB": f"'{verb}'",
            "MARK": "'" + "".join(f"\\{byte:03}" for byte in POSITION_MARK) + "'",
        }
        begin = "".join(f"local {name} = {value}\n" for name, value in constants.items())
        return cls(Script(begin + _APPEND), Script(begin + _READ))
