-- Devices left a relay: forget them unless they are on another relay by now. KEYS: presences. ARGV: 1 relay id
-- Answer: 1 for each that was forgotten
local dropped = {}
for n, key in ipairs(KEYS) do
  dropped[n] = redis.call('HGET', key, 'relay_id') == ARGV[1] and redis.call('DEL', key) or 0
end
return dropped
