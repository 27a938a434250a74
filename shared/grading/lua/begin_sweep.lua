-- Count on to the next segment. KEYS: 1 counter. Answer: the count, the time (ms)
local clock = redis.call('TIME')
return { redis.call('INCR', KEYS[1]), clock[1] * 1000 + math.floor(clock[2] / 1000) }
