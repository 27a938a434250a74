-- A device is on a relay. The relay that it came to last wins.
-- Answer: {1 if written, generation that is revoked up to, the same of its account}
-- KEYS: 1 presence, 2 revoked generation, 3 revoked generation of its account, 4 what pins call it (only if not by its id)
-- ARGV: 1 ttl s, 2 relay id, 3 connected at ms, 4 generation of its token, 5 the same of its account, 6 device id,
--       7.. fields and values
local held = redis.call('HMGET', KEYS[1], 'relay_id', 'connected_at_ms')
local revoked = tonumber(redis.call('GET', KEYS[2]) or '0')
local account = tonumber(redis.call('GET', KEYS[3]) or '0')
if held[1] and held[1] ~= ARGV[2] and tonumber(held[2]) > tonumber(ARGV[3]) then return { 0, revoked, account } end
if revoked > tonumber(ARGV[4]) or account > tonumber(ARGV[5]) then return { 0, revoked, account } end
redis.call('HSET', KEYS[1], unpack(ARGV, 7))
redis.call('EXPIRE', KEYS[1], ARGV[1])
if KEYS[4] then
  redis.call('HSET', KEYS[1], 'pin', KEYS[4])
  redis.call('SET', KEYS[4], ARGV[6], 'EX', ARGV[1])
end
return { 1, revoked, account }
