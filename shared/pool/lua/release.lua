-- Give connections back. KEYS: 1 lease hash of the gateway. ARGV: 1 prefix, then triples: endpoint, pak, count
local prefix = ARGV[1]
for i = 2, #ARGV, 3 do
  local id, pak, count = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2])
  local field = id .. '|' .. pak
  local held = tonumber(redis.call('HGET', KEYS[1], field) or '0')
  local back = math.min(count, held)
  if back > 0 then
    if held == back then redis.call('HDEL', KEYS[1], field) else redis.call('HINCRBY', KEYS[1], field, -back) end
    local load = prefix .. 'load:' .. id
    local left = redis.call('HINCRBY', load, pak, -back) <= 0 and redis.call('HDEL', load, pak) or 0
    local total = redis.call('HINCRBY', load, '#', -back)
    if total <= 0 then redis.call('DEL', load) end
    local ep = redis.call('HMGET', prefix .. 'ep:' .. id, 'country', 'max_connections', 'max_customers')
    if ep[1] then
      local most, most_customers = tonumber(ep[2]), tonumber(ep[3])
      local customers = total > 0 and redis.call('HLEN', load) - 1 or 0
      local was_full = total + back >= most or customers + left >= most_customers
      if was_full and total < most and customers < most_customers then
        redis.call('SADD', prefix .. 'free:any', id)
        redis.call('SADD', prefix .. 'free:' .. ep[1], id)
      end
    end
  end
end
return #ARGV
