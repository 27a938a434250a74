-- How tunnels fared, as gateways tell it now and then. An exit is counted from the first one that it failed, for a window;
-- a customer is counted over all exits, because only who fares well elsewhere may speak against one. What its exit does not
-- count failed nobody: it was explained already, or there is no room, and it could not be forgotten with the rest.
-- KEYS: 1 changed, then for each row the conduct of its exit and what its customer has in all
-- ARGV: 1 window s, 2 customers failed that are worth a look, 3 most fields of an exit,
--       4.. id, customer, served, failed, targets that failed (comma-separated)
-- Answer: how many exits were marked for the listing run
local window, enough, most = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local marked = 0
for row = 1, (#KEYS - 1) / 2 do
  local exit, whole, i = KEYS[2 * row], KEYS[2 * row + 1], 5 * row - 1
  local id, customer, served, failed = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2]), tonumber(ARGV[i + 3])
  local size = redis.call('HLEN', exit)
  local excused = redis.call('HEXISTS', exit, 'excused') == 1
  local counted = not excused and (failed > 0 or size > 0) and size < most
  redis.call('HINCRBY', whole, 'served', served)
  if counted then redis.call('HINCRBY', whole, 'failed', failed) end
  if redis.call('TTL', whole) < 0 then redis.call('EXPIRE', whole, window) end
  if counted then
    if served > 0 then redis.call('HINCRBY', exit, 's:' .. customer, served) end
    if failed > 0 then
      if redis.call('HINCRBY', exit, 'f:' .. customer, failed) == failed then redis.call('HINCRBY', exit, '#', 1) end
      for target in string.gmatch(ARGV[i + 4], '[^,]+') do redis.call('HSET', exit, 't:' .. target, 1) end
      if tonumber(redis.call('HGET', exit, '#')) >= enough then
        marked = marked + redis.call('ZADD', KEYS[1], 'NX', now, 'let:' .. id)
      end
    end
    if size == 0 then redis.call('EXPIRE', exit, window) end
  end
end
return marked
