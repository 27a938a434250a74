-- Ask for probes, no later than in some time. KEYS: 1 queue, 2 leases, 3 due. ARGV: 1 in ms, 2 "1" only what is not queued, 3.. ids
-- Answer: how many were added or brought forward
local clock = redis.call('TIME')
local at = clock[1] * 1000 + math.floor(clock[2] / 1000) + tonumber(ARGV[1])
local changed = 0
for i = 3, #ARGV do
  local known = ARGV[2] == '1' and (redis.call('ZSCORE', KEYS[3], ARGV[i]) or redis.call('ZSCORE', KEYS[2], ARGV[i]))
  if not known then changed = changed + redis.call('ZADD', KEYS[1], 'LT', 'CH', at, ARGV[i]) end
end
return changed
