-- read_arrived: of items that somebody waits for, those that have come there, whole.
-- KEYS     1 items  2 payloads  3 results
-- ARGV     per item: id, the statuses waited for, as |one|other|
-- Returns  per item: record, payload, result   (false for what has not come)
local function read_arrived(keys, argv)
  local ids, rows = {}, {}
  for i = 1, #argv, 2 do ids[#ids + 1] = argv[i] end
  for i, text in ipairs(redis.call('HMGET', keys[1], unpack(ids))) do
    local record, at = unpack_record(text), 3 * i
    rows[at - 2], rows[at - 1], rows[at] = false, false, false
    if record and find(argv[2 * i], '|' .. record.status .. '|', 1, true) then
      rows[at - 2], rows[at - 1], rows[at] =
        text, redis.call('HGET', keys[2], ids[i]), redis.call('HGET', keys[3], ids[i])
    end
  end
  return rows
end
register('read_arrived', read_arrived, { 'no-writes' })
