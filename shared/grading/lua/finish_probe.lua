-- A probe ended: give its lease back, set the next time, count its bytes. An earlier time that was asked for meanwhile stays.
-- A lease that was taken over by another prober is not this one's to give back.
-- KEYS: 1 urgent, 2 due, 3 leases, 4 bytes of the day (hash)
-- ARGV: 1 id, 2 end of the lease, 3 next in ms ("" = when it is asked for), 4 "1" urgent, 5 bytes, 6 life of the day s
-- Answer: {1 if the lease was its own, bytes of the day so far}
local spent = redis.call('HINCRBY', KEYS[4], ARGV[1], ARGV[5])
redis.call('EXPIRE', KEYS[4], ARGV[6])
local held = redis.call('ZSCORE', KEYS[3], ARGV[1])
if not held or tonumber(held) ~= tonumber(ARGV[2]) then return { 0, spent } end
redis.call('ZREM', KEYS[3], ARGV[1])
if ARGV[3] ~= '' then
  local clock = redis.call('TIME')
  local at = clock[1] * 1000 + math.floor(clock[2] / 1000) + tonumber(ARGV[3])
  redis.call('ZADD', ARGV[4] == '1' and KEYS[1] or KEYS[2], 'LT', at, ARGV[1])
end
return { 1, spent }
