-- purge_marks: dedup marks whose time is over go, a page at a time.
-- KEYS     1 board  2 items  3 dedup
-- ARGV     1 where to go on ('0': from the start)  2 how many to look at, about (1-1000)
-- Returns  {where to go on ('0': that was all), how many went}
local function purge_marks(keys, argv)
  local _, now_ms = read_clock(keys[1])
  local cursor, page = unpack(redis.call('HSCAN', keys[3], argv[1], 'COUNT', argv[2]))
  local gone = {}
  for i = 1, #page, 2 do
    local id, ends_ms = string.match(page[i + 1], '^([^|]*)|(%d+)$')
    if id and ends_ms ~= '0' and tonumber(ends_ms) <= now_ms then -- guard: marks_over
      forget_mark(keys[2], id, page[i])
      gone[#gone + 1] = page[i]
    end
  end
  if #gone > 0 then redis.call('HDEL', keys[3], unpack(gone)) end
  return { cursor, #gone }
end
register('purge_marks', purge_marks, { 'allow-oom' })
