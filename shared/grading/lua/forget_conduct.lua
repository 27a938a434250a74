-- What customers met at an exit is settled: its conduct is forgotten, and so is what of it each of them has in all, or whoever
-- said a word would be a weaker witness against others. KEYS: 1 conduct, 2.. what goes with it. ARGV: 1 prefix, 2 for how long nothing is counted, s
-- (0 = counted afresh at once), 3 the time within which failed probes are counted, s (0 = no probe failed), 4 how many excuse.
-- A probe failed: what customers met is explained. Now and then only: an exit that fails more probes than that, and is on sale
-- all the same, is not explained by them. Answer: 1 if it was forgotten
for i = 2, #KEYS do redis.call('DEL', KEYS[i]) end
local excused_s, within_s = tonumber(ARGV[2]), tonumber(ARGV[3])
if within_s > 0 then
  local excuses = KEYS[1] .. '#excuses' -- no device's name holds a #
  local count = redis.call('HINCRBY', excuses, 'count', 1)
  if count == 1 then redis.call('EXPIRE', excuses, within_s) end
  if count > tonumber(ARGV[4]) then return 0 end
end
local names = { ['s:'] = 'served', ['f:'] = 'failed' }
local fields = redis.call('HGETALL', KEYS[1])
for i = 1, #fields, 2 do
  local name = names[string.sub(fields[i], 1, 2)]
  if name then
    local whole = ARGV[1] .. 'customer:' .. string.sub(fields[i], 3)
    -- the customer's window may have begun after the exit's, or be over
    local left = tonumber(redis.call('HGET', whole, name) or '0')
    if left > 0 then redis.call('HINCRBY', whole, name, -math.min(left, tonumber(fields[i + 1]))) end
  end
end
redis.call('DEL', KEYS[1])
if excused_s > 0 then
  redis.call('HSET', KEYS[1], 'excused', 1)
  redis.call('EXPIRE', KEYS[1], excused_s)
end
return 1
