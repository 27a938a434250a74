-- When a device is probed next (ms), now for one that is being probed, -1 for one that waits for its return.
-- KEYS: 1 urgent, 2 due, 3 leases. ARGV: 1 id
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local best
if redis.call('ZSCORE', KEYS[3], ARGV[1]) then best = now end
for n = 1, 2 do
  local at = tonumber(redis.call('ZSCORE', KEYS[n], ARGV[1]) or '')
  if at and (not best or at < best) then best = at end
end
return best and string.format('%.0f', best) or '-1'
