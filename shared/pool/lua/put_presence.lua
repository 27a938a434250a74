-- Devices are on a relay. The relay that a device came to last wins.
-- Answer: for each {1 if written, generation that is revoked up to, the same of its account}
-- KEYS: for each 1 presence, 2 revoked generation, 3 revoked generation of its account, 4 what pins call it (its presence
--       again when pins call it by its id)
-- ARGV: 1 ttl s, 2 relay id, 3 how many arguments a device has, then for each: connected at ms, generation of its token,
--       the same of its account, device id, fields and values
local ttl, relay, size = ARGV[1], ARGV[2], tonumber(ARGV[3])

local function put(key, revoked_key, account_key, pin, at)
  local held = redis.call('HMGET', key, 'relay_id', 'connected_at_ms')
  local revoked = tonumber(redis.call('GET', revoked_key) or '0')
  local account = tonumber(redis.call('GET', account_key) or '0')
  if held[1] and held[1] ~= relay and tonumber(held[2]) > tonumber(ARGV[at]) then return { 0, revoked, account } end
  if revoked > tonumber(ARGV[at + 1]) or account > tonumber(ARGV[at + 2]) then return { 0, revoked, account } end
  redis.call('HSET', key, unpack(ARGV, at + 4, at + size - 1))
  redis.call('EXPIRE', key, ttl)
  if pin ~= key then
    redis.call('HSET', key, 'pin', pin)
    redis.call('SET', pin, ARGV[at + 3], 'EX', ttl)
  end
  return { 1, revoked, account }
end

local out = {}
for n = 1, #KEYS / 4 do
  local k = 4 * n - 3
  out[n] = put(KEYS[k], KEYS[k + 1], KEYS[k + 2], KEYS[k + 3], 4 + (n - 1) * size)
end
return out
