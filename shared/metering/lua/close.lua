-- Drop the live meter of a key that ended, unless bytes of it are counted here that the truth does not know, or gateways
-- still hold leases on it. Bytes that are told later count from zero here; the truth has them all.
-- KEYS: 1 used, 2 cap, 3 leases of the key. ARGV: 1 key id, 2 used. Answer: 1 when nothing is kept of it any more
if redis.call('EXISTS', KEYS[3]) == 1 then return 0 end
if tonumber(redis.call('HGET', KEYS[1], ARGV[1]) or '0') > tonumber(ARGV[2]) then return 0 end
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
return 1
