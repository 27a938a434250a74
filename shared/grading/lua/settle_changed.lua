-- What was looked at is settled, unless it changed again since. KEYS: 1 changed. ARGV: what, when, ...
local settled = 0
for i = 1, #ARGV, 2 do
  local at = redis.call('ZSCORE', KEYS[1], ARGV[i])
  if at and tonumber(at) == tonumber(ARGV[i + 1]) then settled = settled + redis.call('ZREM', KEYS[1], ARGV[i]) end
end
return settled
