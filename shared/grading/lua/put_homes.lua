-- Replace the counts of a segment. KEYS: 1 hash. ARGV: 1 life s, 2.. pairs
redis.call('DEL', KEYS[1])
for i = 2, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('EXPIRE', KEYS[1], tonumber(ARGV[1]))
return (#ARGV - 1) / 2
