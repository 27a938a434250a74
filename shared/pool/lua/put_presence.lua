-- Devices are on a relay. The relay that a device came to last wins, but a stranger's never against the owner's.
-- Answer: for each {1 if written, generation that is revoked up to, the same of its account}
-- KEYS: presences. What is only read is computed, so that a relay needs no right to write it.
-- ARGV: 1 ttl s, 2 relay id, 3 how many arguments a device has, then for each: connected at ms, generation of its token,
--       the same of its account, key of the revoked generation, the same of its account, what pins call it (its presence
--       when pins call it by its id), 1 if held by its owner, device id, fields and values
local ttl, relay, size = ARGV[1], ARGV[2], tonumber(ARGV[3])

local function is_elsewhere(held, at)
  if not held[1] or held[1] == relay then return false end
  local owned = held[3] ~= '0' and '1' or '0'
  if owned ~= ARGV[at + 6] then return owned == '1' end
  return tonumber(held[2]) > tonumber(ARGV[at])
end

local function put(key, at)
  local revoked_key, account_key, pin = ARGV[at + 3], ARGV[at + 4], ARGV[at + 5]
  local held = redis.call('HMGET', key, 'relay_id', 'connected_at_ms', 'owned')
  local revoked = tonumber(redis.call('GET', revoked_key) or '0')
  local account = tonumber(redis.call('GET', account_key) or '0')
  if is_elsewhere(held, at) then return { 0, revoked, account } end
  if revoked > tonumber(ARGV[at + 1]) or account > tonumber(ARGV[at + 2]) then return { 0, revoked, account } end
  redis.call('HSET', key, unpack(ARGV, at + 8, at + size - 1))
  redis.call('EXPIRE', key, ttl)
  if pin ~= key then
    redis.call('HSET', key, 'pin', pin)
    redis.call('SET', pin, ARGV[at + 7], 'EX', ttl)
  end
  return { 1, revoked, account }
end

local out = {}
for n, key in ipairs(KEYS) do out[n] = put(key, 4 + (n - 1) * size) end
return out
