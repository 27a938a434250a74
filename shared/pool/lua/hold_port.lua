-- Choose a device for a dedicated port and hold it under a lease; a repeat answers the device that is held already, and
-- holds it until the time that it names.
-- KEYS: 1 reservation, 2 listed set of the country asked for. All other keys are computed and share the pool's slot.
-- ARGV: 1 prefix "{pool}:", 2 lease, 3 account, 4 expires at ms, 5 now ms, 6 private (1/0), 7 city, 8 carrier,
--       9 how many are looked at, 10 pak that the lease is for, 11 endpoint that is taken first ("" = any),
--       12.. endpoints to leave out
-- Answer: endpoint id, or "" when none is free
local prefix, lease, now, private = ARGV[1], ARGV[2], tonumber(ARGV[5]), ARGV[6] == '1'
local held = redis.call('HGET', KEYS[1], 'endpoint_id')
local out = {}
for i = 12, #ARGV do out[ARGV[i]] = true end
if held and not out[held] then
  redis.call('HSET', KEYS[1], 'expires_at_ms', ARGV[4], 'pak', ARGV[10])
  redis.call('PEXPIREAT', KEYS[1], ARGV[4])
  redis.call('ZADD', prefix .. 'ports:' .. held, ARGV[4], lease)
  redis.call('PEXPIREAT', prefix .. 'ports:' .. held, ARGV[4])
  -- A row that was taken off sale and put back has forgotten who holds it.
  if private and redis.call('EXISTS', prefix .. 'ep:' .. held) == 1 then
    redis.call('HSET', prefix .. 'ep:' .. held, 'reserved', lease)
  end
  return held
end

local function taken(ep)
  if not ep.reserved or ep.reserved == lease then return false end
  local other = redis.call('HGET', prefix .. 'reserved:' .. ep.reserved, 'expires_at_ms')
  return other and tonumber(other) > now
end

local function ports_on(id)
  local key, count = prefix .. 'ports:' .. id, 0
  redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
  return redis.call('ZCARD', key) - (redis.call('ZSCORE', key, lease) and 1 or 0)
end

local best, fewest
local candidates = redis.call('SRANDMEMBER', KEYS[2], tonumber(ARGV[9]))
if ARGV[11] ~= '' and redis.call('SISMEMBER', KEYS[2], ARGV[11]) == 1 then table.insert(candidates, 1, ARGV[11]) end
for _, id in ipairs(candidates) do
  local fields = redis.call('HMGET', prefix .. 'ep:' .. id, 'reserved', 'city', 'carrier', 'max_customers')
  local ep = { reserved = fields[1] or nil, city = fields[2] or '', carrier = fields[3] or '' }
  local fits = (ARGV[7] == '' or ep.city == ARGV[7]) and (ARGV[8] == '' or ep.carrier == ARGV[8])
  if fits and not out[id] and not taken(ep) and redis.call('EXISTS', prefix .. 'pause:' .. id) == 0 then
    local ports = ports_on(id)
    local most = private and 0 or tonumber(fields[4] or '1') - 1
    if ports <= most and (not best or ports < fewest) then
      best, fewest = id, ports
      if ports == 0 or id == ARGV[11] then break end
    end
  end
end
if not best then return '' end
if held and redis.call('HGET', prefix .. 'ep:' .. held, 'reserved') == lease then
  redis.call('HDEL', prefix .. 'ep:' .. held, 'reserved')
end
if held then redis.call('ZREM', prefix .. 'ports:' .. held, lease) end
redis.call('HSET', KEYS[1], 'endpoint_id', best, 'account_id', ARGV[3], 'expires_at_ms', ARGV[4],
  'pak', ARGV[10])
redis.call('PEXPIREAT', KEYS[1], ARGV[4])
redis.call('ZADD', prefix .. 'ports:' .. best, ARGV[4], lease)
redis.call('PEXPIREAT', prefix .. 'ports:' .. best, ARGV[4])
if private then redis.call('HSET', prefix .. 'ep:' .. best, 'reserved', lease) end
return best
