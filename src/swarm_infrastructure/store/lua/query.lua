-- query: a page of some sets in order, without a scan of anything else.
-- KEYS     1 items  2 payloads  3 results   then the sets: lines or `timed`
-- ARGV     1 most items of each set (1-500)  2 how many of each to skip  3 status wanted or ''
-- Returns  per set: {items read, id, record, payload, result, …}   priority then FIFO in a line, by its time in `timed`
local function query(keys, argv)
  local most, skip, status = tonumber(argv[1]), tonumber(argv[2]), argv[3]
  local answer = {}
  for i = 4, #keys do
    local ids = redis.call('ZRANGE', keys[i], skip, skip + most - 1)
    local rows = { #ids }
    local packed = #ids > 0 and redis.call('HMGET', keys[1], unpack(ids)) or {}
    for j, id in ipairs(ids) do
      local record = unpack_record(packed[j])
      if status == '' or (record and record.status == status) then
        rows[#rows + 1] = id
        rows[#rows + 1] = packed[j]
        rows[#rows + 1] = redis.call('HGET', keys[2], id)
        rows[#rows + 1] = redis.call('HGET', keys[3], id)
      end
    end
    answer[#answer + 1] = rows
  end
  return answer
end
register('query', query, { 'no-writes' })
