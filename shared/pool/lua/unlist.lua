-- Take an endpoint off sale. KEYS: 1 its row. ARGV: 1 prefix, 2 id
local prefix, id = ARGV[1], ARGV[2]
local country = redis.call('HGET', KEYS[1], 'country')
if not country then return 0 end
redis.call('DEL', KEYS[1])
for _, name in ipairs({ 'listed:any', 'listed:' .. country, 'free:any', 'free:' .. country }) do
  redis.call('SREM', prefix .. name, id)
end
return 1
