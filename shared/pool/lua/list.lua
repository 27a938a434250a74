-- Put endpoints on sale or refresh their facts. KEYS: their rows.
-- ARGV: 1 prefix, 2 how many fields a row has, then their names, then for each endpoint its id and its values
-- Answer: for each endpoint 1 if it was not on sale, else 0
local prefix, width = ARGV[1], tonumber(ARGV[2])
local out = {}
for n, key in ipairs(KEYS) do
  local base = 2 + width + (n - 1) * (width + 1)
  local id = ARGV[base + 1]
  local before = redis.call('HGET', key, 'country')
  local fields, row = {}, {}
  for i = 1, width do
    fields[#fields + 1] = ARGV[2 + i]
    fields[#fields + 1] = ARGV[base + 1 + i]
    row[ARGV[2 + i]] = ARGV[base + 1 + i]
  end
  if before and before ~= row.country then
    redis.call('SREM', prefix .. 'listed:' .. before, id)
    redis.call('SREM', prefix .. 'free:' .. before, id)
  end
  redis.call('HSET', key, unpack(fields))
  if not before then -- who holds a device alone still does when it comes back on sale
    for _, lease in ipairs(redis.call('ZRANGE', prefix .. 'ports:' .. id, 0, -1)) do
      local held = redis.call('HMGET', prefix .. 'reserved:' .. lease, 'endpoint_id', 'private')
      if held[1] == id and held[2] == '1' then redis.call('HSET', key, 'reserved', lease) end
    end
  end
  redis.call('SADD', prefix .. 'countries', row.country)
  redis.call('SADD', prefix .. 'listed:any', id)
  redis.call('SADD', prefix .. 'listed:' .. row.country, id)
  local load = prefix .. 'load:' .. id
  local total = tonumber(redis.call('HGET', load, '#') or '0')
  local customers = math.max(redis.call('HLEN', load) - 1, 0)
  if total < tonumber(row.max_connections) and customers < tonumber(row.max_customers) then
    redis.call('SADD', prefix .. 'free:any', id)
    redis.call('SADD', prefix .. 'free:' .. row.country, id)
  end
  out[n] = before and 0 or 1
end
return out
