-- A customer's tunnel failed at this exit: probe it next, once in a while; the more seldom, the more such probes have passed
-- since one failed. KEYS: 1 urgent, 2 probes that were asked for so ("count ms"). ARGV: 1 id, 2 for how long they are
-- remembered, s, 3.. waits between them, s. Answer: 1 when that put it to the front
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local count, at = string.match(redis.call('GET', KEYS[2]) or '', '^(%d+) (%d+)$')
count = tonumber(count or '0')
if count > 0 then
  local passed = now - tonumber(at)
  if passed >= 0 and passed < 1000 * tonumber(ARGV[math.min(2 + count, #ARGV)]) then return 0 end
end
redis.call('SET', KEYS[2], string.format('%d %.0f', count + 1, now), 'EX', tonumber(ARGV[2]))
redis.call('ZADD', KEYS[1], 'LT', now, ARGV[1])
return 1
