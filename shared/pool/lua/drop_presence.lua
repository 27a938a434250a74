-- A device left a relay: forget it unless it is on another relay by now. KEYS: 1 presence. ARGV: 1 relay id
if redis.call('HGET', KEYS[1], 'relay_id') ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
