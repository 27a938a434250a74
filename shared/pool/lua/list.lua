-- Put an endpoint on sale or refresh its facts. KEYS: 1 its row. ARGV: 1 prefix, 2 id, 3.. fields and values of the row
local prefix, id = ARGV[1], ARGV[2]
local before = redis.call('HGET', KEYS[1], 'country')
local fields = {}
local country, connections, customers
for i = 3, #ARGV, 2 do
  fields[#fields + 1] = ARGV[i]
  fields[#fields + 1] = ARGV[i + 1]
  if ARGV[i] == 'country' then country = ARGV[i + 1] end
  if ARGV[i] == 'max_connections' then connections = tonumber(ARGV[i + 1]) end
  if ARGV[i] == 'max_customers' then customers = tonumber(ARGV[i + 1]) end
end
if before and before ~= country then
  redis.call('SREM', prefix .. 'listed:' .. before, id)
  redis.call('SREM', prefix .. 'free:' .. before, id)
end
redis.call('HSET', KEYS[1], unpack(fields))
redis.call('SADD', prefix .. 'countries', country)
redis.call('SADD', prefix .. 'listed:any', id)
redis.call('SADD', prefix .. 'listed:' .. country, id)
local load = prefix .. 'load:' .. id
local total = tonumber(redis.call('HGET', load, '#') or '0')
if total < connections and math.max(redis.call('HLEN', load) - 1, 0) < customers then
  redis.call('SADD', prefix .. 'free:any', id)
  redis.call('SADD', prefix .. 'free:' .. country, id)
end
return before and 0 or 1
