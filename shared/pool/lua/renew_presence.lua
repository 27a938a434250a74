-- Devices are still on a relay. Answer: 1 for each that Redis has there, 0 for one to be put again.
-- KEYS: presences; what pins call a device lies in the same slot. ARGV: 1 relay id, 2 ttl s
local kept = {}
for i, key in ipairs(KEYS) do
  local held = redis.call('HMGET', key, 'relay_id', 'pin')
  kept[i] = held[1] == ARGV[1] and redis.call('EXPIRE', key, ARGV[2]) or 0
  if kept[i] == 1 and held[2] then redis.call('EXPIRE', held[2], ARGV[2]) end
end
return kept
