-- Replace the rollup of live numbers, both parts in one moment; an older one never replaces a newer one.
-- KEYS: 1 numbers, 2 networks (hash), 3 lock. ARGV: 1 numbers (JSON), 2 ms of them, 3 life s, then field, networks (JSON) ...
local standing = redis.call('GET', KEYS[1])
if standing and tonumber(cjson.decode(standing).at_ms) > tonumber(ARGV[2]) then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[3])
redis.call('DEL', KEYS[2], KEYS[3])
for i = 4, #ARGV, 2 do redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1]) end
redis.call('EXPIRE', KEYS[2], ARGV[3])
return 1
