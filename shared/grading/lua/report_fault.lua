-- A customer's tunnel failed at this exit: probe it next, once in a while. KEYS: 1 queue, 2 debounce. ARGV: 1 id, 2 now, 3 ttl s
if not redis.call('SET', KEYS[2], '1', 'NX', 'EX', tonumber(ARGV[3])) then return 0 end
redis.call('ZADD', KEYS[1], tonumber(ARGV[2]), ARGV[1])
return 1
