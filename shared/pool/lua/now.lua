-- The server's time, by which derivations of all instances are ordered. KEYS: 1 any key of the slot. Answer: ms
local time = redis.call('TIME')
return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
