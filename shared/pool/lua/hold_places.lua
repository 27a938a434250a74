-- Places for one owner's connections, leased to gateways; a lease that is not renewed ends by itself.
-- KEYS: 1 hash gateway -> "<places> <end, ms>"
-- ARGV: 1 gateway, 2 how many it needs, 3 how many of them are open, 4 most of all gateways together, 5 how many more it
--       may have while less than a fifth of all is used, 6 life of a lease ms
-- Answer: how many it has now
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local needed, open, most, spare = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local others = 0
local leases = redis.call('HGETALL', KEYS[1])
for i = 1, #leases, 2 do
  local places, ends = string.match(leases[i + 1], '^(%d+) (%d+)$')
  if tonumber(ends) <= now then
    redis.call('HDEL', KEYS[1], leases[i])
  elseif leases[i] ~= ARGV[1] then
    others = others + tonumber(places)
  end
end
local has = math.min(needed, most - others)
if others + needed + spare <= most / 5 then has = needed + spare end
has = math.max(has, open) -- what is open is open, whatever this server has lost
if has > 0 then
  redis.call('HSET', KEYS[1], ARGV[1], string.format('%d %d', has, now + tonumber(ARGV[6])))
  redis.call('PEXPIRE', KEYS[1], ARGV[6])
else
  redis.call('HDEL', KEYS[1], ARGV[1])
end
return has
