-- Counts units of a bucket that several daemons share, and returns the microseconds until it is
-- full. The server's own clock counts: those of the daemons may differ.
--
-- KEYS[1]: the moment at which the bucket is full, in microseconds since 1970
-- ARGV: the units, the microseconds that earn one, and the most that may be missing
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local units = tonumber(ARGV[1])
local full = tonumber(redis.call('GET', KEYS[1]) or '0') or 0
if units > 0 and full < now then
  full = now
end
full = math.ceil(math.min(full + units * ARGV[2], now + ARGV[3]))
local missing = full - now
if missing <= 0 then
  redis.call('DEL', KEYS[1])
  return 0
end
redis.call('SET', KEYS[1], string.format('%.0f', full), 'PX', math.ceil(missing / 1000) + 1000)
return missing
