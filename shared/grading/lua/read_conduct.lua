-- How exits treated their customers, and how those fared with all exits. KEYS: 1 changed (for the slot).
-- ARGV: 1 prefix, 2.. ids. Answer: for each {targets that failed, then for each customer: served, failed, served in all,
-- failed in all}
local prefix, out = ARGV[1], {}
for n = 2, #ARGV do
  local targets, seen, order = 0, {}, {}
  local fields = redis.call('HGETALL', prefix .. 'conduct:' .. ARGV[n])
  for i = 1, #fields, 2 do
    local kind, name = string.sub(fields[i], 1, 2), string.sub(fields[i], 3)
    if kind == 't:' then
      targets = targets + 1
    elseif kind == 's:' or kind == 'f:' then
      if not seen[name] then
        seen[name] = { ['s:'] = 0, ['f:'] = 0 }
        order[#order + 1] = name
      end
      seen[name][kind] = tonumber(fields[i + 1])
    end
  end
  local told = { targets }
  for _, name in ipairs(order) do
    local whole = redis.call('HMGET', prefix .. 'customer:' .. name, 'served', 'failed')
    told[#told + 1] = seen[name]['s:']
    told[#told + 1] = seen[name]['f:']
    told[#told + 1] = tonumber(whole[1] or '0')
    told[#told + 1] = tonumber(whole[2] or '0')
  end
  out[#out + 1] = told
end
return out
