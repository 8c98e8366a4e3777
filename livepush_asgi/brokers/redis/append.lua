-- KEYS: log, head, the writer's last call, then idempotency keys.
-- ARGV: the name to publish on; a fresh epoch; the number of the writer's call, or an empty text if calls are
-- never repeated; 1 to check the permissions for every command of an append. Then for each append: the number of
-- its events, the index of its idempotency key or an empty text, the expected position or an empty text, and the
-- payloads.
-- Returns a text: for each append `+position:receivers` of its last event, `=position` if its key is known, or
-- `!position` if the log does not end at the expected one.
--
-- The server does not roll back a script when it refuses a command. So the script makes every check and every
-- read before its first write: an append is done whole or not at all. The server checks the user's permissions
-- for the keys before it runs the script.

-- How long a writer's last call is remembered. It is repeated within seconds.
local REMEMBER_CALL = 300000
-- The most events that are examined in order to drop them. The next call continues.
local MAX_EXAMINED = 50

local channel, fresh, call, check = ARGV[1], ARGV[2], ARGV[3], ARGV[4] == '1'
local FIRST_APPEND = 5

if call ~= '' then
  local number, result = string.match(redis.call('GET', KEYS[3]) or '', '^(%d+) (.*)$')
  if number == call then
    return result
  elseif number and tonumber(number) > tonumber(call) then
    return redis.error_reply('ERR this call was given up before it came')
  end
end

local info = redis.pcall('INFO', 'replication')
if is_new then
  begin(fresh, info)
elseif is_another_run(info) then
  begin_epoch(fresh, info)
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

local lacking = lacks('SET', head) or lacks(VERB, channel) or lacks(AGE and 'PEXPIRE' or 'PERSIST', log)
if check or is_new then
  lacking = lacking or lacks('UNLINK', log) or lacks('XADD', log)
end
local known = {}
for i = call == '' and 3 or 4, #KEYS do
  known[KEYS[i]] = redis.call('GET', KEYS[i])
end
local size = 0
for i = FIRST_APPEND, #ARGV do
  -- With the numbers between the payloads: the bound is not missed by so few bytes.
  size = size + #ARGV[i]
end
local must_trim = total + size - base > SIZE or (AGE and since + AGE < now)
if check or must_trim then
  lacking = lacking or lacks('XRANGE', log) or lacks('XTRIM', log)
end
if lacking then
  return redis.error_reply(lacking)
end

if is_new then
  save(true)
end
local function append(payload)
  last = last + 1
  redis.call('XADD', log, 'MAXLEN', '=', EVENTS, whole(last) .. '-' .. moment, total, payload)
  total = total + #payload
end
local function position()
  return epoch .. '.' .. whole(last)
end

-- A subscriber takes one message of many events several times faster than a message for each.
local function append_batch(from, to)
  local sizes = {}
  append(ARGV[from])
  local message = BATCH_MARK .. position()
  for i = from, to do
    if i > from then
      append(ARGV[i])
    end
    sizes[#sizes + 1] = #ARGV[i]
  end
  message = message .. '\n' .. table.concat(sizes, ',') .. '\n' .. table.concat(ARGV, '', from, to)
  return redis.call(VERB, channel, message)
end

local reply = {}
local at = FIRST_APPEND
while at <= #ARGV do
  local count, name, expected = tonumber(ARGV[at]), KEYS[tonumber(ARGV[at + 1])], ARGV[at + 2]
  if name and known[name] then
    reply[#reply + 1] = '=' .. known[name]
  elseif expected ~= '' and not is_last(expected) then
    reply[#reply + 1] = '!' .. epoch .. '.' .. whole(last)
  else
    local receivers
    if count == 1 then
      local payload = ARGV[at + 3]
      append(payload)
      receivers = redis.call(VERB, channel, MARK .. position() .. '\n' .. payload)
    else
      receivers = append_batch(at + 3, at + 2 + count)
    end
    if name then
      known[name] = position()
      redis.call('SET', name, position(), 'PX', REMEMBER)
    end
    reply[#reply + 1] = string.format('+%s:%d', position(), receivers)
  end
  at = at + 3 + count
end
if must_trim then
  trim(MAX_EXAMINED)
end
save()
if AGE then
  redis.call('PEXPIRE', log, AGE)
else
  -- A publisher whose History has an age may have set one.
  redis.call('PERSIST', log)
end
reply = table.concat(reply, ' ')
if call ~= '' then
  redis.call('SET', KEYS[3], call .. ' ' .. reply, 'PX', REMEMBER_CALL)
end
return reply
