-- Facts of listed endpoints of one country, at most ARGV[2]. KEYS: 1 listed set. ARGV: 1 prefix, 2 bound
local out = {}
for i, id in ipairs(redis.call('SRANDMEMBER', KEYS[1], tonumber(ARGV[2]))) do
  out[i] = redis.call('HMGET', ARGV[1] .. 'ep:' .. id, 'asn', 'isp', 'ip_type')
end
return out
