-- Which devices are on a relay that lives now. KEYS: their presences. ARGV: 1 prefix
-- Answer: for each its fields and values, or nothing. A relay lives while its heartbeat stands with the life it began in.
local out = {}
for n, key in ipairs(KEYS) do
  local on = redis.call('HMGET', key, 'relay_id', 'relay_life')
  local lives = on[1] and (not on[2] or on[2] == '' or redis.call('GET', ARGV[1] .. 'relay:' .. on[1]) == on[2])
  out[n] = lives and redis.call('HGETALL', key) or {}
end
return out
