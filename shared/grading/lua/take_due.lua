-- Take due devices, urgent ones first, the stalest of each first, and lease them. A prober that dies loses its leases when
-- they are over. A device that is leased is taken by nobody else, whatever else is asked of it meanwhile.
-- KEYS: 1 urgent, 2 due, 3 leases. ARGV: 1 lease ms, 2 bound. Answer: end of the leases (ms), how many urgent ones, then ids
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local ends, bound = now + tonumber(ARGV[1]), tonumber(ARGV[2])
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now, 'LIMIT', 0, bound)) do
  redis.call('ZREM', KEYS[3], id)
  redis.call('ZADD', KEYS[1], 'LT', now, id)
end
local out = {}
local urgent
for _, queue in ipairs({ KEYS[1], KEYS[2] }) do
  if #out < bound then
    local leased = redis.call('ZCARD', KEYS[3])
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', queue, '-inf', now, 'LIMIT', 0, bound + math.min(leased, 1000))) do
      if #out < bound and not redis.call('ZSCORE', KEYS[3], id) then
        redis.call('ZREM', KEYS[1], id)
        redis.call('ZREM', KEYS[2], id)
        redis.call('ZADD', KEYS[3], ends, id)
        out[#out + 1] = id
      end
    end
  end
  urgent = urgent or #out
end
return { string.format('%.0f', ends), urgent, unpack(out) }
