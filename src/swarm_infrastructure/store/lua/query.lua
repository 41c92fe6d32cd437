-- query: items of some lines in order, without a scan of anything else.
-- KEYS     1 items  2 payloads  3 results   then per line: the line or its `timed`
-- ARGV     1 most items (1-500 each line)  2 skip  3 status wanted or ''
-- Returns  flat: id, record, payload, result, …   in the order of the lines, priority then FIFO within each
local function query(keys, argv)
  local most, skip, status = tonumber(argv[1]), tonumber(argv[2]), argv[3]
  local rows, kept = {}, 0
  for i = 4, #keys do
    if kept >= most then break end
    local filtered = string.find(keys[i], ':timed:', 1, true)
    -- claims and delays share `timed`: it holds about as many items as agents have slots, so it is read whole
    local ids = filtered and redis.call('ZRANGE', keys[i], 0, -1)
      or redis.call('ZRANGE', keys[i], skip, skip + most - kept - 1)
    for from = 1, #ids, 500 do
      local part = { unpack(ids, from, math.min(from + 499, #ids)) }
      local packed = redis.call('HMGET', keys[1], unpack(part))
      for j, id in ipairs(part) do
        local record = unpack_record(packed[j])
        local fits = record and (status == '' or record.status == status)
        if fits and kept < most then
          kept = kept + 1
          rows[#rows + 1] = id
          rows[#rows + 1] = packed[j]
          rows[#rows + 1] = redis.call('HGET', keys[2], id)
          rows[#rows + 1] = redis.call('HGET', keys[3], id)
        end
      end
    end
    if not filtered then skip = math.max(0, skip - redis.call('ZCARD', keys[i])) end
  end
  return rows
end
register('query', query, { 'no-writes' })
