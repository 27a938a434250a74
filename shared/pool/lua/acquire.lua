-- Choose one endpoint of a pool and hold one connection on it, atomically.
-- KEYS: 1 free set of the country asked for, 2 session row (or the free set again when there is no session),
--       3 lease hash of this gateway. All other keys are computed from the pool's prefix and so share its hash slot.
-- ARGV: 1 prefix "{pool}:", 2 pak, 3 sid ("" = none), 4 session ttl s, 5 rotation window ms (0 = never),
--       6 needs presence (1/0), 7 ip type, 8 asn, 9 isp, 10 carrier, 11 carrier is hard (1/0), 12 country ("" = any),
--       13 session must keep its device (1/0), 14 pin kind ("" = none), 15 pin id, 16 pin is strict (1/0), 17 city,
--       18 least stability (0 = any), 19 account, 20 whose sessions are counted together, 21 how many it may have,
--       22 whoever stands in for a session's lost device is in its country (1/0),
--       23 now ms, 24 the customer has many connections (1/0), 25.. endpoints to leave out, and relays, as "host:port" on
--       the mesh, whose devices are on none for who asks
-- Answer: {endpoint, what its row says, where it is (or nothing), how (0 fresh, 1 session, 2 pin, 3 instead of the pin),
--          how many sessions there are now if this began one, else 0}
--         or {false, listed count, why ("stock", "absent": on sale and on no relay now, "sessions", "lease")}
local TOLD = 12 -- so many facts of a row are answered
local DRAWN_FIRST, DRAWN_THEN, LOOKED_AT = -2, -6, 256
-- A negative count draws with repetition, in random order; a positive one gives a small set in its stored order.
local prefix, pak, sid, now = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[23])
local window, presence_needed, city = tonumber(ARGV[5]), ARGV[6] == '1', ARGV[17]
local least_stability, account = tonumber(ARGV[18]), ARGV[19]
local pin_kind, pin_id, pin_strict = ARGV[14], ARGV[15], ARGV[16] == '1'
local country, carrier, carrier_is_hard = ARGV[12], ARGV[10], ARGV[11] == '1'
local free = KEYS[1]
local lease = ''
local absent = 0
local crowded = false -- a device was left out for want of room alone
local stands_for -- a lease whose device is away: whoever carries for it is noted with it
local excluded = {}
for i = 25, #ARGV do excluded[ARGV[i]] = true end

local function endpoint(values)
  return { country = values[2], carrier = values[3] or '', asn = values[4], ip_type = values[6], city = values[8],
    stability = values[9] or '', max_connections = tonumber(values[13]), max_customers = tonumber(values[14]),
    isp_slug = values[15] or '', reserved = values[16], told = { unpack(values, 1, TOLD) } }
end

local function row(id)
  local values = redis.call('HMGET', prefix .. 'ep:' .. id, 'account_id', 'country', 'carrier', 'asn', 'isp', 'ip_type',
    'tier', 'city', 'stability', 'modem_host', 'modem_port', 'modem_credentials_sealed', -- these are told
    'max_connections', 'max_customers', 'isp_slug', 'reserved')
  return values[2] and endpoint(values)
end

-- A device is reached by the relay that told of it, while that one lives.
local function stands(live)
  local relay, life = live[1], live[2]
  return relay and (not life or life == '' or redis.call('GET', prefix .. 'relay:' .. relay) == life)
end

local function matches(ep, with_carrier)
  if ARGV[7] ~= '' and ep.ip_type ~= ARGV[7] then return false end
  if ARGV[8] ~= '' and ep.asn ~= ARGV[8] then return false end
  if ARGV[9] ~= '' and not string.find(ep.isp_slug, ARGV[9], 1, true) then return false end
  if country ~= '' and ep.country ~= country then return false end
  if with_carrier and carrier ~= '' and ep.carrier ~= carrier then return false end
  if least_stability > 0 and (tonumber(ep.stability) or 0) < least_stability then return false end
  return true
end

-- An owner's own device answers to its pin although it is not on sale, if its owner agreed to its serving. Where it comes
-- from is no proof of where it exits: its class is unknown.
local function unlisted(id)
  local live = redis.call('HMGET', prefix .. 'live:' .. id, 'account_id', 'country', 'asn', 'isp')
  if live[1] ~= account or redis.call('SISMEMBER', prefix .. 'may_serve', id) == 0 then return nil end
  return endpoint({ live[1], live[2], '', live[3], live[4], 'unknown', 'unknown', '', '', '', '0', '', '2', '1' })
end

