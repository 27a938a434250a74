-- Count one call against several limits at once, or against none: sliding windows, each estimated from two fixed ones.
-- KEYS: per limit this window's count and the one before. ARGV: now (ms), then per limit calls, window (ms)
-- Answer: per limit ms to wait (0 = there was room), calls left, ms until this window is over
local now, out, refused = tonumber(ARGV[1]), {}, false

for i = 1, #KEYS / 2 do
  local limit, window = tonumber(ARGV[2 * i]), tonumber(ARGV[2 * i + 1])
  local into = now % window
  local here = tonumber(redis.call('GET', KEYS[2 * i - 1]) or '0')
  local before = tonumber(redis.call('GET', KEYS[2 * i]) or '0')
  -- In whole numbers: calls times milliseconds.
  local spent = before * (window - into) + here * window
  local over, wait = spent + (1 - limit) * window, 0
  if over > 0 then
    refused = true
    if here >= limit then -- until so much of this window has slid out of the next one that one more fits
      wait = window - into + math.ceil(window * (here - limit + 1) / here)
    else
      wait = math.max(1, math.ceil(over / before))
    end
  end
  out[3 * i - 2] = wait
  out[3 * i - 1] = math.max(0, math.floor(limit - spent / window) - 1)
  out[3 * i] = window - into
end

if not refused then
  for i = 1, #KEYS / 2 do
    redis.call('INCR', KEYS[2 * i - 1])
    redis.call('PEXPIRE', KEYS[2 * i - 1], 2 * tonumber(ARGV[2 * i + 1]))
  end
end
return out
