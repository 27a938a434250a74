-- The part of a dead gateway's lease to give back, at most ARGV[1] entries, or nothing while it is alive. One that has
-- nothing left is forgotten; were it alive after all, its next beat would name it again.
-- KEYS: 1 lease hash, 2 heartbeat, 3 set of gateways. ARGV: 1 bound, 2 gateway
if redis.call('EXISTS', KEYS[2]) == 1 then return {} end
local entries = redis.call('HGETALL', KEYS[1])
if #entries == 0 then redis.call('SREM', KEYS[3], ARGV[2]) end
local out = {}
for i = 1, math.min(#entries, tonumber(ARGV[1]) * 2) do out[i] = entries[i] end
return out
