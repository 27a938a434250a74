-- Add a cut's totals to the live counters, once, and lease each key's next bytes to this gateway.
-- A lease is what a gateway may carry before it asks again; what is leased to one is not leased to another. A gateway that
-- is alone with a key may have all of it, one of several a quarter of what is free.
-- KEYS: 1 used (field # = of all keys together), 2 cap, 3 sequences, 4.. lease hash per key (gateway -> "<bytes>:<until ms>").
-- ARGV: 1 gateway, 2 sequence (-1 = lease only), 3 least lease, 4 lease life ms, then per key:
--       id, bytes to add, bytes counted but not added yet, bytes wanted (-1 = leave leases alone)
-- Answer: per key used, cap ("" = none), lease (negative: so far others' leases are already overdrawn)
local gateway, sequence = ARGV[1], tonumber(ARGV[2])
local least, life = tonumber(ARGV[3]), tonumber(ARGV[4])
local fresh = sequence >= 0 and tonumber(redis.call('HGET', KEYS[3], gateway) or '-1') < sequence
if fresh then redis.call('HSET', KEYS[3], gateway, ARGV[2]) end
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

local function text(number) return string.format('%.0f', number) end

local function leased_to_others(key)
  local sum, count = 0, 0
  local held = redis.call('HGETALL', key)
  for i = 1, #held, 2 do
    local bytes, till = string.match(held[i + 1], '^(%d+):(%d+)$')
    if tonumber(till) <= now then redis.call('HDEL', key, held[i])
    elseif held[i] ~= gateway then sum, count = sum + tonumber(bytes), count + 1 end
  end
  return sum, count
end

local function lease(key, left, unreported, want)
  local leased, others = leased_to_others(key)
  local free = left - unreported - leased
  local grant = free
  if free > 0 and others == 0 then
    grant = math.min(want, free)
  elseif free > 0 then
    grant = math.min(want, math.max(math.floor(free / 4), math.min(free, least)))
  end
  local held = unreported + math.max(grant, 0)
  if held > 0 or want > 0 then -- who was given nothing still counts as one of several
    redis.call('HSET', key, gateway, text(held) .. ':' .. text(now + life))
    redis.call('PEXPIRE', key, life * 2)
  else
    redis.call('HDEL', key, gateway)
  end
  return grant
end

local out, sum = {}, 0
for i = 0, (#ARGV - 4) / 4 - 1 do
  local id, bytes = ARGV[5 + 4 * i], ARGV[6 + 4 * i]
  local unreported, want = tonumber(ARGV[7 + 4 * i]), tonumber(ARGV[8 + 4 * i])
  local used
  if fresh and bytes ~= '0' then
    used = redis.call('HINCRBY', KEYS[1], id, bytes)
    sum = sum + tonumber(bytes)
  else
    used = tonumber(redis.call('HGET', KEYS[1], id) or '0')
  end
  local cap = redis.call('HGET', KEYS[2], id)
  local grant = 0
  if cap and want >= 0 then grant = lease(KEYS[4 + i], tonumber(cap) - used, unreported, want) end
  out[#out + 1] = used
  out[#out + 1] = cap or ''
  out[#out + 1] = grant
end
if sum > 0 then redis.call('HINCRBY', KEYS[1], '#', text(sum)) end
return out
