-- A target was not reached through an exit and was through another: the exit's fault only when several hosts of several owners
-- say so within a while. KEYS: 1 who and what failed (set of o:<owner> and h:<host>)
-- ARGV: 1 memory s, 2 owner, 3 owners that are enough, 4 host, 5 hosts that are. Answer: 1 when it is enough, and forgotten
local function enough(kind, name, needed)
  local count = 0
  for _, member in ipairs(redis.call('SMEMBERS', KEYS[1])) do
    if string.sub(member, 1, 2) == kind then count = count + 1 end
  end
  if count < needed then count = count + redis.call('SADD', KEYS[1], kind .. name) end
  return count >= needed
end

local owners, hosts = enough('o:', ARGV[2], tonumber(ARGV[3])), enough('h:', ARGV[4], tonumber(ARGV[5]))
redis.call('EXPIRE', KEYS[1], ARGV[1])
if not (owners and hosts) then return 0 end
redis.call('DEL', KEYS[1])
return 1
