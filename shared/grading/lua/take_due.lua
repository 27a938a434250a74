-- Take due devices, urgent ones first, the stalest of each first, and lease them. A prober that dies loses its leases when
-- they are over. A device that is leased is taken by nobody else, whatever else is asked of it meanwhile. Nothing is urgent on
-- the line of an owner whose budget of the day is spent: such a device is probed when it is due, and customers' words about it
-- ask for a probe, and take it off sale until that has spoken, as seldom as about one that passes again and again.
-- KEYS: 1 urgent, 2 due, 3 leases, 4 bytes of the day (hash). ARGV: 1 lease ms, 2 bound, 3 budget of a day, bytes,
--       4 prefix of probes that were asked for, 5 for how long they are remembered, s, 6 how many make the longest wait
-- Answer: end of the leases (ms), how many urgent ones, then ids
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local ends, bound, budget = now + tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
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
      local leased_now = redis.call('ZSCORE', KEYS[3], id)
      if not urgent and not leased_now and tonumber(redis.call('HGET', KEYS[4], id) or '0') >= budget then
        redis.call('ZREM', KEYS[1], id)
        redis.call('ZADD', KEYS[2], 'NX', now, id)
        redis.call('SET', ARGV[4] .. id, string.format('%d %.0f', ARGV[6], now), 'EX', tonumber(ARGV[5]))
      elseif #out < bound and not leased_now then
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
