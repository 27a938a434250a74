-- Devices are still on a relay. Answer: 1 for each that Redis has there, 0 for one to be put again.
-- KEYS: presences. ARGV: 1 relay id, 2 ttl s
local kept = {}
for i, key in ipairs(KEYS) do
  kept[i] = redis.call('HGET', key, 'relay_id') == ARGV[1] and redis.call('EXPIRE', key, ARGV[2]) or 0
end
return kept
