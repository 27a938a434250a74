-- Make sure that a key's live meter stands: used is at least what the truth says, the cap is what the truth says.
-- KEYS: 1 used, 2 cap. ARGV: 1 key id, 2 used, 3 cap ("" = none). Answer: used
local used = tonumber(redis.call('HGET', KEYS[1], ARGV[1]) or '0')
if used < tonumber(ARGV[2]) then
  used = tonumber(ARGV[2])
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
end
if ARGV[3] == '' then redis.call('HDEL', KEYS[2], ARGV[1]) else redis.call('HSET', KEYS[2], ARGV[1], ARGV[3]) end
return used
