-- Remember since when customers have said enough against an exit. KEYS: 1 conduct. ARGV: 1 how long that has to stand, ms
-- Answer: 1 if it has stood so long
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
redis.call('HSETNX', KEYS[1], 'accused', now)
return now - tonumber(redis.call('HGET', KEYS[1], 'accused')) >= tonumber(ARGV[1]) and 1 or 0
