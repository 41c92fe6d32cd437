-- prune_counters: counters that nothing refers to any more go, a page at a time: those of hours and days long over, and those
-- of tasks that have left the board, hold nothing, and whose every line has left the ledger and can't be corrected any more.
-- KEYS     1 board  2 spend  3 base of the ledger  4 items  5 limits
-- ARGV     1 where to go on ('0': from the start)  2 how many to look at, about (1-1000)  3 first hour to keep  4 first day
-- Returns  {where to go on ('0': that was all), how many went}
local function prune_counters(keys, argv)
  local _, now_ms = read_clock(keys[1])
  local cursor, page = unpack(redis.call('HSCAN', keys[2], argv[1], 'COUNT', argv[2]))
  local gone = {}

  local function ended(field, text)
    local task = string.match(field, '^t|task:(.+)$') or string.match(field, '^t|agent:[^/]*/task:(.+)$')
    if not task or redis.call('HEXISTS', keys[4], task) == 1 then return false end -- guard: prune_item
    if redis.call('HEXISTS', keys[5], 'task:' .. task) == 1 then return false end -- guard: prune_limit
    local counter, base = read_counter(text), read_sum(redis.call('HGET', keys[3], field))
    if base[4] > now_ms then return false end -- guard: prune_corrected
    for unit = 1, 3 do
      if counter[2 * unit] ~= 0 then return false end -- guard: prune_held
      if counter[2 * unit - 1] ~= base[unit] then return false end -- guard: prune_ledger
    end
    return true
  end

  for i = 1, #page, 2 do
    local field = page[i]
    local window = string.match(field, '^([^|]*)|') or ''
    local letter = string.sub(window, 1, 1)
    if (letter == 'h' and window < argv[3]) or (letter == 'd' and window < argv[4]) or ended(field, page[i + 1]) then
      gone[#gone + 1] = field
    end
  end
  if #gone > 0 then
    redis.call('HDEL', keys[2], unpack(gone))
    redis.call('HDEL', keys[3], unpack(gone))
  end
  return { cursor, #gone }
end
register('prune_counters', prune_counters, { 'allow-oom' })
