-- Take due devices and lease them: a prober that dies loses them when the lease is over.
-- KEYS: 1 queue. ARGV: 1 now ms, 2 lease ms, 3 bound
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, tonumber(ARGV[3]))
for _, id in ipairs(due) do redis.call('ZADD', KEYS[1], tonumber(ARGV[1]) + tonumber(ARGV[2]), id) end
return due