-- Connections that an endpoint has now, and its customers with this one if it is new there (0 if not); nil when it is full.
-- A customer with many connections, while it is alone, leaves the last one to a newcomer if there may be newcomers.
local function room(id, ep, is_theirs)
  local load = prefix .. 'load:' .. id
  local held = redis.call('HMGET', load, '#', pak)
  local total = tonumber(held[1] or '0')
  if total >= ep.max_connections then return nil end
  if held[2] then
    local is_last = total + 1 == ep.max_connections and ep.max_customers > 1 and not is_theirs
    if is_last and ARGV[24] == '1' and tonumber(held[2]) == total then return nil end
    return total, 0
  end
  local customers = total > 0 and redis.call('HLEN', load) or 1 -- one field is the sum
  if customers > ep.max_customers then return nil end
  return total, customers
end

local function usable(id, with_carrier, pinned)
  if excluded[id] then return nil end
  local ep = row(id)
  if not ep and pinned == 'device' then ep = unlisted(id) end
  if not ep then return nil end
  if pinned then -- a pin chooses the device; country and IP type (what a key is locked to) still hold
    if country ~= '' and ep.country ~= country then return nil end
    if ARGV[7] ~= '' and ep.ip_type ~= ARGV[7] then return nil end
  elseif not matches(ep, with_carrier) then
    return nil
  end
  if ep.reserved and ep.reserved ~= lease and redis.call('EXISTS', prefix .. 'reserved:' .. ep.reserved) == 1 then
    return nil
  end
  if pinned ~= 'device' and redis.call('EXISTS', prefix .. 'pause:' .. id) == 1 then return nil end
  local live = {}
  if presence_needed then
    live = redis.call('HMGET', prefix .. 'live:' .. id, 'relay_id', 'relay_life', 'mesh_host', 'mesh_port', 'protocol', 'ip')
    if not stands(live) or excluded[(live[3] or '') .. ':' .. (live[4] or '')] then
      absent = absent + 1
      return nil
    end
  end
  local total, customers = room(id, ep, pinned == 'device' or (lease ~= '' and ep.reserved == lease))
  if not total then
    crowded = true
    return nil
  end
  return { id = id, ep = ep, live = live, total = total, customers = customers,
    near = city ~= '' and ep.city == city }
end

local function take(choice, reused, sessions)
  local id, ep = choice.id, choice.ep
  local load = prefix .. 'load:' .. id
  redis.call('HINCRBY', load, '#', 1)
  redis.call('HINCRBY', load, pak, 1)
  redis.call('HINCRBY', KEYS[3], id .. '|' .. pak, 1)
  if stands_for then redis.call('HSET', prefix .. 'reserved:' .. stands_for, 'stand_in', id) end
  if choice.total + 1 >= ep.max_connections or choice.customers >= ep.max_customers then
    redis.call('SREM', prefix .. 'free:any', id)
    redis.call('SREM', prefix .. 'free:' .. ep.country, id)
  end
  return { id, ep.told, choice.live, reused, sessions or 0 }
end

-- The least loaded of so many, the nearest first; `best` is what was found before.
local function least_loaded(count, with_carrier, best)
  for _, id in ipairs(redis.call('SRANDMEMBER', free, count)) do
    local choice = usable(id, with_carrier)
    if choice then
      local nearer = best and choice.near and not best.near
      local farther = best and best.near and not choice.near
      if not best or nearer or (not farther and choice.total < best.total) then best = choice end
      if best.total == 0 and (best.near or city == '') then break end
    end
  end
  return best
end

local function theirs(id)
  return redis.call('HGET', prefix .. 'ep:' .. id, 'account_id') == account or
    redis.call('HGET', prefix .. 'live:' .. id, 'account_id') == account
end

-- A use of a lease holds its device from now on for as long as it may be idle.
local function hold_longer(id, device, ends, kept)
  local key, ports = prefix .. 'reserved:' .. id, prefix .. 'ports:' .. device
  local until_ms = math.max(ends, tonumber(redis.call('HGET', key, 'expires_at_ms')))
  redis.call('HSET', key, 'used_at_ms', ARGV[23], 'expires_at_ms', string.format('%d', until_ms))
  redis.call('PEXPIREAT', key, string.format('%d', until_ms + kept))
  redis.call('ZADD', ports, string.format('%d', until_ms), id)
  redis.call('PEXPIREAT', ports, redis.call('ZRANGE', ports, -1, -1, 'WITHSCORES')[2])
end

-- Whether this key has a connection there, on a device that is not held by another lease.
local function carries(id, of_lease)
  if not id or redis.call('HEXISTS', prefix .. 'load:' .. id, pak) == 0 then return false end
  local whose = redis.call('HGET', prefix .. 'ep:' .. id, 'reserved')
  return not whose or whose == of_lease
