-- Take endpoints off sale. KEYS: their rows. ARGV: 1 prefix, 2.. their ids. Answer: for each 1 if it was on sale, else 0
local prefix, out = ARGV[1], {}
for n, key in ipairs(KEYS) do
  local id = ARGV[n + 1]
  local country = redis.call('HGET', key, 'country')
  redis.call('DEL', key)
  for _, place in ipairs({ 'any', country or 'any' }) do
    redis.call('SREM', prefix .. 'listed:' .. place, id)
    redis.call('SREM', prefix .. 'free:' .. place, id)
  end
  out[n] = country and 1 or 0
end
return out
