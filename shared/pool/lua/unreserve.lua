-- End a hold. KEYS: 1 reservation. ARGV: 1 prefix, 2 lease. Answer: 1, or 0 when there was none
local id = redis.call('HGET', KEYS[1], 'endpoint_id')
if not id then return 0 end
if redis.call('HGET', ARGV[1] .. 'ep:' .. id, 'reserved') == ARGV[2] then
  redis.call('HDEL', ARGV[1] .. 'ep:' .. id, 'reserved')
end
redis.call('ZREM', ARGV[1] .. 'ports:' .. id, ARGV[2])
return redis.call('DEL', KEYS[1])