end

local stood_in = 0
if pin_kind ~= '' then
  local wanted, used = pin_id, nil
  if pin_kind == 'lease' then
    local held = redis.call('HMGET', prefix .. 'reserved:' .. pin_id, 'account_id', 'endpoint_id', 'expires_at_ms',
      'pak', 'idle_ms', 'kept_ms', 'stand_in')
    -- A hold is one key's: keys of one account may belong to strangers.
    if held[1] ~= account or (held[4] and held[4] ~= pak) then return { false, 0, 'lease' } end
    local idle = tonumber(held[5] or '0')
    local in_use = idle > 0 and (carries(held[2], pin_id) or carries(held[7]))
    if tonumber(held[3]) <= now and not in_use then return { false, 0, 'lease' } end
    if idle > 0 then used = { ends = now + idle, kept = tonumber(held[6] or '0') } end
    wanted, lease = held[2], pin_id
  elseif pin_kind == 'port' and presence_needed then
    wanted = ''
  elseif pin_kind == 'device' and not theirs(wanted) then
    wanted = redis.call('GET', prefix .. 'pin:' .. account .. ':' .. pin_id) or ''
    if wanted ~= '' and not theirs(wanted) then wanted = '' end
  end
  local choice = wanted ~= '' and usable(wanted, false, pin_kind)
  if used and (choice or not pin_strict) then hold_longer(pin_id, wanted, used.ends, used.kept) end
  if choice then
    if used then redis.call('HDEL', prefix .. 'reserved:' .. pin_id, 'stand_in') end
    return take(choice, 2)
  end
  if pin_strict then return { false, redis.call('SCARD', KEYS[1]), absent > 0 and 'absent' or 'stock' } end
  stood_in, stands_for = 3, used and pin_id
end

local session = sid ~= '' and redis.call('HMGET', KEYS[2], 'endpoint', 'picked', 'country', 'carrier') or {}
local stays, before = false, nil
if session[1] and (window == 0 or now - tonumber(session[2]) < window) then
  crowded = false
  local choice = usable(session[1], false)
  if choice then
    redis.call('HSET', KEYS[2], 'seen', now)
    return take(choice, 1)
  end
  if ARGV[13] == '1' then return { false, redis.call('SCARD', KEYS[1]), absent > 0 and 'absent' or 'stock' } end
  stays = crowded -- a device that is full is not lost: this connection goes elsewhere, the session does not
  if country == '' and ARGV[22] == '1' and session[3] then
    country = session[3]
    free = prefix .. 'free:' .. country
  end
  if carrier == '' and carrier_is_hard then carrier = session[4] or '' end
elseif session[1] and not excluded[session[1]] then
  -- the window is over: the next device must be another one where there is another one
  before = session[1]
  excluded[before] = true
end

local sessions = prefix .. 'sessions:' .. ARGV[20]
if sid ~= '' and redis.call('EXISTS', KEYS[2]) == 0 then
  redis.call('ZREMRANGEBYSCORE', sessions, '-inf', now)
  if redis.call('ZCARD', sessions) >= tonumber(ARGV[21]) then return { false, 0, 'sessions' } end
end

local best
if city == '' then
  best = least_loaded(DRAWN_FIRST, true)
  if not best or best.total > 0 then best = least_loaded(DRAWN_THEN, true, best) end
end
best = best or least_loaded(LOOKED_AT, true)
if not best and carrier ~= '' and not carrier_is_hard then best = least_loaded(LOOKED_AT, false) end
if not best and before then
  excluded[before] = nil
  best = least_loaded(LOOKED_AT, carrier_is_hard)
end
if not best then return { false, redis.call('SCARD', KEYS[1]), absent > 0 and 'absent' or 'stock' } end
local count = 0
if sid ~= '' and not stays then
  local created = redis.call('EXISTS', KEYS[2]) == 0
  redis.call('HSET', KEYS[2], 'endpoint', best.id, 'picked', now, 'seen', now, 'country', best.ep.country,
    'carrier', best.ep.carrier)
  if created then
    local ttl = tonumber(ARGV[4])
    redis.call('HSET', KEYS[2], 'created', now)
    redis.call('EXPIRE', KEYS[2], ttl)
    redis.call('ZADD', sessions, now + ttl * 1000, pak .. ':' .. sid)
    redis.call('EXPIRE', sessions, 2592000)
    count = redis.call('ZCARD', sessions)
  end
end
return take(best, stood_in, count)
