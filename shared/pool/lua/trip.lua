-- The circuit breaker of an endpoint, shared by all gateways. Each time that it opens it stays open twice as long; a passed
-- probe closes it and forgets. KEYS: 1 pause, 2 breaker (hash), 3 who and what failed (set of o:<owner> and h:<host>)
-- ARGV: 1 pause s, 2 longest pause s, 3 memory s, 4 owner ("" = plainly the exit's fault), 5 owners that make it the exit's,
--       6 host, 7 hosts that do
-- Answer: seconds for which it is open now, 0 when it is not
local function enough(kind, name, needed)
  local count = 0
  for _, member in ipairs(redis.call('SMEMBERS', KEYS[3])) do
    if string.sub(member, 1, 2) == kind then count = count + 1 end
  end
  if count < needed then count = count + redis.call('SADD', KEYS[3], kind .. name) end
  return count >= needed
end

if ARGV[4] ~= '' then
  local owners, hosts = enough('o:', ARGV[4], tonumber(ARGV[5])), enough('h:', ARGV[6], tonumber(ARGV[7]))
  redis.call('EXPIRE', KEYS[3], ARGV[3])
  if not (owners and hosts) then return 0 end
  redis.call('DEL', KEYS[3])
end
local left = redis.call('TTL', KEYS[1])
if left > 0 and redis.call('EXISTS', KEYS[2]) == 1 then return left end
local trips = redis.call('HINCRBY', KEYS[2], 'trips', 1)
local pause = math.min(tonumber(ARGV[1]) * 2 ^ math.min(trips - 1, 10), tonumber(ARGV[2]))
redis.call('EXPIRE', KEYS[2], tonumber(ARGV[3]) + pause)
redis.call('SET', KEYS[1], 'breaker', 'EX', string.format('%d', math.max(pause, left)))
return math.max(pause, left)
