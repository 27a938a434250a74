-- What listed endpoints are and do now. KEYS: 1 set of listed endpoints. ARGV: 1 prefix "{pool}:", 2 needs presence (1/0), 3.. ids
-- Answer: per endpoint that is still listed: country, asn, isp, class, tier, open connections, online (1/0), paused (1/0),
--         held (1/0): by a lease alone, so that nobody else is routed to it
local prefix, out = ARGV[1], {}
local lives = {}
local function online(id)
  local on = redis.call('HMGET', prefix .. 'live:' .. id, 'relay_id', 'relay_life')
  if not on[1] then return 0 end
  if not on[2] or on[2] == '' then return 1 end
  if lives[on[1]] == nil then lives[on[1]] = redis.call('GET', prefix .. 'relay:' .. on[1]) end
  return lives[on[1]] == on[2] and 1 or 0
end
for i = 3, #ARGV do
  local id = ARGV[i]
  local ep = redis.call('HMGET', prefix .. 'ep:' .. id, 'country', 'asn', 'isp', 'ip_type', 'tier', 'reserved')
  if ep[1] and redis.call('SISMEMBER', KEYS[1], id) == 1 then
    for n = 1, 5 do out[#out + 1] = ep[n] or '' end
    out[#out + 1] = redis.call('HGET', prefix .. 'load:' .. id, '#') or '0'
    out[#out + 1] = ARGV[2] == '0' and 1 or online(id)
    out[#out + 1] = redis.call('EXISTS', prefix .. 'pause:' .. id)
    out[#out + 1] = ep[6] and redis.call('EXISTS', prefix .. 'reserved:' .. ep[6]) or 0
  end
end
return out
