-- Named sessions of one owner in one pool, those that end last first. KEYS: 1 index of the owner's sessions.
-- ARGV: 1 prefix "{pool}:", 2 now ms, 3 how many at most, 4 key id ("" = all)
-- Answer: per session key id, sid, end ms, endpoint, created, seen, country, carrier, address, requests, bytes up, bytes down,
--         rotation
local prefix, wanted, out = ARGV[1], ARGV[4], {}
local found = redis.call('ZREVRANGEBYSCORE', KEYS[1], '+inf', '(' .. ARGV[2], 'WITHSCORES', 'LIMIT', 0, ARGV[3])
for i = 1, #found, 2 do
  local pak, sid = string.match(found[i], '^(.*):([^:]*)$')
  if pak and (wanted == '' or wanted == pak) then
    local row = redis.call('HMGET', prefix .. 'sess:' .. pak .. ':' .. sid, 'endpoint', 'created', 'seen',
      'requests', 'up', 'down', 'rotation')
    if row[1] then
      local ep = redis.call('HMGET', prefix .. 'ep:' .. row[1], 'country', 'carrier')
      local ip = redis.call('HGET', prefix .. 'live:' .. row[1], 'ip')
      local fields = { pak, sid, found[i + 1], row[1], row[2], row[3], ep[1], ep[2], ip,
        row[4], row[5], row[6], row[7] }
      for n = 1, 13 do out[#out + 1] = fields[n] or '' end
    end
  end
end
return out
