-- How holds of leases stand; one that is in use is held longer, and one whose device is away remembers since when.
-- KEYS: reservations. ARGV: 1 prefix, 2 now ms, 3 needs presence (1/0), 4.. their leases
-- Answer: for each {endpoint, end, last use (0 = none), since when its device is away (0 = it is there)}, or {} when it is lost
local prefix, now = ARGV[1], tonumber(ARGV[2])

local function is_there(id)
  if redis.call('EXISTS', prefix .. 'ep:' .. id) == 0 then return false end
  if ARGV[3] ~= '1' then return true end
  local on = redis.call('HMGET', prefix .. 'live:' .. id, 'relay_id', 'relay_life')
  return on[1] and (not on[2] or on[2] == '' or redis.call('GET', prefix .. 'relay:' .. on[1]) == on[2])
end

-- Whether a lease's key has a connection there, on a device that is not held by another lease.
local function carries(id, pak, lease)
  if not id or redis.call('HEXISTS', prefix .. 'load:' .. id, pak or '') == 0 then return false end
  local whose = redis.call('HGET', prefix .. 'ep:' .. id, 'reserved')
  return not whose or whose == lease
end

local out = {}
for n, key in ipairs(KEYS) do
  local held = redis.call('HMGET', key, 'endpoint_id', 'expires_at_ms', 'used_at_ms', 'away_since_ms', 'idle_ms',
    'kept_ms', 'pak', 'stand_in')
  local id = held[1]
  if not id then
    out[n] = {}
  else
    local ends, used, idle = tonumber(held[2]), tonumber(held[3] or '0'), tonumber(held[5] or '0')
    local stands_in = carries(held[8], held[7])
    if idle > 0 and (carries(id, held[7], ARGV[3 + n]) or stands_in) then
      used, ends = now, math.max(ends, now + idle)
      redis.call('HSET', key, 'used_at_ms', string.format('%d', used), 'expires_at_ms', string.format('%d', ends))
      redis.call('PEXPIREAT', key, string.format('%d', ends + tonumber(held[6] or '0')))
      redis.call('ZADD', prefix .. 'ports:' .. id, string.format('%d', ends), ARGV[3 + n])
      redis.call('PEXPIREAT', prefix .. 'ports:' .. id,
        redis.call('ZRANGE', prefix .. 'ports:' .. id, -1, -1, 'WITHSCORES')[2])
    end
    local away = 0
    if is_there(id) then
      redis.call('HDEL', key, 'away_since_ms')
    else
      redis.call('HSETNX', key, 'away_since_ms', ARGV[2])
      away = tonumber(held[4] or ARGV[2])
    end
    if away == 0 or not stands_in then redis.call('HDEL', key, 'stand_in') end
    out[n] = { id, ends, used, away }
  end
end
return out
