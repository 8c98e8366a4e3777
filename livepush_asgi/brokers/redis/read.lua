-- KEYS: log, head. ARGV: the first wanted offset; the most events; a fresh epoch; 1 to check the permissions
-- for every command of a read; the most bytes of payload, which the first event may exceed.
-- Returns the epoch, the first offset that is kept, the last one, the ancestors, the offset of the first event, the
-- sizes of the payloads with commas between them, and the payloads as one text. A client takes few texts several times
-- faster than a list.

-- The most events that are examined in order to drop them. The next call continues.
local MAX_EXAMINED = 1000

if ARGV[4] == '1' then
  local lacking = lacks('SET', head) or lacks('PEXPIRE', head) or lacks('UNLINK', log)
    or lacks('XRANGE', log) or lacks('XTRIM', log) or lacks('XLEN', log)
  if lacking then
    return redis.error_reply(lacking)
  end
end
local info = redis.pcall('INFO', 'replication')
if is_new then
  begin(ARGV[3], info)
  save(true)
elseif is_another_run(info) and is_doubtful(info) then
  local old_epoch, old_ancestors = epoch, ancestors
  begin_epoch(ARGV[3], info)
  if not pcall(save) then
    -- A full server takes no new head. The log can be read all the same.
    epoch, ancestors = old_epoch, old_ancestors
  end
elseif trim(MAX_EXAMINED) then
  save()
elseif last == 0 or KEEP then
  redis.call('PEXPIRE', head, last == 0 and KEEP_EMPTY or KEEP)
end
local payloads, sizes, start = {}, {}, ''
local from, left, size, count = ARGV[1], tonumber(ARGV[2]), 0, 8
while left > 0 do
  -- A few at first: they may be large, and events that do not fit are read in vain.
  count = math.min(2 * count, left)
  local found = redis.call('XRANGE', log, from, '+', 'COUNT', count)
  left = #found == count and left - count or 0
  for _, entry in ipairs(found) do
    local payload = entry[2][2]
    size = size + #payload
    if size > tonumber(ARGV[5]) and #payloads > 0 then
      left = 0
      break
    elseif #payloads == 0 then
      start = string.match(entry[1], '^%d+')
    end
    payloads[#payloads + 1], sizes[#sizes + 1] = payload, #payload
  end
  if left > 0 then
    from = whole(string.match(found[count][1], '^%d+') + 1)
  end
end
local first = last - redis.call('XLEN', log) + 1
return {epoch, whole(first), whole(last), ancestors, start, table.concat(sizes, ','), table.concat(payloads)}
