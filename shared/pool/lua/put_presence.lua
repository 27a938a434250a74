-- A device is on a relay. The relay that it came to last wins. Answer: {1 if written, generation that is revoked up to}
-- KEYS: 1 presence, 2 revoked generation. ARGV: 1 ttl s, 2 relay id, 3 connected at ms, 4 generation of its token,
--       5.. fields and values
local held = redis.call('HMGET', KEYS[1], 'relay_id', 'connected_at_ms')
local revoked = tonumber(redis.call('GET', KEYS[2]) or '0')
if held[1] and held[1] ~= ARGV[2] and tonumber(held[2]) > tonumber(ARGV[3]) then return { 0, revoked } end
if revoked > tonumber(ARGV[4]) then return { 0, revoked } end
redis.call('HSET', KEYS[1], unpack(ARGV, 5))
redis.call('EXPIRE', KEYS[1], ARGV[1])
return { 1, revoked }
