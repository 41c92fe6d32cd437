-- list_finished: items of a lane that have rested there for longer than its section keeps them, within a page of its line.
-- KEYS     1 board  2 items  3 line
-- ARGV     1 how many items of the line to skip  2 how many to look at (1-1000)
-- Returns  {looked at, id, …}
local function list_finished(keys, argv)
  local _, now_ms = read_clock(keys[1])
  local skip = tonumber(argv[1])
  local ids = redis.call('ZRANGE', keys[3], skip, skip + tonumber(argv[2]) - 1)
  local found, rules = { #ids }, { board = keys[1] }
  local packed = #ids > 0 and redis.call('HMGET', keys[2], unpack(ids)) or {}
  for i, id in ipairs(ids) do
    local record = unpack_record(packed[i])
    if record and outlived(rules, record, now_ms) then found[#found + 1] = id end
  end
  return found
end
register('list_finished', list_finished, { 'no-writes' })
