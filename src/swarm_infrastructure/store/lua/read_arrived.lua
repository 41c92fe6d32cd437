-- read_arrived: where items are that somebody waits for; those that have come there whole.
-- KEYS     1 items  2 payloads  3 results
-- ARGV     per item: id, the statuses waited for, as |one|other|, or '' for any
-- Returns  per item: record, payload, result   (false for an item that is not there; payload and result for one still to come)
local function read_arrived(keys, argv)
  local ids, rows = {}, {}
  for i = 1, #argv, 2 do ids[#ids + 1] = argv[i] end
  for i, text in ipairs(redis.call('HMGET', keys[1], unpack(ids))) do
    local record, wanted, at = unpack_record(text), argv[2 * i], 3 * i
    rows[at - 2], rows[at - 1], rows[at] = text, false, false
    if record and (wanted == '' or find(wanted, '|' .. record.status .. '|', 1, true)) then
      rows[at - 1], rows[at] = redis.call('HGET', keys[2], ids[i]), redis.call('HGET', keys[3], ids[i])
    end
  end
  return rows
end
register('read_arrived', read_arrived, { 'no-writes' })
