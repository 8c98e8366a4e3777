-- KEYS: a log. ARGV: the offset of an event. Returns how many milliseconds ago it was added, by the clock of the
-- server, or -1 if the log does not have it. log.lua says what a log is.
local found = redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1], 'COUNT', 1)
if #found == 0 then
  return -1
end
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
return now - tonumber(string.match(found[1][1], '%d+$'))
