-- Add what named sessions carried to their rows; a session that is over or closed is not made again.
-- KEYS: session rows. ARGV: 1 now ms, then per row requests, bytes up, bytes down, rotation
for i = 1, #KEYS do
  if redis.call('EXISTS', KEYS[i]) == 1 then
    redis.call('HINCRBY', KEYS[i], 'requests', ARGV[4 * i - 2])
    redis.call('HINCRBY', KEYS[i], 'up', ARGV[4 * i - 1])
    redis.call('HINCRBY', KEYS[i], 'down', ARGV[4 * i])
    redis.call('HSET', KEYS[i], 'rotation', ARGV[4 * i + 1], 'seen', ARGV[1])
  end
end
return #KEYS
