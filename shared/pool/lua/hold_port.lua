-- Choose a device for a dedicated port and hold it under a lease; a repeat answers the device that is held already, and
-- holds it until the time that it names.
-- KEYS: 1 reservation, 2 listed set of the country asked for. All other keys are computed and share the pool's slot.
-- ARGV: 1 prefix "{pool}:", 2 lease, 3 account, 4 expires at ms, 5 now ms, 6 private (1/0), 7 city, 8 carrier,
--       9 how many are looked at, 10 pak that the lease is for, 11 endpoint that is taken first, on sale or not ("" = any),
--       12 ip type ("" = any), 13 needs presence (1/0), 14 idle ms: a use holds it so long from then on (0 = until its end),
--       15 how long what is known of it stays after its end (ms), 16 percent of the country's devices that may be held alone
--       by then (100 = all), 17 only look, hold nothing (1/0), 18.. endpoints to leave out
-- Answer: endpoint id, or "" when none is free
local prefix, lease, now, private = ARGV[1], ARGV[2], tonumber(ARGV[5]), ARGV[6] == '1'
local held = redis.call('HGET', KEYS[1], 'endpoint_id')
local out = {}
for i = 18, #ARGV do out[ARGV[i]] = true end

local function hold(id)
  local ports, kept = prefix .. 'ports:' .. id, tonumber(ARGV[4]) + tonumber(ARGV[15])
  redis.call('HSET', KEYS[1], 'endpoint_id', id, 'account_id', ARGV[3], 'expires_at_ms', ARGV[4], 'pak', ARGV[10],
    'private', ARGV[6], 'idle_ms', ARGV[14], 'kept_ms', ARGV[15])
  redis.call('PEXPIREAT', KEYS[1], string.format('%d', kept))
  redis.call('ZADD', ports, ARGV[4], lease)
  redis.call('PEXPIREAT', ports, redis.call('ZRANGE', ports, -1, -1, 'WITHSCORES')[2])
  if private and redis.call('EXISTS', prefix .. 'ep:' .. id) == 1 then
    redis.call('HSET', prefix .. 'ep:' .. id, 'reserved', lease)
  end
  return id
end

local function taken(ep)
  if not ep.reserved or ep.reserved == lease then return false end
  local other = redis.call('HGET', prefix .. 'reserved:' .. ep.reserved, 'expires_at_ms')
  return other and tonumber(other) > now
end

-- What ran out may be somebody else's by now.
if held and not out[held] then
  local whose = private and redis.call('HGET', prefix .. 'ep:' .. held, 'reserved')
  if not taken({ reserved = whose }) then return hold(held) end
  out[held] = true
end

local function ports_on(id)
  local key, count = prefix .. 'ports:' .. id, 0
  redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
  return redis.call('ZCARD', key) - (redis.call('ZSCORE', key, lease) and 1 or 0)
end

-- A device of the peers is there while the relay that told of it lives.
local function is_there(id)
  if ARGV[13] ~= '1' then return true end
  local on = redis.call('HMGET', prefix .. 'live:' .. id, 'relay_id', 'relay_life')
  return on[1] and (not on[2] or on[2] == '' or redis.call('GET', prefix .. 'relay:' .. on[1]) == on[2])
end

local function fits(id, ep)
  return (ARGV[7] == '' or ep.city == ARGV[7]) and (ARGV[8] == '' or ep.carrier == ARGV[8]) and
    (ARGV[12] == '' or ep.ip_type == ARGV[12]) and redis.call('EXISTS', prefix .. 'pause:' .. id) == 0 and is_there(id)
end

-- Whether so many devices of a country are held alone that the others are everybody's: of two one may be, the last never.
local over = {}
local function is_over(country)
  if not private or tonumber(ARGV[16]) >= 100 then return false end
  if over[country] == nil then
    local all, alone = redis.call('SRANDMEMBER', prefix .. 'listed:' .. country, tonumber(ARGV[9])), 0
    for _, id in ipairs(all) do
      if taken({ reserved = redis.call('HGET', prefix .. 'ep:' .. id, 'reserved') or nil }) then alone = alone + 1 end
    end
    over[country] = alone >= math.max(math.floor(#all * tonumber(ARGV[16]) / 100), #all > 1 and 1 or 0)
  end
  return over[country]
end

-- The device with the fewest ports, of those the one with the fewest connections: who has it alone waits for nobody.
local best, fewest
local candidates = redis.call('SRANDMEMBER', KEYS[2], tonumber(ARGV[9]))
if ARGV[11] ~= '' then table.insert(candidates, 1, ARGV[11]) end
for _, id in ipairs(candidates) do
  local fields = redis.call('HMGET', prefix .. 'ep:' .. id, 'reserved', 'city', 'carrier', 'max_customers', 'ip_type',
    'country')
  local ep = { reserved = fields[1] or nil, city = fields[2] or '', carrier = fields[3] or '', ip_type = fields[5] or '' }
  if not out[id] and not taken(ep) and (id == ARGV[11] or (fits(id, ep) and not is_over(fields[6] or ''))) then
    local ports = ports_on(id)
    local most = private and 0 or (tonumber(fields[4] or '') or 1000) - 1
    local busy = ports * 1000 + tonumber(redis.call('HGET', prefix .. 'load:' .. id, '#') or '0')
    if ports <= most and (not best or busy < fewest) then
      best, fewest = id, busy
      if busy == 0 or id == ARGV[11] then break end
    end
  end
end
if not best or ARGV[17] == '1' then return best or '' end
if held and redis.call('HGET', prefix .. 'ep:' .. held, 'reserved') == lease then
  redis.call('HDEL', prefix .. 'ep:' .. held, 'reserved')
end
if held then redis.call('ZREM', prefix .. 'ports:' .. held, lease) end
redis.call('HDEL', KEYS[1], 'away_since_ms', 'stand_in')
return hold(best)
