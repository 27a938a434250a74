-- Choose one endpoint of a pool and hold one connection on it, atomically.
-- KEYS: 1 free set of the country asked for, 2 session row (or the free set again when there is no session),
--       3 lease hash of this gateway. All other keys are computed from the pool's prefix and so share its hash slot.
-- ARGV: 1 prefix "{pool}:", 2 pak, 3 sid ("" = none), 4 now ms, 5 session ttl s, 6 rotation window ms (0 = never),
--       7 needs presence (1/0), 8 ip type, 9 asn, 10 isp, 11 carrier, 12 carrier is hard (1/0), 13 country ("" = any),
--       14 session must keep its device (1/0), 15 pinned endpoint ("" = none), 16.. endpoints to leave out
-- Answer: {endpoint, fields of its row, fields of its presence, reused (1/0)} or {false, listed count}
local prefix, pak, sid, now = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local window, presence_needed = tonumber(ARGV[6]), ARGV[7] == '1'
local excluded = {}
for i = 16, #ARGV do excluded[ARGV[i]] = true end

local function row(id)
  local fields = redis.call('HGETALL', prefix .. 'ep:' .. id)
  if #fields == 0 then return nil end
  local map = {}
  for i = 1, #fields, 2 do map[fields[i]] = fields[i + 1] end
  return map, fields
end

local function matches(ep, with_carrier)
  if ARGV[8] ~= '' and ep.ip_type ~= ARGV[8] then return false end
  if ARGV[9] ~= '' and ep.asn ~= ARGV[9] then return false end
  if ARGV[10] ~= '' and not string.find(ep.isp_slug, ARGV[10], 1, true) then return false end
  if ARGV[13] ~= '' and ep.country ~= ARGV[13] then return false end
  if with_carrier and ARGV[11] ~= '' and ep.carrier ~= ARGV[11] then return false end
  return true
end

local function room(id, ep)
  local load = prefix .. 'load:' .. id
  local total = tonumber(redis.call('HGET', load, '#') or '0')
  if total >= tonumber(ep.max_connections) then return nil end
  if redis.call('HEXISTS', load, pak) == 0 then
    local customers = redis.call('HLEN', load) - (total > 0 and 1 or 0)
    if customers >= tonumber(ep.max_customers) then return nil end
  end
  return total
end

local function usable(id, with_carrier)
  if excluded[id] then return nil end
  local ep, fields = row(id)
  if not ep or not matches(ep, with_carrier) then return nil end
  if redis.call('EXISTS', prefix .. 'pause:' .. id) == 1 then return nil end
  local live = {}
  if presence_needed then
    live = redis.call('HGETALL', prefix .. 'live:' .. id)
    if #live == 0 then return nil end
  end
  local total = room(id, ep)
  if not total then return nil end
  return { id = id, ep = ep, fields = fields, live = live, total = total }
end

local function take(choice, reused)
  local id, ep = choice.id, choice.ep
  local load = prefix .. 'load:' .. id
  redis.call('HINCRBY', load, '#', 1)
  redis.call('HINCRBY', load, pak, 1)
  redis.call('HINCRBY', KEYS[3], id .. '|' .. pak, 1)
  local customers = redis.call('HLEN', load) - 1
  if choice.total + 1 >= tonumber(ep.max_connections) or customers >= tonumber(ep.max_customers) then
    redis.call('SREM', prefix .. 'free:any', id)
    redis.call('SREM', prefix .. 'free:' .. ep.country, id)
  end
  return { id, choice.fields, choice.live, reused }
end

local function least_loaded(count, with_carrier)
  local best
  for _, id in ipairs(redis.call('SRANDMEMBER', KEYS[1], count)) do
    local choice = usable(id, with_carrier)
    if choice and (not best or choice.total < best.total) then best = choice end
    if best and best.total == 0 then break end
  end
  return best
end

if ARGV[15] ~= '' then
  local choice = usable(ARGV[15], false)
  if choice then return take(choice, 0) end
  return { false, 0 }
end

local session = sid ~= '' and redis.call('HMGET', KEYS[2], 'endpoint', 'picked') or { false, false }
if session[1] and (window == 0 or now - tonumber(session[2]) < window) then
  local choice = usable(session[1], false)
  if choice then
    redis.call('HSET', KEYS[2], 'seen', now)
    return take(choice, 1)
  end
  if ARGV[14] == '1' then return { false, redis.call('SCARD', KEYS[1]) } end
elseif session[1] then
  -- the window is over: the next device must be another one where there is another one
  excluded[session[1]] = true
end

-- A negative count draws with repetition, in random order; a positive one gives a small set in its stored order.
local best = least_loaded(-8, true) or least_loaded(256, true)
if not best and ARGV[11] ~= '' and ARGV[12] == '0' then best = least_loaded(256, false) end
if not best and session[1] then
  excluded[session[1]] = nil
  best = least_loaded(256, false)
end
if not best then return { false, redis.call('SCARD', KEYS[1]) } end
if sid ~= '' then
  local created = redis.call('EXISTS', KEYS[2]) == 0
  redis.call('HSET', KEYS[2], 'endpoint', best.id, 'picked', now, 'seen', now)
  if created then
    redis.call('HSET', KEYS[2], 'created', now)
    redis.call('EXPIRE', KEYS[2], tonumber(ARGV[5]))
  end
end
return take(best, 0)
