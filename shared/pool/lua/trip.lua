-- The circuit breaker of an endpoint, shared by all gateways. Each time that it opens it stays open twice as long; a passed
-- probe closes it and forgets. KEYS: 1 pause, 2 breaker (hash), 3 targets that failed (set)
-- ARGV: 1 the one target that failed ("" = plainly the exit's fault), 2 targets that make it the exit's, 3 pause s,
--       4 longest pause s, 5 memory s
-- Answer: seconds for which it is open now, 0 when it is not
if ARGV[1] ~= '' then
  redis.call('SADD', KEYS[3], ARGV[1])
  redis.call('EXPIRE', KEYS[3], ARGV[5])
  if redis.call('SCARD', KEYS[3]) < tonumber(ARGV[2]) then return 0 end
  redis.call('DEL', KEYS[3])
end
local left = redis.call('TTL', KEYS[1])
if left > 0 and redis.call('EXISTS', KEYS[2]) == 1 then return left end
local trips = redis.call('HINCRBY', KEYS[2], 'trips', 1)
local pause = math.min(tonumber(ARGV[3]) * 2 ^ math.min(trips - 1, 10), tonumber(ARGV[4]))
redis.call('EXPIRE', KEYS[2], tonumber(ARGV[5]) + pause)
redis.call('SET', KEYS[1], 'breaker', 'EX', string.format('%d', math.max(pause, left)))
return math.max(pause, left)
