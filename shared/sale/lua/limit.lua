-- Counts one call in a sliding window of two fixed ones, and says how long to wait when the limit is reached.
-- KEYS[1], KEYS[2]: this window's count and the one before; ARGV: limit, window (ms), now (ms)
local limit, window, now = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local into = now % window
local before = tonumber(redis.call('GET', KEYS[2]) or '0')
local here = tonumber(redis.call('GET', KEYS[1]) or '0')
-- In whole numbers: calls times milliseconds.
local over = before * (window - into) + (here + 1 - limit) * window
if over > 0 then
  if here >= limit then
    return window - into
  end
  return math.max(1, math.ceil(over / before))
end
redis.call('INCR', KEYS[1])
redis.call('PEXPIRE', KEYS[1], 2 * window)
return 0
