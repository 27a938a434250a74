-- Count a hit in a fixed window that begins with its first one. KEYS: 1 counter. ARGV: 1 window s
-- Answer: hits so far, seconds until the window is over
local hits = redis.call('INCR', KEYS[1])
if hits == 1 then redis.call('EXPIRE', KEYS[1], ARGV[1]) end
return { hits, redis.call('TTL', KEYS[1]) }
