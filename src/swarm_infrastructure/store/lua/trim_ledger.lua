-- trim_ledger: the oldest lines of the ledger go; what they booked is kept in the base, counter by counter.
-- KEYS     1 board  2 ledger  3 spend  4 events
--          5 base   hash  counter → usd,tokens,requests,until_ms: what the lines that went booked in it, and until when one of
--                         them may be corrected; '' → the newest line that went, and how many did
-- ARGV     1 keep_ms: older lines go  2 lines to keep at most, however young ('0': any number)  3 most lines (1-200)
-- Returns  {lines that went, '1' if more should go now, else '0', id of the newest that went or ''}
-- Event    truncated
local function trim_ledger(keys, argv)
  local ledger, keep_ms, keep, most = keys[2], tonumber(argv[1]), tonumber(argv[2]), tonumber(argv[3])
  local _, now_ms = read_clock(keys[1])
  local length, lines, last = redis.call('XLEN', ledger), 0, nil
  local booked, order = {}, {}
  for _, row in ipairs(redis.call('XRANGE', ledger, '-', '+', 'COUNT', most)) do
    local old = id_parts(row[1]) < now_ms - keep_ms -- guard: ledger_young
    if not old and (keep == 0 or length - lines <= keep) then break end -- guard: ledger_most
    local line = by_name(row[2])
    for field in string.gmatch(line.rows or '', '(%S+) %S+') do
      local sum = booked[field]
      if not sum then
        sum = { 0, 0, 0, 0 }
        booked[field] = sum
        order[#order + 1] = field
      end
      sum[1], sum[2], sum[3] = sum[1] + tonumber(line.usd), sum[2] + tonumber(line.tokens), sum[3] + tonumber(line.requests)
      if line.kind == 'unknown' then sum[4] = math.max(sum[4], tonumber(line.at) + UNKNOWN_MS) end -- guard: ledger_corrected
    end
    lines, last = lines + 1, row[1]
  end
  if lines == 0 then return { 0, '0', '' } end
  local stored = {}
  for first = 1, #order, 2000 do
    local fields = { unpack(order, first, math.min(#order, first + 1999)) }
    local counters, bases = redis.call('HMGET', keys[3], unpack(fields)), redis.call('HMGET', keys[5], unpack(fields))
    stored = {}
    for i, field in ipairs(fields) do
      if counters[i] then -- guard: ledger_dropped
        local sum, was = booked[field], read_sum(bases[i])
        for unit = 1, 3 do was[unit] = was[unit] + sum[unit] end
        was[4] = math.max(was[4], sum[4])
        stored[#stored + 1] = field
        stored[#stored + 1] = string.format('%.0f,%.0f,%.0f,%.0f', unpack(was))
      end
    end
    if #stored > 0 then redis.call('HSET', keys[5], unpack(stored)) end
  end
  local before = string.match(redis.call('HGET', keys[5], '') or '', '^%S+ (%d+)$')
  redis.call('HSET', keys[5], '', last .. ' ' .. plus(before or '0', lines))
  cut_after(ledger, last)
  tell_truncated(keys[4], 'ledger', lines, last)
  return { lines, lines == most and '1' or '0', last }
end
register('trim_ledger', trim_ledger, { 'allow-oom' })
