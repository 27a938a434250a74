-- What listed endpoints are and do now. KEYS: 1 set of listed endpoints. ARGV: 1 prefix "{pool}:", 2 needs presence (1/0), 3.. ids
-- Answer: per endpoint that is still listed: country, asn, isp, class, open connections, online (1/0)
local prefix, out = ARGV[1], {}
for i = 3, #ARGV do
  local id = ARGV[i]
  local ep = redis.call('HMGET', prefix .. 'ep:' .. id, 'country', 'asn', 'isp', 'ip_type')
  if ep[1] and redis.call('SISMEMBER', KEYS[1], id) == 1 then
    local load = redis.call('HGET', prefix .. 'load:' .. id, '#') or '0'
    local online = ARGV[2] == '0' and 1 or redis.call('EXISTS', prefix .. 'live:' .. id)
    for n = 1, 4 do out[#out + 1] = ep[n] or '' end
    out[#out + 1] = load
    out[#out + 1] = online
  end
end
return out
