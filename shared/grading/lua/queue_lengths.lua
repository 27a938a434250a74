-- How long the queue of probes is. KEYS: 1 urgent, 2 due, 3 leases, 4 changed
-- Answer: urgent, waiting, due by now, leased, how late the stalest is (ms), marks that wait for the listing run
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local late = 0
for n = 1, 2 do
  local first = redis.call('ZRANGE', KEYS[n], 0, 0, 'WITHSCORES')
  if first[2] then late = math.max(late, now - tonumber(first[2])) end
end
return {
  redis.call('ZCARD', KEYS[1]),
  redis.call('ZCARD', KEYS[2]),
  redis.call('ZCOUNT', KEYS[2], '-inf', now),
  redis.call('ZCARD', KEYS[3]),
  late,
  redis.call('ZCOUNT', KEYS[4], '-inf', now),
}
