-- A relay lives. KEYS: 1 heartbeat. ARGV: 1 its life, 2 ttl ms. Answer: 1 when the heartbeat stood with this life before
local before = redis.call('GET', KEYS[1])
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return before == ARGV[1] and 1 or 0
