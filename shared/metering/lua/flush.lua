-- Add a batch to the live counters, once. KEYS: 1 used, 2 cap, 3 sequences.
-- ARGV: 1 gateway, 2 sequence, then pairs: key id, bytes. Answer: per pair used, cap ("" = none)
local fresh = tonumber(redis.call('HGET', KEYS[3], ARGV[1]) or '-1') < tonumber(ARGV[2])
if fresh then redis.call('HSET', KEYS[3], ARGV[1], ARGV[2]) end
local out = {}
for i = 3, #ARGV, 2 do
  local used
  if fresh then used = redis.call('HINCRBY', KEYS[1], ARGV[i], ARGV[i + 1])
  else used = tonumber(redis.call('HGET', KEYS[1], ARGV[i]) or '0') end
  out[#out + 1] = used
  out[#out + 1] = redis.call('HGET', KEYS[2], ARGV[i]) or ''
end
return out
