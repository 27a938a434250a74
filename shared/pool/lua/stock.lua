-- Listed endpoints per country. KEYS: 1 the set of countries. ARGV: 1 prefix
local out = {}
for _, country in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local count = redis.call('SCARD', ARGV[1] .. 'listed:' .. country)
  if count > 0 then
    out[#out + 1] = country
    out[#out + 1] = count
  end
end
return out
