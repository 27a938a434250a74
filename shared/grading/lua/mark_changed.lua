-- Something that a listing depends on changed: the next listing run looks at these, or a later one. A mark that stands gets
-- its new time, so that a run that is looking at it now does not settle it.
-- KEYS: 1 changed. ARGV: 1 in ms, 2.. what
local clock = redis.call('TIME')
local at = clock[1] * 1000 + math.floor(clock[2] / 1000) + tonumber(ARGV[1])
for i = 2, #ARGV do redis.call('ZADD', KEYS[1], at, ARGV[i]) end
return #ARGV - 1
