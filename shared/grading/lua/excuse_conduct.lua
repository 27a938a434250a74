-- A probe failed: what customers met is explained, and nothing is counted for a while. KEYS: 1 conduct. ARGV: 1 for how long, s
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'excused', 1)
redis.call('EXPIRE', KEYS[1], tonumber(ARGV[1]))
return 1
