-- Forget one named session. KEYS: 1 index of the owner's sessions, 2 session row. ARGV: 1 "<key id>:<sid>"
-- Answer: 1 when it was there
local was = redis.call('ZREM', KEYS[1], ARGV[1])
return math.max(was, redis.call('DEL', KEYS[2]))
