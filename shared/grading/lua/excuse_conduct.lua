-- A probe failed: what customers met is explained, and nothing is counted for a while. Now and then only: an exit that fails
-- more probes than that, and is on sale all the same, is not explained by them. KEYS: 1 conduct.
-- ARGV: 1 for how long, s, 2 within which time excuses are counted, s, 3 how many there are
local excuses = KEYS[1] .. '#excuses' -- no device's name holds a #
local count = redis.call('HINCRBY', excuses, 'count', 1)
if count == 1 then redis.call('EXPIRE', excuses, tonumber(ARGV[2])) end
if count > tonumber(ARGV[3]) then return 0 end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'excused', 1)
redis.call('EXPIRE', KEYS[1], tonumber(ARGV[1]))
return 1
