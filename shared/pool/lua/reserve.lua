-- Hold an endpoint for one account under a lease. Answer: 1, or 0 when another lease has it.
-- KEYS: 1 reservation, 2 row of the endpoint. ARGV: 1 prefix, 2 lease, 3 endpoint, 4 account, 5 expires at ms, 6 now ms,
--       7 private: nobody else is routed to it (1/0)
local prefix, lease, id = ARGV[1], ARGV[2], ARGV[3]
local held = redis.call('HMGET', KEYS[2], 'reserved', 'country')
if held[1] and held[1] ~= '' and held[1] ~= lease then
  local other = redis.call('HGET', prefix .. 'reserved:' .. held[1], 'expires_at_ms')
  if other and tonumber(other) > tonumber(ARGV[6]) then return 0 end
end
local before = redis.call('HGET', KEYS[1], 'endpoint_id')
if before and before ~= id and redis.call('HGET', prefix .. 'ep:' .. before, 'reserved') == lease then
  redis.call('HDEL', prefix .. 'ep:' .. before, 'reserved')
end
redis.call('HSET', KEYS[1], 'endpoint_id', id, 'account_id', ARGV[4], 'expires_at_ms', ARGV[5])
redis.call('PEXPIREAT', KEYS[1], ARGV[5])
if ARGV[7] == '1' and held[2] then redis.call('HSET', KEYS[2], 'reserved', lease) end
return 1
