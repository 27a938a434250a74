-- Forget one named session, and leave word of it. KEYS: 1 index of the owner's sessions, 2 session row, 3 the word.
-- ARGV: 1 "<key id>:<sid>", 2 how long the word stands (s), 3 now ms. Answer: 1 when it was there
local was = redis.call('ZREM', KEYS[1], ARGV[1])
was = math.max(was, redis.call('DEL', KEYS[2]))
if was == 1 then redis.call('SET', KEYS[3], ARGV[3], 'EX', ARGV[2]) end
return was
