-- The part of a dead gateway's lease to give back, at most ARGV[1] entries, or nothing while it is alive.
-- KEYS: 1 lease hash, 2 heartbeat. ARGV: 1 bound
if redis.call('EXISTS', KEYS[2]) == 1 then return {} end
local entries = redis.call('HGETALL', KEYS[1])
local out = {}
for i = 1, math.min(#entries, tonumber(ARGV[1]) * 2) do out[i] = entries[i] end
return out
