-- The circuit breaker of an endpoint, shared by all gateways. Each time that it opens it stays open twice as long; a passed
-- probe closes it and forgets. KEYS: 1 pause, 2 breaker (hash). ARGV: 1 pause s, 2 longest pause s, 3 memory s
-- Answer: seconds for which it is open now
local left = redis.call('TTL', KEYS[1])
if left > 0 and redis.call('EXISTS', KEYS[2]) == 1 then return left end
local trips = redis.call('HINCRBY', KEYS[2], 'trips', 1)
local pause = math.min(tonumber(ARGV[1]) * 2 ^ math.min(trips - 1, 10), tonumber(ARGV[2]))
redis.call('EXPIRE', KEYS[2], tonumber(ARGV[3]) + pause)
redis.call('SET', KEYS[1], 'breaker', 'EX', string.format('%d', math.max(pause, left)))
return math.max(pause, left)
