-- A customer's tunnel failed at this exit: probe it next, once in a while.
-- KEYS: 1 urgent, 2 debounce. ARGV: 1 id, 2 debounce s
if not redis.call('SET', KEYS[2], '1', 'NX', 'EX', tonumber(ARGV[2])) then return 0 end
local clock = redis.call('TIME')
redis.call('ZADD', KEYS[1], 'LT', clock[1] * 1000 + math.floor(clock[2] / 1000), ARGV[1])
return 1
