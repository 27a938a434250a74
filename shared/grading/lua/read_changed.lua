-- What changed, the oldest first. It stays until it is settled. KEYS: 1 changed. ARGV: 1 bound. Answer: what, when, ...
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'WITHSCORES', 'LIMIT', 0, tonumber(ARGV[1]))
